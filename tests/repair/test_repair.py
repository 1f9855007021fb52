"""Repair by least squares: what can be made up for is, and nothing else is touched."""

import contextlib
import copy
import sys
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import flexrel
from families import FAMILIES, family
from flexrel import ClosedForm, FineTune, Magnitude, ModelError, Plan, Sparsity, UsageError
from flexrel.repair import reconstruct_, recoveries, second_moments
from flexrel.repair.least_squares import RIDGES, error_of, solve
from flexrel.structure import analyse
from flexrel.structure.apply import apply
from networks import Call, batch, bits, random_, random_plan, same_bits

few_examples = settings(max_examples=40, derandomize=True)


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --- least squares ----------------------------------------------------------------------------


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
        patch.setattr("flexrel.repair.least_squares._ENTRIES", entries)
        found = solve(*split(x, y), now, bias, free_bias=free, support=support)

    if found.ridge is None:
        assert not support.any()
        return
    goals = y.view(len(x), groups, -1)
    for group, output in np.ndindex(groups, 9):
        there = support[group, output].numpy()
        left, right = x[:, group].numpy()[:, there], goals[:, group, output].numpy()
        size = (left.var(0) if free else (left**2).mean(0)) ** 0.5
        pull = np.diag(size) * (found.ridge * len(x)) ** 0.5
        left = left - left.mean(0) * free
        right = right - (right.mean() if free else bias[group, output].item())
        towards = pull @ now[group, output].numpy()[there]
        design, goal = np.vstack([left, pull]), np.append(right, towards)
        slow = np.linalg.lstsq(design, goal, rcond=None)[0]
        weights = found.weight[group, output].numpy()
        assert not weights[~there].any()
        if there.sum() <= 64:
            assert np.allclose(weights[there], slow, atol=1e-9)
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
    assert found.after == pytest.approx(errors[found.ridge], rel=1e-3)


def test_what_helps_some_outputs_and_harms_the_others_is_not_done():
    x, y, weight, bias = problem(400, outputs=129, noise=0.1)
    fit, check = split(x, y)
    seen = torch.linspace(0, 128, 64).round().long()
    support = torch.ones_like(weight, dtype=torch.bool)
    near = weight.clone()
    near[:, seen] += 0.1
    others = [at for at in range(129) if at not in seen.tolist()]
    odd = y.clone()
    odd[:, others] = 50 * normal(400, len(others), seed=9, dtype=torch.float64)
    fit = second_moments(x, odd)  # to which those that decide fit, and the others don't

    found = solve(fit, check, near, bias, free_bias=False, support=support)

    assert found.ridge is None
    assert torch.equal(found.weight, near)


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
    alone = solve(fit, check, weight * 0, bias, free_bias=False)
    exact = sys.modules["flexrel.repair.least_squares"].normal_solution
    solved = []

    def fails_at_last(xx, left):
        solved.append(exact(xx, left))
        return solved[-1] * (1 if len(solved) <= len(RIDGES) else torch.nan)

    monkeypatch.setattr("flexrel.repair.least_squares.normal_solution", fails_at_last)

    found = solve(fit, check, weight * 0, bias, free_bias=False)

    assert (found.ridge, found.after) == (alone.ridge, alone.after)
    assert error_of(found.weight, found.bias, check.centred()) == pytest.approx(found.after)


def test_the_error_is_that_of_the_outputs_on_the_rows():
    x, y, weight, bias = problem(50, groups=2, noise=1.0)
    made = torch.einsum("rgk,gjk->rgj", x, weight).flatten(1) + bias.flatten()

    slow = sum(float((row - goal).square().sum()) for row, goal in zip(made, y, strict=True)) / 50
    assert error_of(weight, bias, second_moments(x, y).centred()) == pytest.approx(slow)


# --- networks ---------------------------------------------------------------------------------


