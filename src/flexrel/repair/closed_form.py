"""Repair without training: what is left of each layer is fitted to what the dense layer gave.

Layer by layer in the order in which they run, each on the inputs that the repaired layers before it
really give it. Where a layer's output is added to another tensor, as at the end of a residual
block, the goal is the dense network's sum: the layer makes up for what earlier cuts did to the
other side. Labels are not needed. One pass of both networks over the calibration data.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate
from operator import attrgetter

import torch
from torch import Tensor, nn

from flexrel.core.batches import Batch, RawBatch, device_of, first_samples, read_batches
from flexrel.core.graph import weight_of
from flexrel.core.measurement import Progress, silent
from flexrel.core.plan import Plan
from flexrel.core.running import undisturbed
from flexrel.repair.gptq import round_solution
from flexrel.repair.layerwise import (
    HELD_OUT,
    LayerStop,
    LayerwiseForward,
    plain_modes,
    stoppable,
)
from flexrel.repair.least_squares import LayerSolution, solve
from flexrel.repair.moments import (
    RunningMoments,
    SecondMoments,
    drawn_rows,
    inputs_at,
    outputs_at,
    samples_at,
)
from flexrel.repair.uses import LayerUse, uses_of
from flexrel.structure import kept_positions, named_tensors
from flexrel.tracing import AffineCall

ROWS = 12_000  # of each layer that are fitted, but
_ENTRIES = 2e7  # fewer where that would be more numbers, and
_INPUTS = 750  # in proportion more where there are more of these
_BYTES = 3e9  # of activations that wait; where they are large, fewer samples are used
_LIVE = 5  # times a layer's inputs and outputs: what waits with them, of both networks
_SAME = 1e-6  # of the size of the outputs: nothing to repair
_FLAT = 1e-3  # of the largest slope: what is added can't be made up for

Kept = Mapping[tuple[str, int], Tensor]  # tensor and axis -> which positions the plan leaves


@dataclass(frozen=True, slots=True)
class LayerRepair:
    """What became of one layer."""

    layer: str
    rows: int  # that it was fitted to
    inputs: int  # of each output: as many rows are wanted at least
    ridge: float | None  # None: the weights stayed
    before: float  # squared error over variance on held-out rows, of up to 64 outputs
    after: float
    changed: bool


def reconstruct_(
    pruned: nn.Module,
    dense: nn.Module,
    plan: Plan | None,
    batches: Sequence[RawBatch],
    progress: Progress = silent,
    *,
    samples: int = 1024,
    rows: int = ROWS,
    seed: int = 0,
    largest: int | None = None,
) -> tuple[list[LayerRepair], dict[str, str]]:
    """Refit the weights of the pruned network in place, layer by layer.

    Args:
        pruned: what the plan made of `dense`.
        dense: the network as it came; not changed.
        plan: says which outputs are left; None: all are.
        batches: calibration data, without labels.
        progress: told after each layer.
        samples: no more than so many are used.
        rows: likewise, of each layer.
        seed: of the rows that are drawn.
        largest: round the weights too, to whole numbers up to it times a scale for each output.

    Returns:
        What became of each layer, in order; and the layers that can't be repaired, with reasons.

    Raises:
        ModelError: a network does not run on a batch.
    """
    with ExitStack() as stack:
        for network in (pruned, dense):
            stack.enter_context(undisturbed(network))
        inference = torch.is_inference_mode_enabled()
        stack.enter_context(plain_modes(device_of(dense), inference=inference))
        first = next(read_batches(batches[:1], dense))
        networks = stoppable(dense), stoppable(pruned)
        uses, refused = _common(*networks, first_samples(first))
        by_name = {use.name: use for use in uses}
        sizes = [*accumulate(map(attrgetter("bytes"), reversed(uses)), max)][::-1]  # still to come
        zeros = plan is not None and plan.graph.pattern.zeros
        kept = {} if plan is None or zeros else kept_positions(named_tensors(dense), plan)
        generator = torch.Generator().manual_seed(seed)
        waiting = _limited(batches, dense, samples)
        passes: list[tuple[LayerwiseForward, LayerwiseForward]] = []
        made: list[LayerRepair] = []
        changed = False
        for done, (use, size) in enumerate(zip(uses, sizes, strict=True)):
            most = _BYTES / (_LIVE * max(size, 1))
            while sum(whole.samples for whole, _ in passes) < most:
                batch = next(waiting, None)
                if batch is None:
                    break
                whole, left = (LayerwiseForward(one, batch, by_name) for one in networks)
                stack.callback(whole.close)
                stack.callback(left.close)
                passes.append((whole, left))
            stops = [
                (whole.advance(use.name), left.advance(use.name, changed=changed))
                for whole, left in passes
            ]
            parts = [whole.parts for whole, _ in passes]
            gathered = _gathered(use, stops, parts, kept, rows, generator)
            changed = False
            if gathered is not None:
                near = next((one.ridge for one in reversed(made) if one.ridge), None)
                found = _refit_(pruned, use, stops[0][1].call, gathered, largest, near)
                changed = found is not None and found.changed
                made += [found] if found else []
            progress("repairing", done + 1, len(uses))
        return made, refused


def _common(
    dense: nn.Module, pruned: nn.Module, example: Batch
) -> tuple[list[LayerUse], dict[str, str]]:
    """Return the layers that both networks run, in the same order; and the others, with reasons."""
    whole, refused = uses_of(dense, example)
    left, _ = uses_of(pruned, example)
    added = {use.name: use.added for use in left}
    both = [use for use in whole if added.get(use.name) is use.added]
    names = [use.name for use in both]
    if [use.name for use in left if use.name in names] != names:
        return [], dict.fromkeys(names, "the two networks run in different orders")
    return both, refused


def _limited(batches: Sequence[RawBatch], model: nn.Module, samples: int) -> Iterator[Batch]:
    """Yield the batches until there were so many samples, the last cut to fit."""
    for batch in read_batches(batches, model):
        if samples <= 0:
            return
        yield batch if batch.samples <= samples else first_samples(batch, samples)
        samples -= batch.samples


@dataclass(frozen=True, slots=True, eq=False)
class _Gathered:
    """What a layer takes in and should give, over rows of all batches."""

    fit: SecondMoments
    check: SecondMoments  # of the samples that are held out
    same: bool  # whether the layer gives what it should already


def _gathered(
    use: LayerUse,
    stops: Sequence[tuple[LayerStop, LayerStop]],
    parts: Sequence[int],
    kept: Kept,
    most: int,
    generator: torch.Generator,
) -> _Gathered | None:
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
    return _Gathered(fitted, judged, apart <= _SAME**2 * size)


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


def _refit_(
    pruned: nn.Module,
    use: LayerUse,
    call: AffineCall,
    rows: _Gathered,
    largest: int | None,
    near: float | None,
) -> LayerRepair | None:
    """Put the weights into a layer that suit its rows best; None if there is nothing to repair.

    Weights that are zero stay so, whoever made them zero.

    Args:
        pruned: the network.
        use: of the layer.
        call: that has its weight and bias.
        rows: that tell what it should give.
        largest: as for `reconstruct_`; no layer is rounded whose scales the file would have by
            inputs.
        near: the ridge of the layer before.
    """
    largest = None if use.transposed else largest  # the file scales by axis 0
    if rows.same and largest is None:
        return None
    found = _solution(use, call, rows, largest, near)
    changed = largest is not None or found.after < found.before
    if changed:
        _write_(pruned, use, call, found)
    errors = found.before / found.variance, found.after / found.variance
    return LayerRepair(use.name, rows.fit.rows, rows.fit.x.shape[1], found.ridge, *errors, changed)


def _solution(
    use: LayerUse, call: AffineCall, rows: _Gathered, largest: int | None, near: float | None
) -> LayerSolution:
    """Return the weights that suit the layer's rows best, rounded if `largest` is given."""
    groups, inputs = rows.fit.x.shape
    weight = call.weight.detach().reshape(groups, -1, inputs)
    support = None if bool(weight.all()) else weight != 0
    bias = weight.new_zeros(len(call.weight)) if call.bias is None else call.bias.detach()
    free = use.bias or use.mean is not None
    old = weight, bias.reshape(groups, -1)
    found = solve(rows.fit, rows.check, *old, free_bias=free, support=support, near=near)
    if largest is None:
        return found
    every = rows.fit + rows.check
    kind = call.weight.dtype
    return round_solution(found, every, largest, kind, free_bias=free, support=support)


def _write_(pruned: nn.Module, use: LayerUse, call: AffineCall, found: LayerSolution) -> None:
    """Put a solution into the layer; without a bias, into the mean of the norm behind it."""
    call.weight.copy_(found.weight.reshape(call.weight.shape))
    bias = found.bias.flatten()
    if use.bias and call.bias is not None:
        call.bias.add_(bias - call.bias)
    elif use.mean is not None:
        pruned.get_buffer(use.mean).sub_(bias)
