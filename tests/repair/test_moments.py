"""What a layer takes in, row by row, against torch's own unfolding, numpy, and the layer itself."""

import functools
import math
import operator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from flexrel.repair import (
    SecondMoments,
    drawn_rows,
    inputs_at,
    outputs_at,
    samples_at,
    second_moments,
)
from flexrel.repair.moments import RunningMoments
from flexrel.tracing import Geometry

few_examples = settings(max_examples=60, derandomize=True)
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
LENGTHS = {1: (9,), 2: (7, 6), 3: (5, 4, 5)}


def geometry(stride, padding, dilation, groups):
    """Return a convolution's geometry as the library writes it down."""
    pads = tuple((pad, pad) for pad in padding)
    return Geometry(stride, pads, dilation, (0,) * len(stride), transposed=False, groups=groups)


def geometry_of(layer):
    return geometry(layer.stride, layer.padding, layer.dilation, layer.groups)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def axes_of(draw, count, least, most):
    return tuple(draw(st.integers(least, most)) for _ in range(count))


@st.composite
def convolutions(draw, axes=(1, 2, 3)):
    axes = draw(st.sampled_from(axes))
    groups = draw(st.integers(1, 3))
    inputs, outputs = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    return CONVOLUTIONS[axes](
        inputs,
        outputs,
        axes_of(draw, axes, 1, 2),
        axes_of(draw, axes, 1, 3),
        axes_of(draw, axes, 0, 2),
        axes_of(draw, axes, 1, 2),
        groups,
    ).double()


# --- which rows -------------------------------------------------------------------------------


@few_examples
@given(count=st.integers(1, 40), most=st.integers(1, 50), seed=st.integers(0, 99))
def test_drawn_rows_are_ascending_distinct_and_exactly_as_many_as_asked(count, most, seed):
    rows = drawn_rows(torch.zeros(count, 3), None, most, seeded(seed)).tolist()

    assert len(rows) == min(count, most)
    assert rows == sorted(set(rows))
    assert set(rows) <= set(range(count))


def test_all_rows_are_all_samples_and_positions():
    pixels = geometry((1, 1), (0, 0), (1, 1), 1)

    assert drawn_rows(torch.zeros(2, 5, 3, 4), pixels, 24, seeded()).tolist() == list(range(24))
    assert drawn_rows(torch.zeros(2, 3, 5), None, 6, seeded()).tolist() == list(range(6))
    assert len(drawn_rows(torch.zeros(2, 5, 3, 4), pixels, 23, seeded())) == 23


def test_every_row_is_drawn_about_as_often():
    draw = seeded()
    times = np.zeros(12)
    for _ in range(2000):
        times[drawn_rows(torch.zeros(12, 1), None, 3, draw).numpy()] += 1

    assert np.allclose(times / 2000, 0.25, atol=0.05)  # five standard deviations


def test_the_generator_alone_says_which_rows():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    rows = drawn_rows(torch.zeros(100, 1), None, 10, seeded(3))

    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(drawn_rows(torch.zeros(100, 1), None, 10, seeded(3)), rows)
    assert not torch.equal(drawn_rows(torch.zeros(100, 1), None, 10, seeded(4)), rows)


# --- what goes in there -----------------------------------------------------------------------


@few_examples
@given(layer=convolutions(axes=(2,)), seed=st.integers(0, 99))
def test_inputs_at_rows_are_those_of_unfold(layer, seed):
    x = normal(3, layer.in_channels, *LENGTHS[2], seed=seed)
    outputs = layer(x)
    rows = drawn_rows(outputs, geometry_of(layer), 11, seeded(seed))

    found = inputs_at(x, layer.weight, geometry_of(layer), rows)

    unfolded = functional.unfold(
        x, layer.kernel_size, layer.dilation, layer.padding, layer.stride
    )  # [samples, channels * kernel, positions]
    slow = unfolded.transpose(1, 2).flatten(0, 1)[rows].view(len(rows), layer.groups, -1)
    assert torch.equal(found, slow)