def plan_of(model, inputs, removed=None, granularity="channel"):
    """Return a plan that removes the named units alone."""
    graph = analyse(model, batch(inputs), granularity)
    masks = {group.name: torch.ones(group.shape, dtype=torch.bool) for group in graph.groups}
    for name, units in (removed or {}).items():
        masks[name].view(-1)[list(units)] = False
    return Plan(graph, masks)


def outputs(model, inputs):
    with torch.no_grad():
        return copy.deepcopy(model).eval()(inputs)


def error(model, dense, inputs):
    """Return the squared error of a network's outputs, over their variance."""
    want = outputs(dense, inputs)
    return float((outputs(model, inputs) - want).square().mean() / want.var())


def repaired(model, removed, inputs, *, batches=None, granularity="channel"):
    """Return the network cut, the network repaired, what became of its layers, and refusals."""
    plan = plan_of(model, inputs[:2], removed, granularity)
    cut = apply(model, plan)
    network = copy.deepcopy(cut)
    made, refused = reconstruct_(network, model, plan, batches or [inputs])
    return cut, network, made, refused


def mlp():
    layers = nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 3)
    return random_(nn.Sequential(*layers)).eval()


def test_a_channel_that_is_a_copy_of_another_is_made_up_for():
    model, inputs = mlp(), normal(300, 6)
    with torch.no_grad():
        model[0].weight[3], model[0].bias[3] = model[0].weight[5], model[0].bias[5]

    cut, network, made, refused = repaired(model, {"0": [3]}, inputs)

    assert error(cut, model, inputs) > 1e-2
    assert torch.allclose(outputs(network, inputs), outputs(model, inputs), atol=1e-4)
    fresh = normal(50, 6, seed=1)  # not only on what it was fitted to
    assert torch.allclose(outputs(network, fresh), outputs(model, fresh), atol=1e-4)
    assert not refused
    assert next(repair.layer for repair in made if repair.changed) == "2"


def test_a_channel_that_others_make_up_is_made_up_for_in_a_convolution():
    layers = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(45, 3)
    model, inputs = random_(nn.Sequential(*layers)).eval(), normal(60, 3, 8, 8)
    with torch.no_grad():
        layer = model[0]
        layer.weight[2] = 0.5 * layer.weight[0] - layer.weight[4]
        layer.bias[2] = 0.5 * layer.bias[0] - layer.bias[4]  # no constant: padding has none

    cut, network, *_ = repaired(model, {"0": [2]}, inputs)

    size = outputs(model, inputs).abs().max()
    assert error(cut, model, inputs) > 1e-2
    assert torch.allclose(outputs(network, inputs), outputs(model, inputs), atol=1e-4 * size)


@pytest.mark.parametrize("name", FAMILIES)
def test_where_nothing_was_removed_nothing_changes(name):
    model, inputs = family(name), normal(8, 3, 8, 8)
    plan = plan_of(model, inputs[:2])
    whole = apply(model, plan)
    before = bits(whole)

    made, _ = reconstruct_(whole, model, plan, [inputs])

    assert not any(repair.changed for repair in made)
    assert same_bits(bits(whole), before)


@pytest.mark.parametrize("name", FAMILIES)
def test_only_numbers_of_the_pruned_network_change(name):
    model, inputs = family(name), normal(8, 3, 8, 8)
    next(model.parameters()).requires_grad_(False)
    graph = analyse(model, batch(inputs[:2]), "channel")
    plan = random_plan(graph, 0)
    cut = apply(model, plan).train()
    model.train()
    dense, before, state = bits(model), bits(cut), torch.get_rng_state()
    threads = threading.active_count()

    reconstruct_(cut, model, plan, [inputs])

    assert same_bits(bits(model), dense)
    after = bits(cut)
    assert after[0].keys() == before[0].keys()
    assert [t.shape for t in after[0].values()] == [t.shape for t in before[0].values()]
    assert after[1:] == before[1:]
    assert torch.equal(torch.get_rng_state(), state)
    assert threading.active_count() == threads


