"""Least squares from second moments, against NumPy and against slow twins."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flexrel.repair import second_moments
from flexrel.repair.least_squares import RIDGES, error_of, solve
from flexrel.repair.systems import normal_solution
from repairs import normal

few_examples = settings(max_examples=40, derandomize=True)


def problem(rows=80, groups=1, inputs=4, outputs=3, noise=0.0, seed=0):
    """Return inputs, goals that are an affine function of them, and that function."""
    x = normal(rows, groups, inputs, seed=seed, dtype=torch.float64)
    weight = normal(groups, outputs, inputs, seed=seed + 1, dtype=torch.float64)
    bias = normal(groups, outputs, seed=seed + 2, dtype=torch.float64)
    y = torch.einsum("rgk,gjk->rgj", x, weight) + bias
    y = (y + noise * normal(*y.shape, seed=seed + 3, dtype=torch.float64)).flatten(1)
    return x, y, weight, bias


def split(x, y):
    """Return moments of three quarters of the rows, and of the last quarter."""
    held = torch.arange(len(x)) % 4 == 3
    return second_moments(x[~held], y[~held]), second_moments(x[held], y[held])


def ridge_regression(fit, check, weight, bias, ridge):
    """Return weights from the normal equations of one group, and what they are judged with."""
    m = fit.about_zero()
    xx, xy = m.xx[0], m.xy[0] - m.x[0][:, None] * bias[0]
    damped = xx + ridge * xx.diagonal().diag()
    change = torch.linalg.solve(damped, xy - xx @ weight[0].T).T
    return (weight[0] + change)[None], bias, check.centred()


@few_examples
@given(groups=st.integers(1, 3), seed=st.integers(0, 99), free=st.booleans())
def test_an_affine_function_is_found(groups, seed, free):
    x, y, weight, bias = problem(groups=groups, seed=seed)
    start = bias if not free else torch.zeros_like(bias)
    near = weight + 0.01 * normal(*weight.shape, seed=seed, dtype=torch.float64)

    found = solve(*split(x, y), near, start, free_bias=free)

    assert torch.allclose(found.weight, weight, atol=1e-6)
    assert torch.allclose(found.bias, bias, atol=1e-6)
    assert found.after < 1e-10 < found.before


@few_examples
@given(seed=st.integers(0, 99), scale=st.sampled_from([1e-3, 1.0, 1e3]))
def test_it_is_the_least_squares_of_numpy(seed, scale):
    x, y, weight, bias = problem(600, noise=0.3, seed=seed)
    x = scale * x

    found = solve(*split(x, y), weight * 0, bias * 0, free_bias=True)

    design = np.hstack([x.squeeze(1).numpy(), np.ones((len(x), 1))])
    slow = np.linalg.lstsq(design, y.numpy(), rcond=None)[0]
    ridge = 3 * found.ridge + 1e-9  # the least of them is not nothing
    assert np.allclose(scale * found.weight[0].T, scale * slow[:-1], atol=3 * ridge)
    assert np.allclose(found.bias[0], slow[-1], atol=3 * ridge)


@few_examples
@given(seed=st.integers(0, 99), free=st.booleans())
def test_the_ridge_is_towards_the_weights_as_they_are(seed, free):
    """The slow twin: each weight's distance in inputs of unit size is one more row to fit."""
    x, y, weight, bias = problem(60, noise=1.0, seed=seed)
    now = weight + 0.5 * normal(*weight.shape, seed=seed, dtype=torch.float64)

    found = solve(*split(x, y), now, bias, free_bias=free)

    if found.ridge is None:
        return
    inputs, goals = x.squeeze(1).numpy(), y.numpy()
    size = (inputs.var(0) if free else (inputs**2).mean(0)) ** 0.5
    pull = np.diag(size) * (found.ridge * len(inputs)) ** 0.5
    left, right = inputs, goals - bias[0].numpy()
    if free:
        left, right = inputs - inputs.mean(0), goals - goals.mean(0)
    slow = np.linalg.lstsq(
        np.vstack([left, pull]), np.vstack([right, pull @ now[0].T.numpy()]), rcond=None
    )[0]
    assert np.allclose(found.weight[0].T, slow, atol=1e-6)


@few_examples
@given(seed=st.integers(0, 99), small=st.sampled_from([0.0, 1e-7, 1e-6]))
def test_what_hardly_varies_is_not_blown_up_into_a_signal(seed, small):
    x, y, weight, bias = problem(300, noise=0.1, seed=seed)
    still = (1 + small * x).float().double()  # rounding is a good part of what is left

    found = solve(*split(still, y), weight, bias, free_bias=True)

    least_squares = weight.abs().max() / max(small, 1e-7)  # what moving by it alone would take
    assert (found.weight - weight).abs().max() < 5e-3 * least_squares
    assert found.after <= found.before