@few_examples
@given(layer=convolutions(), seed=st.integers(0, 99))
def test_what_goes_in_times_the_weight_is_what_comes_out(layer, seed):
    x = normal(2, layer.in_channels, *LENGTHS[len(layer.stride)], seed=seed)
    outputs = layer(x)
    rows = drawn_rows(outputs, geometry_of(layer), 13, seeded(seed))

    taken = inputs_at(x, layer.weight, geometry_of(layer), rows)  # [rows, groups, inputs]

    weight = layer.weight.view(layer.groups, -1, taken.shape[2])
    made = torch.einsum("rgk,gjk->rgj", taken, weight).flatten(1) + layer.bias
    assert torch.allclose(made, outputs_at(outputs, geometry_of(layer), rows), atol=1e-12)
    # the slow twin of outputs_at: one row after the other
    positions = outputs[0, 0].numel()
    for row, values in zip(rows.tolist(), made, strict=True):
        one = outputs[row // positions].flatten(1)[:, row % positions]
        assert torch.allclose(values, one, atol=1e-12)


def test_padding_may_differ_before_and_after():
    x, weight = torch.tensor([[[1.0, 2.0, 3.0]]]), torch.ones(1, 1, 2)
    lopsided = Geometry((1,), ((0, 1),), (1,), (0,), transposed=False, groups=1)

    found = inputs_at(x, weight, lopsided, torch.arange(3))

    assert found.squeeze(1).tolist() == [[1, 2], [2, 3], [3, 0]]


@pytest.mark.parametrize("strides", ["channels last", "sliced", "expanded"])
def test_inputs_may_lie_in_memory_in_any_way(strides):
    layer = nn.Conv2d(4, 2, 2, groups=2).double()
    x = {
        "channels last": normal(2, 4, 5, 5).to(memory_format=torch.channels_last),
        "sliced": normal(2, 8, 10, 5)[:, ::2, ::2],
        "expanded": normal(2, 4, 5, 1).expand(-1, -1, -1, 5),
    }[strides]

    found = inputs_at(x, layer.weight, geometry_of(layer), torch.arange(32))

    slow = functional.unfold(x.contiguous(), 2).transpose(1, 2).flatten(0, 1)
    assert torch.equal(found.flatten(1), slow)


def test_rows_of_a_linear_layer_are_counted_over_all_axes_before_the_last():
    layer, x = nn.Linear(5, 3).double(), normal(2, 3, 4, 5)
    rows = torch.tensor([0, 7, 23])

    found = inputs_at(x, layer.weight, None, rows)

    slow = torch.stack([x[0, 0, 0], x[0, 1, 3], x[1, 2, 3]])
    assert torch.equal(found, slow[:, None])
    assert torch.allclose(layer(slow), outputs_at(layer(x), None, rows), atol=1e-12)


# --- their moments ----------------------------------------------------------------------------


def fields(of):
    return {name: getattr(of, name) for name in SecondMoments.__dataclass_fields__}


def close(one, two, tolerance=1e-9):
    """Whether all numbers of two moments agree."""
    return all(
        a == b if isinstance(a, int) else torch.allclose(a, b, rtol=0, atol=tolerance)
        for a, b in zip(fields(one).values(), fields(two).values(), strict=True)
    )


def test_moments_by_hand():
    inputs = torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]])  # two rows, one group, two inputs
    found = second_moments(inputs, torch.tensor([[10.0], [100.0]]))

    assert found.rows == 2
    assert found.x.tolist() == [[4, 6]]
    assert found.y.tolist() == [[110]]
    assert found.xx.tolist() == [[[2, 2], [2, 2]]]
    assert found.xy.tolist() == [[[90], [90]]]
    assert found.yy.tolist() == [[4050]]
    assert all(t.dtype == torch.float64 for t in (found.x, found.y, found.xx, found.xy, found.yy))
    whole = found.about_zero()
    assert (whole.x.tolist(), whole.y.tolist()) == ([[2, 3]], [[55]])
    assert whole.xx.tolist() == [[[5, 7], [7, 10]]]
    assert (whole.xy.tolist(), whole.yy.tolist()) == ([[[155], [210]]], [[5050]])


def test_groups_are_told_apart():
    inputs, goals = normal(9, 3, 2), normal(9, 12, seed=1)
    found = second_moments(inputs, goals)

    for group in range(3):
        alone = second_moments(inputs[:, group : group + 1], goals[:, 4 * group : 4 * group + 4])
        for name in ("x", "y", "xx", "xy", "yy"):
            assert torch.allclose(getattr(found, name)[group], getattr(alone, name)[0], atol=1e-12)


@few_examples
@given(first=st.integers(0, 9), second=st.integers(1, 9), seed=st.integers(0, 99))
def test_moments_of_parts_add_up(first, second, seed):
    inputs, goals = normal(first + second, 2, 3, seed=seed), normal(first + second, 4, seed=seed)
    parts = second_moments(inputs[:first], goals[:first]) + second_moments(
        inputs[first:], goals[first:]
    )

    assert close(parts, second_moments(inputs, goals))