class Failing(nn.Module):
    """Raises when it runs for the n-th time, in this network or a copy of it."""

    def __init__(self, at):
        super().__init__()
        self.count = [0]
        self.at = at

    def __deepcopy__(self, memo):
        return self

    def forward(self, x):
        self.count[0] += 1
        if self.count[0] == self.at:
            raise ArithmeticError("half way")
        return x


@pytest.mark.parametrize("at", range(1, 9))
def test_a_network_that_raises_half_way_leaves_nothing_behind(at):
    failing = Failing(0)
    model = nn.Sequential(*mlp()[:2], failing, *mlp()[2:])
    inputs = normal(40, 6)
    plan = plan_of(model, inputs[:2], {"0": [3]})
    cut = apply(model, plan)
    dense, modes = bits(model), bits(cut)[1:]
    threads, state = threading.active_count(), torch.get_rng_state()
    failing.count[0], failing.at = 0, at  # twice to see the layers, then twice a batch

    with pytest.raises(ModelError, match="half way"):
        reconstruct_(cut, model, plan, [inputs[:20], inputs[20:30], inputs[30:]])

    assert threading.active_count() == threads
    assert torch.equal(torch.get_rng_state(), state)
    assert same_bits(bits(model), dense)
    assert bits(cut)[1:] == modes


@pytest.mark.parametrize("at", [0, 8])
def test_torch_computes_with_as_many_threads_as_before(at):
    failing, found = Failing(0), []
    model = nn.Sequential(*mlp()[:2], failing, *mlp()[2:])
    inputs = normal(40, 6)
    plan = plan_of(model, inputs[:2], {"0": [3]})
    cut = apply(model, plan)
    failing.count[0], failing.at = 0, at
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with pytest.raises(ModelError) if at else contextlib.nullcontext():
            reconstruct_(cut, model, plan, inputs.split(10))
        new = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        new.start()
        new.join()
        found.append(torch.get_num_threads())
    finally:
        torch.set_num_threads(threads)

    assert found == [3, 3]


# --- zeros stay zeros -------------------------------------------------------------------------


@pytest.mark.parametrize("granularity", ["element", "2:4", "block:2x2"])
def test_zeros_stay_zeros(granularity):
    layers = nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.Flatten()
    model = random_(nn.Sequential(*layers, nn.Linear(128, 8), nn.ReLU(), nn.Linear(8, 3))).eval()
    inputs = normal(200, 4, 8, 8)
    done = {
        recover: flexrel.prune(
            model,
            calibration=[inputs],
            budgets=[Sparsity(0.5)],
            criterion=Magnitude(),
            granularity=granularity,
            recover=recover,
        )
        for recover in ("none", "closed-form")
    }
    cut, network = done["none"].model, done["closed-form"].model

    changed = 0
    for name, weight in cut.state_dict().items():
        now = network.state_dict()[name]
        if name.endswith("weight"):
            assert not now[weight == 0].any(), name
            assert not now[weight == 0].signbit().any(), name
            changed += not torch.equal(now, weight)
    assert sum(int((w == 0).sum()) for w in cut.state_dict().values()) > 400
    assert changed >= 2
    assert error(network, model, inputs) < 0.9 * error(cut, model, inputs)


# --- what the goals are -----------------------------------------------------------------------


class Sum(nn.Module):
    """A residual block: what a branch gives is added to what came through a cut before it."""

    def __init__(self, end=None, after=None):
        super().__init__()
        self.skip = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.Sigmoid())
        self.branch = nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, 5))
        self.end = end or (lambda y: y)
        self.after = after or nn.Linear(5, 3)

    def forward(self, x):
        return self.after(self.skip(x) + self.end(self.branch(x)))


def damaged(model, inputs):
    """Return the network cut on the side that is no branch's, and that repaired."""
    cut, network, made, _ = repaired(model, {"skip.0": [0, 3, 5, 6]}, inputs)
    return cut, network, {repair.layer: repair for repair in made}


def scaled_in_place(y):
    return y.mul_(0.25)