@few_examples
@given(seed=st.integers(0, 99), groups=st.integers(1, 2), outputs=st.sampled_from([1, 3, 65, 200]))
def test_weights_outside_their_support_stay_zero_and_the_others_are_fitted(seed, groups, outputs):
    x, y, weight, _ = problem(400, groups, inputs=6, outputs=outputs, noise=0.2, seed=seed)
    support = torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    start = torch.zeros_like(weight)

    found = solve(*split(x, y), start, start[:, :, 0], free_bias=True, support=support)

    zeros = found.weight[~support]
    assert not zeros.any()
    assert not zeros.signbit().any()
    for group, output in np.ndindex(groups, weight.shape[1]):
        there = support[group, output].numpy()
        design = np.hstack([x[:, group].numpy()[:, there], np.ones((len(x), 1))])
        goal = y.view(len(x), groups, -1)[:, group, output].numpy()
        slow = np.linalg.lstsq(design, goal, rcond=None)[0]
        tolerance = 10 * ((found.ridge or 0) + 1e-6)
        assert np.allclose(found.weight[group, output].numpy()[there], slow[:-1], atol=tolerance)
        assert np.isclose(found.bias[group, output], slow[-1], atol=tolerance)


@few_examples
@given(
    seed=st.integers(0, 99),
    groups=st.integers(1, 3),
    inputs=st.sampled_from([1, 4, 7, 40, 140]),
    share=st.sampled_from([0.0, 0.1, 0.25, 0.4, 0.6, 1.0]),
    free=st.booleans(),
    entries=st.sampled_from([1, 50, 10**6]),
)
def test_each_output_has_the_ridge_regression_of_its_own_support(
    seed, groups, inputs, share, free, entries
):
    """The slow twin: one system after the other, however many the solver holds at a time."""
    x, y, weight, bias = problem(200, groups, inputs, outputs=9, noise=0.5, seed=seed)
    support = torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed)) < share
    now = (weight + 9.0) * support

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flexrel.repair.systems._ENTRIES", entries)
        found = solve(*split(x, y), now, bias, free_bias=free, support=support)

    if found.ridge is None:
        assert not support.any()
        return
    goals = y.view(len(x), groups, -1)
    for group, output in np.ndindex(groups, 9):
        there = support[group, output].numpy()
        left, right = x[:, group].numpy()[:, there], goals[:, group, output].numpy()
        size = (left.var(0) + 1e-4 * left.mean(0) ** 2 if free else (left**2).mean(0)) ** 0.5
        pull = np.diag(size) * (found.ridge * len(x)) ** 0.5
        left = left - left.mean(0) * free
        right = right - (right.mean() if free else bias[group, output].item())
        towards = pull @ now[group, output].numpy()[there]
        design, goal = np.vstack([left, pull]), np.append(right, towards)
        slow = np.linalg.lstsq(design, goal, rcond=None)[0]
        weights = found.weight[group, output].numpy()
        assert not weights[~there].any()
        if there.sum() <= 64:
            assert np.allclose(weights[there], slow, atol=1e-6)
        else:  # by steps, which end where the error hardly falls, wherever the weights are
            least, reached = (np.square(design @ w - goal).sum() for w in (slow, weights[there]))
            assert reached <= (1 + 1e-3) * least