@few_examples
@given(batches=st.lists(st.integers(0, 9), max_size=9), inputs=st.integers(1, 12))
def test_running_moments_are_those_of_all_rows_at_once(batches, inputs):
    rows, goals = normal(sum(batches), 2, inputs), normal(sum(batches), 4, seed=1)
    running = RunningMoments()
    for x, y in zip(rows.split(batches), goals.split(batches), strict=True):
        running.add_(x, y)
    found = running.total()

    assert (found is None) == (sum(batches) == 0)
    assert found is None or close(found, second_moments(rows, goals))
    assert found is running.total()  # nothing is counted twice


def test_running_moments_make_few_products_of_small_batches(monkeypatch):
    made = []
    monkeypatch.setattr(
        "flexrel.repair.moments.second_moments",
        lambda *rows: made.append(rows) or second_moments(*rows),
    )
    running = RunningMoments()
    for x in normal(105, 1, 10).split(1):
        running.add_(x, x[:, 0])

    assert running.total().rows == 105
    assert len(made) == 11


def test_centred_is_the_covariance_of_numpy():
    inputs, goals = 5 + normal(40, 2, 3), normal(40, 4, seed=1) - 7
    found = second_moments(inputs, goals).centred()

    for group in range(2):
        x, y = inputs[:, group].numpy(), goals[:, 2 * group : 2 * group + 2].numpy()
        covariance = np.cov(x.T, y.T, bias=True)
        assert np.allclose(found.xx[group], covariance[:3, :3])
        assert np.allclose(found.xy[group], covariance[:3, 3:])
        assert np.allclose(found.yy[group], covariance.diagonal()[3:])
        assert np.allclose(found.x[group], x.mean(0))
        assert np.allclose(found.y[group], y.mean(0))


@few_examples
@given(
    parts=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    mean=st.sampled_from([0.0, 1.0, 300.0, -4000.0]),
    kind=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 99),
)
def test_what_varies_little_about_a_large_mean_keeps_its_covariance(parts, mean, kind, seed):
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randint(8, (sum(parts), 1, 3), generator=generator)
    inputs = mean + steps / 1024  # held by single precision as they are
    total = functools.reduce(
        operator.add, (second_moments(x, dtype=kind) for x in inputs.split(parts))
    )

    exact = np.cov(steps[:, 0].numpy().T / 1024, bias=True)
    assert np.allclose(total.centred().xx[0], exact, rtol=0, atol=1e-4 * 2**-14)


def test_inputs_that_never_vary_have_no_variance():
    found = second_moments(torch.tensor([0.1, 2.7]).expand(90, 1, 2)) + second_moments(
        torch.tensor([0.1, 2.7]).expand(7, 1, 2)
    )

    assert not found.xx.any()
    assert found.about_zero().xx[0].diagonal().tolist() == pytest.approx([0.01, 2.7**2])


def test_without_goals_there_are_moments_of_inputs_alone():
    found = second_moments(normal(6, 2, 3))

    assert torch.equal(found.xx, second_moments(normal(6, 2, 3), normal(6, 2)).xx)
    assert found.y.numel() == found.xy.numel() == found.yy.numel() == 0


def test_no_rows_are_no_numbers_that_are_not():
    centred = second_moments(torch.zeros(0, 1, 3), torch.zeros(0, 2)).centred()

    assert centred.rows == 0
    assert all(math.isfinite(t.abs().sum()) for t in (centred.x, centred.xx, centred.xy))


# --- which sample a row is of -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "samples", "axis"),
    [
        ((4, 5), 4, 0),
        ((4, 3, 5), 4, 0),  # tokens of each sample
        ((3, 4, 5), 4, 1),  # tokens first
        ((12, 5), 4, None),  # samples and tokens in one axis
        ((2, 3, 4, 5), 4, 2),
        ((2, 4, 3, 5), 4, 1),
        ((4, 4, 5), 4, 0),
        ((1, 5), 1, 0),
    ],
)
def test_rows_of_a_linear_layer_are_of_their_samples(shape, samples, axis):
    rows = torch.arange(math.prod(shape[:-1]))

    found = samples_at(torch.zeros(shape), None, rows, samples)

    if axis is None:
        expected = torch.arange(samples).repeat_interleave(len(rows) // samples)
    else:
        view = [1] * (len(shape) - 1)
        view[axis] = samples
        expected = torch.arange(samples).view(view).expand(shape[:-1]).flatten()
    assert torch.equal(found, expected)


def test_rows_of_a_convolution_are_of_their_samples():
    rows = torch.tensor([0, 5, 6, 11, 12, 17])

    found = samples_at(torch.zeros(3, 7, 2, 3), geometry((1, 1), (0, 0), (1, 1), 1), rows, 3)

    assert found.tolist() == [0, 0, 1, 1, 2, 2]