ENDS = {
    "nothing": None,
    "a number": lambda y: 0.25 * y,
    "a number a channel": lambda y: y * torch.tensor([1.0, 2.0, -3.0, 0.5, 4.0]),
    "in place": scaled_in_place,
    "dropout": lambda y: functional.dropout(y, 0.5, training=False),
    "batch norm": nn.BatchNorm1d(5),
}


@pytest.mark.parametrize("name", ENDS)
def test_a_branch_makes_up_for_what_the_other_side_of_its_sum_lost(name):
    end = copy.deepcopy(ENDS[name])
    model, inputs = random_(Sum(end)).eval(), normal(400, 6)

    cut, network, made = damaged(model, inputs)

    # the slow twin: a plain goal would leave the branch, of which nothing was cut, as it is
    plain = copy.deepcopy(network)
    plain.branch.load_state_dict(cut.branch.state_dict())
    plain.after.load_state_dict(cut.after.state_dict())
    sides = [
        (outputs(one.skip, inputs) + outputs(Call(one.end), outputs(one.branch, inputs)))
        for one in (model, plain, network)
    ]
    assert made["branch.2"].changed
    apart = [float((side - sides[0]).square().mean()) for side in sides]
    assert apart[2] < 0.6 * apart[1]


SCALES = {
    "samples": lambda y, _: y * y[:, :1].sigmoid(),
    "channels of each sample": lambda y, _: y * (5 * y.mean((2, 3), keepdim=True)).sigmoid(),
    "positions": lambda y, _: y * torch.linspace(0.1, 2, 4).view(2, 2),
    "rows of positions": lambda y, _: y * torch.tensor([[0.1], [2.0]]),
    "channels by what else comes in": lambda y, x: y * (5 * x[:, :1].mean((2, 3), True)).sigmoid(),
    "channels of each sample by what else comes in": lambda y, x: (
        y * (5 * x.mean((2, 3), keepdim=True)[:, [0, 1, 2, 0, 1]]).sigmoid()
    ),
}


@pytest.mark.parametrize("first", [2, 1])  # samples in the first batch
@pytest.mark.parametrize("name", SCALES)
def test_a_branch_that_is_scaled_otherwise_than_by_channel_has_a_plain_goal(name, first):
    """What its sum lost can't be put on its outputs then by a number a channel."""

    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.skip = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 5, 1))
            self.branch, self.last = nn.Conv2d(3, 5, 1), nn.Conv2d(5, 3, 1)

        def forward(self, x):
            return self.last(self.skip(x).sigmoid() + SCALES[name](self.branch(x), x))

    model, inputs = random_(Gated()).eval(), normal(200, 3, 2, 2)

    batches = [inputs[:first], inputs[first:]]
    cut, network, made, _ = repaired(model, {"skip.0": [0, 3, 5, 6]}, inputs, batches=batches)

    assert torch.equal(network.branch.weight, cut.branch.weight)  # what it gives is right already
    assert torch.equal(network.branch.bias, cut.branch.bias)
    assert "last" in [repair.layer for repair in made if repair.changed]


def test_a_sum_made_in_place_is_of_the_repaired_branch_whichever_way_the_model_goes_on():
    class InPlace(Sum):
        def forward(self, x):
            made = self.branch(x)
            made.add_(self.skip(x))  # and what it returns is not used
            return self.after(made)

    model, inputs = random_(InPlace()).eval(), normal(400, 6)

    _, network, made = damaged(model, inputs)
    _, plain, _ = damaged(random_(Sum()).eval(), inputs)

    assert made["branch.2"].changed
    assert torch.allclose(outputs(network, inputs), outputs(plain, inputs), atol=1e-5)


