"""Names of granularities are read, and a weight is the matrix that its layer multiplies by."""

import pytest
import torch
from hypothesis import given
from torch import nn

import flexrel
from flexrel import (
    UsageError,
)
from flexrel.core.granularity import Pattern
from layers import drawn, layers, layout_of
from reference import patterns as slow

# --- names --------------------------------------------------------------------------------------


def test_names_are_read():
    assert Pattern.of("2:4") == Pattern("n:m", (2, 4))
    assert Pattern.of("1:16") == Pattern("n:m", (1, 16))
    assert Pattern.of("block:4x4") == Pattern("block", (4, 4))
    assert Pattern.of("block:1x16") == Pattern("block", (1, 16))
    assert [Pattern.of(name).unit for name in ("element", "channel", "head", "depth")] == [
        "element",
        "channel",
        "head",
        "depth",
    ]
    zeros = [Pattern.of(name).zeros for name in ("element", "2:4", "block:4x4", "channel", "depth")]
    assert zeros == [True, True, True, False, False]


REFUSED = [
    *("0:4", "4:4", "5:4", "2:0", "2:", ":4", "2:4:8", "2x4", "-2:4", "02:4", "2:4 ", "2.0:4"),
    *("block:0x4", "block:4x0", "block:4", "block:4:4", "block:4x4x4", "block:", "block", "4x4"),
    *("", "Element", "group", "filter", "2:9999999999", "٢:٤"),
]


@pytest.mark.parametrize("text", REFUSED)
def test_other_names_are_refused_with_those_that_there_are(text):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))

    with pytest.raises(
        UsageError, match="element, channel, head, depth, N:M with 0 < N < M, block:ROWS"
    ):
        Pattern.of(text)
    with pytest.raises(UsageError, match="is not known"):
        flexrel.prune(model, calibration=[torch.ones(2, 8)], granularity=text)


# --- layers of all kinds ------------------------------------------------------------------------


def test_layers_see_what_the_matrix_says():
    """A row makes one output channel, a column reads one input channel of each group."""
    for groups, kind in ((1, nn.Conv2d), (2, nn.Conv2d), (2, nn.ConvTranspose2d)):
        layer = kind(6, 4, 2, groups=groups, bias=False)
        layout = layout_of(layer)
        assert (layout.outputs, layout.inputs) == (4, 6 // groups)
        for row in range(4):
            matrix = torch.zeros(4, 4, 6 // groups)
            matrix[row] = 1
            layer.weight.data = layout.weight(matrix)
            seen = layer(torch.ones(1, 6, 3, 3))[0].flatten(1).any(1)
            assert seen.tolist() == [channel == row for channel in range(4)]
        for column in range(6 // groups):
            matrix = torch.zeros(4, 4, 6 // groups)
            matrix[..., column] = 1
            layer.weight.data = layout.weight(matrix)
            for channel in range(6):
                image = torch.zeros(1, 6, 3, 3)
                image[0, channel] = 1
                assert bool(layer(image).any()) == (channel % (6 // groups) == column)


@drawn
@given(layer=layers)
def test_a_matrix_is_the_weight_in_another_order(layer):
    weight = torch.arange(float(layer.weight.numel())).view(layer.weight.shape)
    layout = layout_of(layer)

    matrix = layout.matrix(weight)

    assert torch.equal(layout.weight(matrix), weight)
    for index, output, one, where in slow.places(layer):
        assert matrix[output, where, one] == weight[index]
