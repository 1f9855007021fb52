"""Repair without training: what is left of each layer is fitted to what the dense layer gave.

Layer by layer in the order in which they run, each on the inputs that the repaired layers before it
really give it. Where a layer's output is added to another tensor, as at the end of a residual
block, the goal is the dense network's sum: the layer makes up for what earlier cuts did to the
other side. Labels are not needed. One pass of both networks over the calibration data.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flexrel.core.batches import Batch, RawBatch, device_of, fewer, first_samples, read_batches
from flexrel.core.graph import weight_of
from flexrel.core.measurement import Progress, silent
from flexrel.core.plan import Plan
from flexrel.core.running import undisturbed
from flexrel.repair.layerwise import LayerStop, LayerwiseForward
from flexrel.repair.least_squares import solve
from flexrel.repair.moments import RunningMoments, drawn_rows, inputs_at, outputs_at, samples_at
from flexrel.repair.rounding import round_solution
from flexrel.repair.uses import Key, Use, uses_of
from flexrel.structure import kept_positions, named_tensors

_ROWS = 30_000  # of each layer that are fitted, but
_ENTRIES = 2e7  # fewer where that would be more numbers, though
_ROWS_AN_INPUT = 16  # at least
HELD_OUT = 4  # of so many samples, one chooses the ridge and fits nothing
_EXAMPLE = 2  # samples
_BYTES = 3e9  # of activations that wait; where they are large, fewer samples are used
_LIVE = 5  # times a layer's inputs and outputs: what waits with them, of both networks
_JOINED = 2**22  # entries that pass at once on an accelerator: torch prepares it for each thread
_SAME = 1e-6  # of the size of the outputs: nothing to repair
_FLAT = 1e-3  # of the largest slope: what is added can't be made up for


@dataclass(frozen=True, slots=True)
class LayerRepair:
    """What became of one layer."""

    layer: str
    rows: int  # that it was fitted to
    inputs: int  # of each output: as many rows are wanted at least
    ridge: float | None  # None: the weights stayed
    before: float  # squared error of the outputs over their variance, on held-out rows
    after: float

    @property
    def changed(self) -> bool:
        """Whether anything of it was changed."""
        return self.after < self.before


def reconstruct_(
    pruned: nn.Module,
    dense: nn.Module,
    plan: Plan | None,
    batches: Sequence[RawBatch],
    progress: Progress = silent,
    *,
    samples: int = 1024,
    seed: int = 0,
    largest: int | None = None,
) -> tuple[list[LayerRepair], dict[str, str]]:
    """Refit the weights of the pruned network in place, layer by layer.

    Args:
        pruned: what the plan made of `dense`.
        dense: the network as it came; not changed.
        plan: says which outputs are left, and which weights must stay zero; None: all are left,
            and the zeros there are stay.
        batches: calibration data, without labels.
        progress: told after each layer.
        samples: no more than so many are used.
        seed: of the rows that are drawn.
        largest: round the weights too, to whole numbers up to it times a scale for each output.

    Returns:
        What became of each layer, in order; and the layers that can't be repaired, with reasons.
    """
    threads = torch.get_num_threads()
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, threads)  # passes change what new threads have
        for network in (pruned, dense):
            stack.enter_context(undisturbed(network))
        stack.enter_context(torch.no_grad())
        first = next(read_batches(batches[:1], dense))
        uses, refused = _common(pruned, dense, first_samples(first, _EXAMPLE))
        if not uses:
            return [], refused
        keys = {use.key: use for use in uses}
        pairs: list[tuple[LayerwiseForward, LayerwiseForward]] = []
        waiting = _limited(batches, dense, samples)
        if device_of(dense).type != "cpu":
            waiting = fewer(waiting, _JOINED)
        generator = torch.Generator().manual_seed(seed)
        repair = _Repair(dense, pruned, plan, generator, largest)
        made: list[LayerRepair] = []
        for done, (use, most) in enumerate(zip(uses, _affordable(uses), strict=True)):
            while sum(one.samples for one, _ in pairs) < most:
                batch = next(waiting, None)
                if batch is None:
                    break
                pairs.append(
                    (LayerwiseForward(dense, batch, keys), LayerwiseForward(pruned, batch, keys))
                )
                stack.callback(pairs[-1][0].close)
                stack.callback(pairs[-1][1].close)
            stops = [_both(pair, use.key, repair.changed) for pair in pairs]
            torch.set_num_threads(threads)
            found = repair.layer_(use, stops, [one.samples for one, _ in pairs])
            made += [found] if found else []
            progress("repairing", done + 1, len(uses))
        return made, refused


def _affordable(uses: Sequence[Use]) -> list[float]:
    """Return how many samples may wait at each layer, with all that they still go through."""
    largest, found = 1, []
    for use in reversed(uses):
        largest = max(largest, use.bytes)
        found.append(_BYTES / (_LIVE * largest))
    return found[::-1]


def _both(
    pair: tuple[LayerwiseForward, LayerwiseForward],
    key: Key,
    changed: bool,  # noqa: FBT001
) -> tuple[LayerStop, LayerStop]:
    """Let a batch go on to the layer, through both networks at once."""
    whole, left = pair
    whole.start()
    left.start(changed=changed)
    return _at(whole, key), _at(left, key)


def _at(passing: LayerwiseForward, key: Key) -> LayerStop:
    while (stop := passing.stopped()) is not None:
        if stop.key == key:
            return stop
        passing.start()  # it joins late: what it comes through was repaired before
    raise RuntimeError(f"{key} did not run again")


def _common(
    pruned: nn.Module, dense: nn.Module, example: Batch
) -> tuple[list[Use], dict[str, str]]:
    """Return the layers that both networks run, in the same order."""
    whole, refused = uses_of(dense, example)
    left, _ = uses_of(pruned, example)
    there = {use.key: use for use in left}
    both = [use for use in whole if use.key in there and there[use.key].added == use.added]
    order = [use.key for use in left if use.key in {u.key for u in both}]
    if order != [use.key for use in both]:
        return [], {str(use.key): "the two networks run in different orders" for use in both}
    return both, refused


def _limited(batches: Sequence[RawBatch], model: nn.Module, samples: int) -> Iterator[Batch]:
    for batch in read_batches(batches, model):
        if samples <= 0:
            return
        yield batch if batch.samples <= samples else first_samples(batch, samples)
        samples -= batch.samples


@dataclass(slots=True)
class _Repair:
    """Repairs one layer after the other."""

    dense: nn.Module
    pruned: nn.Module
    plan: Plan | None
    generator: torch.Generator
    largest: int | None
    changed: bool = False  # whether the last layer was
    _kept: dict[tuple[str, int], Tensor] | None = None

    def layer_(
        self, use: Use, stops: Sequence[tuple[LayerStop, LayerStop]], samples: Sequence[int]
    ) -> LayerRepair | None:
        """Fit the layer to its goals; None if there is nothing to repair.

        Args:
            use: of the layer.
            stops: of the dense and of the pruned network, for each batch.
            samples: how many each batch has.
        """
        call = stops[0][1].call
        geometry, weight = call.geometry, call.weight
        groups = geometry.groups if geometry else 1
        inputs = weight[0].numel()
        most = max(min(_ROWS, int(_ENTRIES / (groups * inputs))), _ROWS_AN_INPUT * inputs)
        fitted, judged = RunningMoments(), RunningMoments()
        apart = size = 0.0
        seen = 0
        self.changed = False
        for count, (whole, left) in zip(samples, stops, strict=True):
            share = max(most * count // sum(samples), 1)
            rows = drawn_rows(left.outputs, geometry, share, self.generator)
            goals = self._goals(use, whole, left, rows)
            now = outputs_at(left.outputs, geometry, rows)
            apart += float((goals - now).square().sum())
            size += float((now - now.mean(0)).square().sum())
            numbers = samples_at(left.outputs, geometry, rows, count) + seen
            held = numbers % HELD_OUT == HELD_OUT - 1
            taken = inputs_at(left.call.inputs, weight, geometry, rows)
            for part, to in ((~held, fitted), (held, judged)):
                to.add_(taken[part].float(), goals[part].float())
            seen += count
        fit, check = fitted.total(), judged.total()
        if fit is None or check is None:
            return None
        rounds = self.largest is not None and not use.transposed  # the file scales by axis 0
        if apart <= _SAME**2 * size and not rounds:
            return None
        shape = (groups, -1, inputs)
        bias = torch.zeros(len(weight), device=weight.device) if call.bias is None else call.bias
        mask = self._support(use, weight)
        support = None if mask is None else mask.reshape(shape)
        old = weight.detach().reshape(shape), bias.detach().reshape(groups, -1)
        free_bias = use.bias or use.mean is not None
        found = solve(fit, check, *old, free_bias=free_bias, support=support)
        if rounds and self.largest is not None:
            found = round_solution(
                found, fit + check, self.largest, free_bias=free_bias, support=support
            )
        self.changed = rounds or found.after < found.before
        if self.changed:
            weight.copy_(found.weight.reshape(weight.shape))
            shift = found.bias.flatten() - bias
            if use.bias:
                bias.add_(shift)
            elif use.mean is not None:
                self.pruned.get_buffer(use.mean).sub_(shift)
        variance = float(check.centred().yy.sum())
        return LayerRepair(
            str(use.key),
            fit.rows,
            inputs,
            found.ridge,
            found.before / max(variance, 1e-30),
            found.after / max(variance, 1e-30),
        )

    def _goals(self, use: Use, whole: LayerStop, left: LayerStop, rows: Tensor) -> Tensor:
        """Return what the layer's outputs should be, in the rows."""
        geometry = left.call.geometry
        kept = self._outputs(use, len(whole.call.weight))
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

    def _outputs(self, use: Use, count: int) -> Tensor:
        """Return which of the dense layer's outputs are left."""
        if self.plan is None or self.plan.graph.pattern.zeros:
            return torch.ones(count, dtype=torch.bool)
        if self._kept is None:
            self._kept = kept_positions(named_tensors(self.dense), self.plan)
        axis = int(use.transposed)
        names = (weight_of(use.key.layer), use.key.layer)  # the latter of a packed weight
        kept = next((self._kept[n, axis] for n in names if (n, axis) in self._kept), None)
        if kept is None:
            return torch.ones(count, dtype=torch.bool)
        return kept[use.rows[0] : use.rows[1]] if use.rows else kept

    def _support(self, use: Use, weight: Tensor) -> Tensor | None:
        """Return which weights may be other than zero, where the plan or the weight says."""
        if self.plan is None:
            return None if bool(weight.all()) else weight != 0
        if not self.plan.graph.pattern.zeros:
            return None
        mask = self.plan.masks.get(use.key.layer)
        group = next((s for s in self.plan.graph.groups if s.name == use.key.layer), None)
        if mask is None or group is None or bool(mask.all()):
            return None
        mask = group.layout.spread(mask) if group.layout else mask
        mask = mask[use.rows[0] : use.rows[1]] if use.rows else mask
        return (mask.t() if use.transposed else mask).to(weight.device)