def test_the_goal_of_a_branch_is_found_by_hand():
    """One weight a side: what the skip side lost, 2 x, the branch takes on."""

    class Hand(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(1, 2, bias=False)
            self.second = nn.Linear(2, 1, bias=False)
            self.branch = nn.Linear(1, 1, bias=False)

        def forward(self, x):
            return self.second(functional.relu(self.first(x))) + 4 * self.branch(x)

    model, inputs = Hand().eval(), 1 + normal(100, 1).abs()
    with torch.no_grad():
        model.first.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        model.second.weight.copy_(torch.tensor([[3.0, 7.0]]))
        model.branch.weight.fill_(5)
    cut = apply(model, plan_of(model, inputs[:2], {"first": [1]}))
    assert torch.allclose(outputs(cut, inputs), outputs(model, inputs))  # relu(-x) is 0
    with torch.no_grad():
        cut.second.weight.fill_(1)  # an earlier cut that no layer before could make up for

    plan = plan_of(model, inputs[:2], {"first": [1]})
    reconstruct_(cut, model, plan, [inputs])

    assert torch.allclose(outputs(cut, inputs), outputs(model, inputs), atol=1e-3)


# --- kinds of layers --------------------------------------------------------------------------


class Conv1D(nn.Module):
    """Linear, as GPT-2 has it: the weight lies the other way round."""

    def __init__(self, inputs, out):
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.zeros(inputs, out)),
            nn.Parameter(torch.ones(out)),
        )

    def forward(self, x):
        return torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight).view(
            *x.shape[:-1], len(self.bias)
        )


class ByHand(nn.Module):
    """A convolution by its function, of a parameter of its own name."""

    def __init__(self, channels, out):
        super().__init__()
        self.kernel, self.shift = (
            nn.Parameter(torch.zeros(out, channels, 3, 3)),
            nn.Parameter(torch.zeros(out)),
        )

    def forward(self, x):
        return functional.conv2d(x, self.kernel, self.shift, padding=1)


class Attending(nn.Module):
    """Torch's own attention behind a small perceptron, whose weight is three layers' in one."""

    def __init__(self):
        super().__init__()
        self.grow, self.shrink = nn.Linear(6, 10), nn.Linear(10, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.shrink(functional.relu(self.grow(x)))
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


def twice(layer, relu=None):
    """Return a layer between others, the first of which is cut."""
    return lambda: nn.Sequential(
        nn.Conv2d(3, 12, 1), relu or nn.ReLU(), layer(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)
    )


PIXELS, TOKENS = (3, 6, 6), (5, 6)
KINDS = {  # network, inputs of a sample, what is cut, a layer that must be refitted
    "convolution": (twice(lambda: nn.Conv2d(12, 6, 3, 2, 1)), PIXELS, "0", "2"),
    "dilated": (twice(lambda: nn.Conv2d(12, 6, 3, padding=2, dilation=2)), PIXELS, "0", "2"),
    "same": (twice(lambda: nn.Conv2d(12, 6, 3, padding="same")), PIXELS, "0", "2"),
    "by hand": (twice(lambda: ByHand(12, 6)), PIXELS, "0", "2.kernel"),
    "depthwise": (
        twice(lambda: nn.Sequential(nn.Conv2d(12, 12, 3, groups=12), nn.Conv2d(12, 6, 1))),
        PIXELS,
        "0",
        "2.1",
    ),
    "norm": (
        twice(lambda: nn.Sequential(nn.Conv2d(12, 6, 3, bias=False), nn.BatchNorm2d(6))),
        PIXELS,
        "0",
        "2.0",
    ),
    "transposed weight": (
        lambda: nn.Sequential(
            Conv1D(6, 12), nn.GELU(), Conv1D(12, 7), nn.Flatten(), nn.LazyLinear(3)
        ),
        TOKENS,
        "0",
        "2",
    ),
    "tokens": (
        lambda: nn.Sequential(
            nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 7), nn.Flatten(), nn.LazyLinear(3)
        ),
        TOKENS,
        "0",
        "2",
    ),
    "one axis": (
        lambda: nn.Sequential(
            nn.Conv1d(5, 12, 3), nn.ReLU(), nn.Conv1d(12, 4, 2), nn.Flatten(), nn.LazyLinear(3)
        ),
        TOKENS,
        "0",
        "2",
    ),
    "attention": (Attending, TOKENS, "grow", "shrink"),
}


