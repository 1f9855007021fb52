"""What the layers of a cut network should give: the goals that they are fitted to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flexrel.core.graph import weight_of
from flexrel.repair.layerwise import HELD_OUT, LayerStop
from flexrel.repair.moments import (
    RunningMoments,
    SecondMoments,
    drawn_rows,
    inputs_at,
    outputs_at,
    samples_at,
)
from flexrel.repair.uses import LayerUse

_ENTRIES = 2e7  # numbers of the inputs of a layer's rows, at most
_INPUTS = 750  # with more of these a layer has in proportion more rows
_SAME = 1e-6  # of the size of the outputs: nothing to repair
_FLAT = 1e-3  # of the largest slope: what is added can't be made up for

Kept = Mapping[tuple[str, int], Tensor]  # tensor and axis -> which positions the plan leaves


@dataclass(frozen=True, slots=True, eq=False)
class LayerData:
    """What a layer takes in and should give, over rows of all batches."""

    fit: SecondMoments
    check: SecondMoments  # of the samples that are held out
    same: bool  # whether the layer gives what it should already


def gathered(
    use: LayerUse,
    stops: Sequence[tuple[LayerStop, LayerStop]],
    parts: Sequence[int],
    kept: Kept,
    most: int,
    generator: torch.Generator,
) -> LayerData | None:
    """Return the moments of rows that are drawn of a layer; None where none can be held out.

    Args:
        use: of the layer.
        stops: of the dense and of the pruned network, for each batch.
        parts: into how many each batch falls, of which every fourth is held out.
        kept: which outputs of the dense layer are left.
        most: rows, for up to 750 inputs; in proportion more for more.
        generator: that rows are drawn by.
    """
    call = stops[0][1].call
    groups, inputs = call.geometry.groups if call.geometry else 1, call.weight[0].numel()
    most = max(min(most, int(_ENTRIES / (groups * inputs))), most * inputs // _INPUTS)
    fit, check = RunningMoments(), RunningMoments()
    apart = size = 0.0
    seen = 0
    for count, (whole, left) in zip(parts, stops, strict=True):
        outputs, geometry = left.outputs, left.call.geometry
        share = max(most * count // sum(parts), 1)
        rows = drawn_rows(outputs, geometry, share, generator)
        goals = _goals(whole, left, rows, _outputs_left(use, kept, len(whole.call.weight)))
        now = outputs_at(outputs, geometry, rows)
        apart += float((goals - now).square().sum())
        size += float((now - now.mean(0)).square().sum())
        held = (samples_at(outputs, geometry, rows, count) + seen) % HELD_OUT == HELD_OUT - 1
        taken = inputs_at(left.call.inputs, left.call.weight, geometry, rows)
        for part, to in ((~held, fit), (held, check)):
            to.add_(taken[part].float(), goals[part].float())
        seen += count
    fitted, judged = fit.total(), check.total()
    if fitted is None or judged is None:
        return None
    return LayerData(fitted, judged, apart <= _SAME**2 * size)


def _outputs_left(use: LayerUse, kept: Kept, count: int) -> Tensor:
    """Return which of the `count` outputs of a dense layer are left."""
    axis = int(use.transposed)
    for name in (weight_of(use.layer), use.layer):  # the latter of a packed weight
        if (name, axis) in kept:
            here = kept[name, axis]
            return here[use.rows[0] : use.rows[1]] if use.rows else here
    return torch.ones(count, dtype=torch.bool)


def _goals(whole: LayerStop, left: LayerStop, rows: Tensor, kept: Tensor) -> Tensor:
    """Return what the layer's outputs should be in the rows, so that the sum behind is right."""
    geometry = left.call.geometry
    goals = outputs_at(whole.outputs, geometry, rows)[:, kept]
    if left.other is None or whole.other is None:
        return goals
    missing = outputs_at(whole.other, geometry, rows)[:, kept]
    missing = missing - outputs_at(left.other, geometry, rows)
    if left.slope is not None:
        slope = outputs_at(left.slope, geometry, torch.zeros(1, dtype=torch.int64))
        flat = slope.abs() <= _FLAT * slope.abs().max()
        missing = (missing / slope.masked_fill(flat, 1.0)).masked_fill(flat, 0.0)
    return goals + missing
