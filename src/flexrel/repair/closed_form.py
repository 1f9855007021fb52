"""Repair without training: what is left of each layer is fitted to what the dense layer gave.

Layer by layer in the order in which they run, each on the inputs that the repaired layers before it
really give it. Where a layer's output is added to another tensor, as at the end of a residual
block, the goal is the dense network's sum: the layer makes up for what earlier cuts did to the
other side. Labels are not needed. One pass of both networks over the calibration data.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate, islice
from operator import attrgetter

import torch
from torch import Tensor, nn

from flexrel.core.batches import (
    EXAMPLE_SAMPLES,
    Batch,
    RawBatch,
    device_of,
    first_samples,
    read_batches,
    samples_in,
)
from flexrel.core.deadline import OutOfTimeError
from flexrel.core.forecast import forecast
from flexrel.core.graph import tensor_of
from flexrel.core.measurement import Progress, silent
from flexrel.core.plan import Plan
from flexrel.core.running import undisturbed
from flexrel.repair.goals import LayerData, gathered
from flexrel.repair.gptq import round_solution
from flexrel.repair.layerwise import LayerStop, LayerwiseForward, plain_modes, stoppable
from flexrel.repair.least_squares import LayerSolution, solve
from flexrel.repair.uses import LayerUse, uses_of
from flexrel.structure import gone_by, kept_positions, named_tensors
from flexrel.tracing import AffineCall

ROWS = 12_000  # of each layer that are fitted
_BYTES = 3e9  # of activations that wait; where they are large, fewer samples are used
_LIVE = 5  # times a layer's inputs and outputs: what waits with them, of both networks
LATE = "the time was up"  # why a layer is not repaired
PASSED = "it, or one before it, does not run on every batch"  # likewise
_EXAMPLES = 16  # that tell which layers run on rows that the network picks


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
    regrow: bool = False,
) -> tuple[list[LayerRepair], dict[str, str]]:
    """Refit the weights of the pruned network in place, layer by layer.

    Args:
        pruned: what the plan made of `dense`.
        dense: the network as it came; not changed.
        plan: says which outputs are left; None: all are.
        batches: calibration data, without labels.
        progress: told after each layer; may end it there.
        samples: no more than so many are used.
        rows: likewise, of each layer.
        seed: of the rows that are drawn.
        largest: round the weights too, to whole numbers up to it times a scale for each output.
        regrow: only zeros of the plan stay zero, and those of before are fitted as all weights.

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
        networks = stoppable(dense), stoppable(pruned)
        uses, refused = _common(*networks, *_examples(batches, dense))
        by_name = {use.name: use for use in uses}
        sizes = [*accumulate(map(attrgetter("bytes"), reversed(uses)), max)][::-1]  # still to come
        zeros = plan is not None and plan.graph.pattern.zeros
        held = gone_by(plan) if regrow and plan is not None and zeros else {}
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
                drawn = seed + len(passes)
                whole, left = (LayerwiseForward(one, batch, by_name, drawn) for one in networks)
                stack.callback(whole.close)
                stack.callback(left.close)
                passes.append((whole, left))
            stops = _stops(passes, use.name, changed=changed)
            if stops is None:
                refused |= {later.name: PASSED for later in uses[done:]}
                break
            parts = [whole.parts for whole, _ in passes]
            here = stops[0][1].call
            inputs = here.weight[0].numel()
            work = inputs**2 * (2.0 * rows + inputs)
            forecast(progress, use.layer, inputs, work, "--recover none goes without")
            data = gathered(use, stops, parts, kept, rows, generator)
            changed = False
            if data is not None:
                near = next((one.ridge for one in reversed(made) if one.ridge), None)
                stay = _held(use, here, held) if regrow else here.weight.detach() == 0
                found = _refit_(pruned, use, here, data, stay, largest, near)
                changed = found is not None and found.changed
                made += [found] if found else []
            try:
                progress("rounding" if largest else "repairing", done + 1, len(uses))
            except OutOfTimeError:
                refused |= {later.name: LATE for later in uses[done + 1 :]}
                break
        return made, refused


def _stops(
    passes: Sequence[tuple[LayerwiseForward, LayerwiseForward]], name: str, *, changed: bool
) -> list[tuple[LayerStop, LayerStop]] | None:
    """Let all passes go on to a layer; None if one comes to its end without."""
    stops = []
    for whole, left in passes:
        there, here = whole.advance(name), left.advance(name, changed=changed)
        if there is None or here is None:
            return None
        stops.append((there, here))
    return stops


def _examples(batches: Sequence[RawBatch], model: nn.Module) -> list[Batch]:
    """Return some samples each of one shape, up to 16 times."""
    examples = (
        samples_in(batch, slice(start, start + EXAMPLE_SAMPLES))
        for batch in read_batches(batches, model)
        for start in range(0, 1 if batch.whole else max(batch.samples - 1, 1), EXAMPLE_SAMPLES)
    )
    first, *others = islice(examples, _EXAMPLES)
    return [first, *(other for other in others if other.shapes == first.shapes)]


def _common(
    dense: nn.Module, pruned: nn.Module, example: Batch, *others: Batch
) -> tuple[list[LayerUse], dict[str, str]]:
    """Return the layers that both networks run, in the same order; and the others, with reasons."""
    whole, refused = uses_of(dense, example, others)
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


def _refit_(
    pruned: nn.Module,
    use: LayerUse,
    call: AffineCall,
    rows: LayerData,
    stay: Tensor,
    largest: int | None,
    near: float | None,
) -> LayerRepair | None:
    """Put the weights into a layer that suit its rows best; None if there is nothing to repair.

    Args:
        pruned: the network.
        use: of the layer.
        call: that has its weight and bias.
        rows: that tell what it should give.
        stay: which weights stay zero, of the call's weight's shape.
        largest: as for `reconstruct_`; no layer is rounded whose scales the file would have by
            inputs.
        near: the ridge of the layer before.
    """
    largest = None if use.transposed else largest  # the file scales by axis 0
    if rows.same and largest is None:
        return None
    found = _solution(use, call, rows, stay, largest, near)
    changed = largest is not None or found.after < found.before
    if changed:
        _write_(pruned, use, call, found)
    errors = found.before / found.variance, found.after / found.variance
    return LayerRepair(use.name, rows.fit.rows, rows.fit.x.shape[1], found.ridge, *errors, changed)


def _held(use: LayerUse, call: AffineCall, held: Mapping[str, Tensor]) -> Tensor:
    """Return which weights of a use a plan sets to zero, of the call's weight's shape."""
    gone = held.get(tensor_of(use.layer, held))
    if gone is None:
        return torch.zeros_like(call.weight, dtype=torch.bool)
    part = gone if use.rows is None else gone[slice(*use.rows)]
    return (part.mT if use.transposed else part).to(call.weight.device)


def _solution(
    use: LayerUse,
    call: AffineCall,
    rows: LayerData,
    stay: Tensor,
    largest: int | None,
    near: float | None,
) -> LayerSolution:
    """Return the weights that suit the layer's rows best, rounded if `largest` is given."""
    groups, inputs = rows.fit.x.shape
    weight = call.weight.detach().reshape(groups, -1, inputs)
    support = ~stay.reshape(weight.shape) if bool(stay.any()) else None
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