def built(kind):
    network, shape, group, layer = KINDS[kind]
    model = network().eval()
    model(torch.zeros(2, *shape))  # lazy layers see their inputs
    return random_(model), shape, group, layer


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_layer_is_refitted(kind):
    model, shape, group, layer = built(kind)
    inputs = normal(300, *shape)

    cut, network, made, refused = repaired(model, {group: [0, 2, 3, 7]}, inputs)

    assert not refused
    assert layer in [repair.layer for repair in made if repair.changed]
    assert error(network, model, inputs) < 0.8 * error(cut, model, inputs)
    assert all(repair.after <= repair.before for repair in made)


@pytest.mark.parametrize("kind", KINDS)
def test_the_layer_behind_a_cut_gives_what_the_dense_one_gave(kind):
    """Its outputs, and not those of the network alone, as hooks see them."""
    model, shape, group, layer = built(kind)
    inputs = normal(300, *shape)

    cut, network, *_ = repaired(model, {group: [0, 2, 3, 7]}, inputs)

    seen = []
    behind = layer[:-1] + "1" if kind == "norm" else layer.removesuffix(".kernel")
    for one in (model, cut, network):
        twin = copy.deepcopy(one)
        twin.get_submodule(behind).register_forward_hook(lambda _, given, made: seen.append(made))
        outputs(twin, inputs)
    want, had, has = seen
    before, after = (float((one - want).square().mean()) for one in (had, has))
    assert after < 0.8 * before


def test_the_norm_behind_a_layer_without_bias_takes_its_shift():
    model, shape, group, _ = built("norm")
    inputs = normal(300, *shape)
    cut, network, *_ = repaired(model, {group: [0, 2, 3, 7]}, inputs)

    shift = outputs(network[:3], inputs) - outputs(model[:3], inputs)
    assert shift.mean((0, 2, 3)).abs().max() < 1e-4  # as if the layer had a bias
    assert network[2][0].bias is None
    assert not torch.equal(network[2][1].running_mean, cut[2][1].running_mean)
    for name in ("running_var", "weight", "bias"):
        assert torch.equal(getattr(network[2][1], name), getattr(cut[2][1], name))


@pytest.mark.parametrize("kind", KINDS)
def test_several_batches_of_different_size_are_as_good_as_one(kind):
    model, shape, group, _ = built(kind)
    inputs = normal(240, *shape)
    removed = {group: [0, 2, 3, 7]}

    _, whole, *_ = repaired(model, removed, inputs)
    parts = [inputs[:1], inputs[1:100], inputs[100:103], inputs[103:]]
    cut, network, *_ = repaired(model, removed, inputs, batches=parts)

    lost = error(cut, model, inputs) - error(whole, model, inputs)
    assert lost > 0
    assert error(network, model, inputs) < error(whole, model, inputs) + 0.1 * lost


@pytest.mark.parametrize("kind", sorted({*KINDS} - {"transposed weight", "attention"}))
def test_one_sample_is_too_few_to_hold_any_out_so_nothing_changes(kind):
    model, shape, group, _ = built(kind)
    inputs = normal(1, *shape)
    cut, network, made, _ = repaired(model, {group: [1]}, inputs)

    assert not any(repair.changed for repair in made)
    assert same_bits((bits(network)[0], *bits(cut)[1:]), bits(cut))


class Tokens(nn.Module):
    """Its second layer sees all tokens of all samples in one axis, or tokens first."""

    def __init__(self, first):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 8), nn.Linear(8, 7), nn.Linear(7, 3)
        self.tokens_first = first

    def forward(self, x):
        hidden = self.first(x).relu()
        hidden = hidden.transpose(0, 1) if self.tokens_first else hidden.flatten(0, 1)
        hidden = self.second(hidden).tanh()
        hidden = hidden.transpose(0, 1) if self.tokens_first else hidden.unflatten(0, x.shape[:2])
        return self.third(hidden)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(("samples", "changes"), [(3, False), (60, True)])
