"""Which widths are measured, what calls of layers there are, and which multiples are fast."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from flexrel.core.latency_model import LayerKind, LayerWork
from flexrel.pruning.width_grid import (
    MULTIPLES,
    LayerWidths,
    fast_multiples,
    grid_points,
    half_points,
    layer_widths,
    near,
    tables,
)
from flexrel.structure import analyse
from flexrel.tracing import layer_works
from networks import batch

PLAIN = LayerKind(kernel=(3, 3), stride=(1, 1), size=(8, 8))


def widths(outputs, inputs, *, shrinks=(True, True), kind=PLAIN, turned=False):
    return LayerWidths(LayerWork("w", kind, turned), outputs, inputs, shrinks)


def test_calls_of_layers_are_told_with_all_that_their_time_depends_on():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
            self.depthwise = nn.Conv2d(8, 8, 3, groups=8, dilation=2)
            self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
            self.mix, self.head = nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x):
            x = self.up(self.depthwise(self.conv(x))).flatten(2).transpose(1, 2)
            return self.head(self.mix(self.mix(x)).mean(1))

    works = layer_works(Net(), batch(torch.rand(2, 3, 16, 16)))

    none = ((0, 0), (0, 0))
    assert works == (
        LayerWork(
            "conv.weight",
            LayerKind((3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1), (16, 16), 1, False, (0, 0)),
        ),
        LayerWork(
            "depthwise.weight", LayerKind((3, 3), (1, 1), none, (2, 2), (8, 8), 8, False, (0, 0))
        ),
        LayerWork(
            "up.weight",
            LayerKind((2, 2), (2, 2), none, (1, 1), (4, 4), 1, True, (0, 0)),
            turned=True,
        ),
        LayerWork("mix.weight", LayerKind(size=(64,))),
        LayerWork("mix.weight", LayerKind(size=(64,))),
        LayerWork("head.weight", LayerKind()),
    )


def test_what_units_make_and_read_shrinks_and_nothing_else():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 3), nn.Flatten(), nn.Linear(20, 2))
    example = batch(torch.rand(2, 3, 6, 6))
    graph = analyse(model, example, "channel")

    found = layer_widths(layer_works(model, example), graph)

    assert [(one.outputs, one.inputs, one.shrinks) for one in found] == [
        (8, 3, (True, False)),
        (5, 8, (True, True)),
        (2, 20, (False, True)),
    ]


@given(width=st.integers(1, 500), multiple=st.sampled_from(MULTIPLES))
def test_a_width_that_is_measured_is_a_multiple_of_no_more_than_was_asked_for(width, multiple):
    found = near(width, multiple)

    assert found % multiple == 0
    assert found % (2 * multiple) != 0
    assert abs(found - width) <= multiple


@given(width=st.integers(1, 300), multiple=st.sampled_from(MULTIPLES))
def test_the_grid_rises_to_the_whole_width(width, multiple):
    outputs, inputs = widths(width, 3, shrinks=(True, False)).grid(multiple)

    assert list(outputs) == sorted(set(outputs))
    assert outputs[-1] == width
    assert inputs == (3,)


def test_a_grouped_convolution_is_measured_with_whole_groups():
    kind = LayerKind(kernel=(3,), stride=(1,), size=(8,), groups=4)
    one = widths(32, 6, shrinks=(True, False), kind=kind)

    points = list(grid_points([one], 1))

    assert {(point.outputs / 8, point.groups) for point in points} == {(1, 1), (3, 3), (4, 4)}
    assert {point.inputs for point in points} == {6}


def times_in_steps(points, step):
    """Let widths be rounded up to a step: what a runtime takes that pads to its vectors."""

    def padded(width):
        return -(-width // step) * step

    return {p: padded(p.outputs) * padded(p.inputs) * 1e-3 for p in points}


@pytest.mark.parametrize("step", [1, 8, 16])
def test_the_fastest_multiple_is_the_step_of_the_runtime(step):
    layers = [widths(64, 64), widths(128, 64), widths(96, 128)]

    found = fast_multiples(layers, times_in_steps(half_points(layers), step))

    assert found[0] == step
    assert found == tuple(multiple for multiple in (16, 8, 4, 1) if multiple <= step)


def test_tables_have_the_times_of_their_own_layer():
    layers = [widths(64, 32), widths(10, 64, shrinks=(False, True))]
    found = tables(layers, times_in_steps(grid_points(layers, 8), 8), 8)

    assert [work for work, _ in found] == [one.work for one in layers]
    assert found[0][1].at(40, 24) == pytest.approx(40 * 24 * 1e-3)
    assert found[1][1].at(10, 64) == pytest.approx(16 * 64 * 1e-3)