@pytest.mark.parametrize("free", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_weights_stay_bit_for_bit_where_held_out_rows_say_that_nothing_helps(free, masked):
    x, y, weight, bias = problem(40)
    check = second_moments(x, y)  # which the weights as they are fit already
    fit = second_moments(x, normal(40, 3, seed=9, dtype=torch.float64))
    support = torch.ones_like(weight, dtype=torch.bool) if masked else None

    found = solve(fit, check, weight, bias, free_bias=free, support=support)

    assert found.ridge is None
    assert found.before == found.after
    assert torch.equal(found.weight, weight)
    assert torch.equal(found.bias, bias)


def test_the_ridge_is_the_one_that_suits_most_outputs():
    x, y, weight, bias = problem(60, inputs=20, outputs=300, noise=2.0)
    support = torch.ones_like(weight, dtype=torch.bool)

    near = weight + 0.3 * normal(*weight.shape, seed=5)

    found = solve(*split(x, y), near, bias, free_bias=False, support=support)
    errors = {
        ridge: error_of(*ridge_regression(*split(x, y), near, bias, ridge)) for ridge in RIDGES
    }

    assert errors[found.ridge] < 1.01 * min(errors.values())
    assert found.after / found.variance == pytest.approx(
        errors[found.ridge] / float(split(x, y)[1].centred().yy.sum()), rel=0.1
    )


def test_a_mean_that_shifted_is_put_back_by_the_bias_alone():
    x, y, weight, bias = problem(400)
    moved = solve(*split(x, y + 5), weight, bias, free_bias=True)

    assert torch.allclose(moved.weight, weight, atol=1e-9)
    assert torch.allclose(moved.bias, bias + 5, atol=1e-6)
    assert solve(*split(x, y + 5), weight, bias, free_bias=False).bias is not moved.bias
    assert torch.equal(solve(*split(x, y + 5), weight, bias, free_bias=False).bias, bias)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("free", [True, False])
@pytest.mark.parametrize(
    "kind", ["constant", "duplicated", "zero", "all zero", "all constant", "few rows", "far off"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inputs_that_say_little_give_finite_weights_and_no_larger_error(kind, free, masked, dtype):
    x, y, weight, bias = problem(12 if kind == "few rows" else 80, inputs=5, noise=0.1)
    if kind == "few rows":
        x, y, weight, bias = problem(8, inputs=30, noise=0.1)
    elif kind == "constant":
        x[:, :, 0] = 1000.0
    elif kind == "duplicated":
        x[:, :, 0] = x[:, :, 1]
    elif kind == "zero":
        x[:, :, 0] = 0
    elif kind == "all zero":
        x.zero_()
    elif kind == "all constant":
        x = torch.full_like(x, 1 / 3)
    else:
        x = x * 1e-3 + 1000
    support = torch.ones_like(weight, dtype=torch.bool) if masked else None
    near = weight + 0.3

    fit, check = split(x.to(dtype), y.to(dtype))
    found = solve(fit, check, near, bias, free_bias=free, support=support)

    assert found.weight.isfinite().all()
    assert found.bias.isfinite().all()
    assert found.after <= found.before


@settings(max_examples=300, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(8, 60),
    inputs=st.integers(1, 12),
    mean=st.integers(-1, 5),
    spread=st.integers(-4, 2),
    free=st.booleans(),
    masked=st.booleans(),
)
def test_inputs_that_hardly_vary_about_large_means_give_finite_weights(
    seed, rows, inputs, mean, spread, free, masked
):
    """Of single precision's moments little is left then; also of those of all rows together."""
    x, _, weight, bias = problem(rows, inputs=inputs, seed=seed)
    draw = torch.Generator().manual_seed(seed)
    lively = torch.rand(inputs, generator=draw) < 0.7
    x = 10**mean * x[:1] + 10**spread * x * lively
    y = torch.einsum("rgk,gjk->rgj", x, weight).flatten(1) + normal(rows, 3, seed=seed)
    support = torch.rand(weight.shape, generator=draw) < 0.5 if masked else None
    near = weight + 0.3 * normal(*weight.shape, seed=seed + 1)
    near = near if support is None else near.masked_fill(~support, 0)

    found = solve(*split(x.float(), y.float()), near, bias, free_bias=free, support=support)

    assert found.weight.isfinite().all()
    assert found.bias.isfinite().all()


def test_where_the_fit_to_all_rows_fails_the_one_to_some_is_taken(monkeypatch):
    x, y, weight, bias = problem(400, noise=0.1)
    fit, check = split(x, y)
    exact = sys.modules["flexrel.repair.least_squares"].normal_solution
    solved = []

    def counted(xx, left, **kwargs):
        solved.append(exact(xx, left, **kwargs))
        return solved[-1]

    monkeypatch.setattr("flexrel.repair.least_squares.normal_solution", counted)
    alone = solve(fit, check, weight * 0, bias, free_bias=False)
    count = len(solved)
    solved.clear()

    def fails_once(xx, left, **kwargs):
        return counted(xx, left, **kwargs) * (torch.nan if len(solved) == count else 1)

    monkeypatch.setattr("flexrel.repair.least_squares.normal_solution", fails_once)

    found = solve(fit, check, weight * 0, bias, free_bias=False)

    assert (found.ridge, found.after) == (alone.ridge, alone.after)
    assert error_of(found.weight, found.bias, check.centred()) == pytest.approx(found.after)


def test_wide_systems_are_solved_in_single_precision_nearly_as_well():
    x, y, *_ = problem(3000, inputs=1100, outputs=2, noise=0.1)
    xx, left = second_moments(x, y).centred().xx, second_moments(x, y).centred().xy.mT
    xx.diagonal(dim1=1, dim2=2).add_(1e-3)

    exact, quick = torch.linalg.solve(xx, left.mT).mT, normal_solution(xx, left, single=True)

    assert quick.dtype == left.dtype
    assert 0 < (quick - exact).norm() < 1e-3 * exact.norm()
    indefinite = xx - 2 * torch.eye(1100)
    assert normal_solution(indefinite, left, single=True).isnan().all()


def test_the_error_is_that_of_the_outputs_on_the_rows():
    x, y, weight, bias = problem(50, groups=2, noise=1.0)
    made = torch.einsum("rgk,gjk->rgj", x, weight).flatten(1) + bias.flatten()

    slow = sum(float((row - goal).square().sum()) for row, goal in zip(made, y, strict=True)) / 50
    assert error_of(weight, bias, second_moments(x, y).centred()) == pytest.approx(slow)