def test_tokens_of_a_sample_are_held_out_together(first, samples, changes):
    model = random_(Tokens(first)).eval()
    inputs = normal(samples, 9, 6)

    _, _, made, _ = repaired(model, {"first": [1, 4]}, inputs)

    assert any(repair.changed for repair in made) is changes


def test_batches_of_one_sample_each_are_fitted_together():
    model, inputs = mlp(), normal(60, 6)
    cut, network, *_ = repaired(model, {"0": [3]}, inputs, batches=[x[None] for x in inputs])

    assert error(network, model, inputs) < 0.5 * error(cut, model, inputs)


@pytest.mark.parametrize("kind", ["convolution", "norm", "tokens", "depthwise"])
def test_an_exported_program_is_repaired(kind):
    model, shape, _, _ = built(kind)
    inputs = normal(64, *shape)

    result = flexrel.prune(
        model,
        calibration=[inputs],
        budgets=[Sparsity(0.3)],
        criterion=Magnitude(),
        form="exported",
    )

    step = result.recovery[0]
    assert step.kept
    assert step.after < step.before


# --- through prune ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_repair_never_makes_a_network_worse(name):
    result = flexrel.prune(
        family(name),
        calibration=[normal(40, 3, 8, 8), normal(9, 3, 8, 8, seed=1)],
        budgets=[Sparsity(0.4)],
        criterion=Magnitude(),
    )

    [step] = result.recovery
    assert step.name == "closed-form"
    assert step.kept == (step.after < step.before)
    assert result.achieved.divergence == pytest.approx(min(step.before, step.after))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.encode = nn.Linear(6, 9), nn.Linear(9, 9, bias=False)
        self.decode = nn.Linear(9, 9)
        self.decode.weight = self.encode.weight
        self.last = nn.Linear(9, 3)

    def forward(self, x):
        x = functional.relu(self.first(x))
        return self.last(self.decode(functional.relu(self.encode(x))))


class Reused(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.again, self.last = nn.Linear(6, 9), nn.Linear(9, 9), nn.Linear(9, 3)

    def forward(self, x):
        x = functional.relu(self.first(x))
        return self.last(functional.relu(self.again(functional.relu(self.again(x)))))


class Looked(nn.Module):
    """The weight of a layer is read by something else too."""

    def __init__(self):
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(6, 9), nn.Linear(9, 7), nn.Linear(7, 3)

    def forward(self, x):
        x = self.middle(functional.relu(self.first(x)))
        return self.last(x) + self.middle.weight.square().mean()


@pytest.mark.parametrize(
    ("kind", "layer", "why"),
    [
        (Tied, "encode", "2 times in one pass"),
        (Reused, "again", "2 times in one pass"),
        (Looked, "middle", "used for something else too"),
    ],
)
def test_weights_of_several_uses_are_left_alone_and_the_reason_is_given(kind, layer, why):
    model, inputs = random_(kind()).eval(), normal(200, 6)
    graph = analyse(model, batch(inputs[:2]), "element")
    plan = random_plan(graph, 0)
    cut = apply(model, plan)
    network = copy.deepcopy(cut)

    made, refused = reconstruct_(network, model, plan, [inputs])

    assert why in refused[layer]
    assert torch.equal(
        network.get_parameter(f"{layer}.weight"), cut.get_parameter(f"{layer}.weight")
    )
    assert layer not in [repair.layer for repair in made]
    assert any(repair.changed for repair in made)
    notes = ClosedForm()(cut, model, plan, [inputs]).notes
    assert any(note.startswith(f"{layer}: not repaired") and why in note for note in notes)


def test_transposed_convolutions_are_left_alone_and_others_repaired():
    model, inputs = family("transposed"), normal(60, 3, 8, 8)
    plan = random_plan(analyse(model, batch(inputs[:2]), "channel"), 1)
    cut = apply(model, plan)

    made = ClosedForm()(cut, model, plan, [inputs])

    for name in ("up", "grouped"):
        assert f"{name}: not repaired, it is a transposed convolution" in made.notes
        assert torch.equal(
            made.model.get_parameter(f"{name}.weight"), cut.get_parameter(f"{name}.weight")
        )
    assert not torch.equal(made.model.last.weight, cut.last.weight)


# --- what is asked for, and said --------------------------------------------------------------


def test_few_samples_are_said_and_how_many_rows_are_wanted():
    model, inputs = mlp(), normal(6, 6)
    plan = plan_of(model, inputs[:2], {"0": [3]})
    cut = apply(model, plan)

    few = ClosedForm()(cut, model, plan, [inputs]).notes
    many = ClosedForm()(cut, model, plan, [normal(200, 6)]).notes

    said = "2: fitted to 5 rows, fewer than its 7 inputs; more calibration data would help"
    assert said in few  # of 8 inputs one is gone; of 6 samples, one is held out
    assert not any("fitted to" in note for note in many)


@pytest.mark.parametrize("sizes", [(1,), (3,), (1, 2)])
def test_too_few_samples_to_hold_one_out_are_said(sizes):
    model, inputs = mlp(), normal(sum(sizes), 6)
    plan = plan_of(model, inputs[:1], {"0": [3]})
    cut = apply(model, plan)

    made = ClosedForm()(cut, model, plan, inputs.split(sizes))

    (note,) = made.notes
    assert note == (
        f"nothing refitted: of {sum(sizes)} samples none can be held out to judge a refit by; "
        "pass at least 4"
    )
    assert same_bits((bits(made.model)[0], *bits(cut)[1:]), bits(cut))


def test_no_more_samples_are_read_than_asked_for():
    model, inputs = mlp(), normal(200, 6)
    plan = plan_of(model, inputs[:2], {"0": [3]})
    cut = apply(model, plan)

    some = ClosedForm(samples=50)(cut, model, plan, [inputs[:20], inputs[20:90], inputs[90:]])
    same = ClosedForm()(cut, model, plan, [inputs[:30], inputs[30:50]])

    for one, other in zip(some.model.parameters(), same.model.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-4)


def test_the_same_seed_gives_the_same_network_and_the_cut_one_is_not_changed():
    model, inputs = family("residuals"), normal(30, 3, 8, 8)
    plan = random_plan(analyse(model, batch(inputs[:2]), "channel"), 0)
    cut = apply(model, plan)
    before = bits(cut)

    one, other = (ClosedForm(seed=3)(cut, model, plan, [inputs]).model for _ in range(2))

    assert same_bits(bits(cut), before)
    state = other.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in one.state_dict().items())


def test_what_recover_asks_for():
    repair, training = recoveries("finetune:3", 7)
    own = FineTune(2)

    assert recoveries("none", 7) == (None, None)
    assert recoveries("closed-form", 7) == (ClosedForm(seed=7), None)
    assert repair == ClosedForm(seed=7)
    assert isinstance(training, FineTune)
    assert (training.epochs, training.seed) == (3, 7)
    assert recoveries(own, 7) == (ClosedForm(seed=7), own)
    assert recoveries(ClosedForm(samples=5), 7) == (ClosedForm(samples=5), None)


@pytest.mark.parametrize(
    "text", ["", "all", "finetune", "finetune:", "finetune:-1", "None", "finetune:1.5"]
)
def test_what_is_not_known_is_refused_with_what_there_is(text):
    with pytest.raises(UsageError) as refusal:
        recoveries(text, 0)

    said = str(refusal.value)
    assert repr(text) in said
    assert all(name in said for name in ("none", "closed-form", "finetune:EPOCHS"))
    assert "\n" not in said


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_recovery_is_refused_by_its_type():
    with pytest.raises(UsageError, match="recover is a int") as refusal:
        recoveries(3, 0)

    assert "\n" not in str(refusal.value)
