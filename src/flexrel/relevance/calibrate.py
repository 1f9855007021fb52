"""Runs the model over a calibration set, sums relevance up, and leaves no trace on the model.

One forward and one backward pass a batch. No gradient of a weight is formed, so the backward
pass does about half of a training step's work; each layer adds two products with its own
activations, summed at once to two vectors.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import islice
from operator import length_hint

import torch
from torch import Tensor, nn

from flexrel.core.batches import Batch, RawBatches, read_batches
from flexrel.core.deadline import OutOfTimeError
from flexrel.core.graph import layer_of
from flexrel.core.measurement import Progress, silent
from flexrel.core.network import check_not_meta, private_copy
from flexrel.core.running import backward_to_inputs, call, fingerprint, reason, rooted
from flexrel.errors import ModelError, UsageError
from flexrel.relevance.balance import Balance, Ledger, NaNFinder, merged
from flexrel.relevance.follow import RelevanceRecorder
from flexrel.relevance.rules import Rule, RuleLike, rule_of
from flexrel.relevance.stats import RelevanceStats
from flexrel.relevance.sums import LayerShape, Scratch, by_layer, flattened, relevance_of
from flexrel.relevance.targets import Attribution, AttributionTarget, start
from flexrel.relevance.vectors import LayerRelevance


def calibrate(
    model: nn.Module,
    data: RawBatches,
    rule: RuleLike = "gradient-input",
    output: str | AttributionTarget = "auto",
    progress: Progress = silent,
    *,
    check: bool = False,
    max_batches: int | None = None,
    max_seconds: float | None = None,
) -> RelevanceStats:
    """Return how much each unit mattered to the model's outputs on the calibration set.

    Args:
        model: any module. Its layers are the calls of affine operations with its parameters:
            linear, convolutions (grouped, transposed), embeddings, by module or by function.
            Runs in evaluation mode; hooks, modes, gradients and the random state are put back,
            also when an exception passes.
        data: iterable of batches, of any length, read once: tensors, tuples `(inputs, labels,
            ...)`, or dicts of arguments, where "sample_weight" says how often each sample counts.
            Only "label" and a callable need labels, which are None where they are no numbers.
        rule: how relevance goes back through a layer: a name of `flexrel.RULES`, an object that
            fits `flexrel.Rule`, or a mapping of name patterns of layers to either.
        output: what relevance starts from: "label", "predicted", "norm" (half the squared norm
            of the output, for outputs that are no class scores), or a callable
            `(output, labels) -> [samples]`; "auto" is "predicted" for class scores
            `[samples, classes]`, else "norm".
        progress: told after each batch.
        check: also book what each operation does with the relevance it gets, in `balances` of
            the stats; takes about three times as long.
        max_batches: read no more than so many.
        max_seconds: read no further batch after so long.

    Returns:
        Sums over all samples; memory in proportion to units, not to weights.

    Raises:
        UsageError: an unknown rule or output, no batch, a NaN in a batch, labels missing.
        ModelError: the model can't be read, as one of TorchScript, or on the meta device; does not
            run, no relevance reaches its layers, or it is NaN; what the iterable, the rule or a
            callable raises passes as it is.
    """
    wanted = Attribution(rule, output)
    if max_batches is not None and (not isinstance(max_batches, int) or max_batches < 1):
        raise UsageError(f"max_batches={max_batches} must be a whole number, at least 1")
    if max_seconds is not None and not max_seconds > 0:
        raise UsageError(f"max_seconds={max_seconds} must be above 0")
    check_not_meta(model)
    calibration = _Calibration(private_copy(model), rule_of(wanted.rule), wanted.output, check)
    began = time.monotonic()
    total = min(filter(None, (length_hint(data), max_batches)), default=None)
    progress("calibrating", 0, total)
    with suppress(OutOfTimeError), backward_to_inputs(calibration.model):
        for batch in islice(read_batches(data, calibration.model), max_batches):
            calibration.add(batch)
            progress("calibrating", batch.index + 1, total)
            if max_seconds is not None and time.monotonic() - began >= max_seconds:
                break
    stats = calibration.stats()
    if isinstance(rule, Mapping):
        _check_patterns(rule, stats)
    return stats


@dataclass(slots=True)
class _Calibration:
    """What has been summed up so far; a batch counts whole or not at all."""

    model: nn.Module
    rule: Rule
    output: str | AttributionTarget  # "auto" until the first batch tells which
    check: bool
    sums: dict[tuple[LayerShape, ...], Tensor] = field(default_factory=dict)  # by what ran
    samples: float = 0.0
    batches: int = 0
    balances: tuple[Balance, ...] = ()
    copy: bool = False  # the model overwrites activations unseen, so keep copies
    scratch: Scratch = field(default_factory=dict)

    def add(self, batch: Batch) -> None:
        """Run one batch, and add the relevance of its layers."""
        ledger = Ledger() if self.check else None
        recorder = self._followed(batch, ledger)
        if recorder.unsure:
            self.copy = True
            ledger = Ledger() if self.check else None
            recorder = self._followed(batch, ledger)
        shapes, values = flattened(recorder.sums.values())
        if not bool(values.isfinite().all()):
            raise self._not_finite(batch, shapes, values)
        self.sums[shapes] = self.sums[shapes].add_(values) if shapes in self.sums else values
        self.samples += batch.samples if batch.weights is None else float(batch.weights.sum())
        self.batches += 1
        if ledger is not None:
            self.balances = merged([*self.balances, *ledger.balances()])

    def _followed(
        self, batch: Batch, ledger: Ledger | None = None, nan_finder: NaNFinder | None = None
    ) -> RelevanceRecorder:
        """Run the batch forward and its relevance back, and return what followed that."""
        recorder = RelevanceRecorder(
            *(self.model, self.rule, self.scratch),
            copy=self.copy or nan_finder is not None,
            ledger=ledger,
            nan_finder=nan_finder,
        )
        roots, fresh = rooted(batch)
        with recorder.running():
            result = call(self.model, fresh)
        self.output, scalar = start(result, batch, self.output)
        ends = [*roots, *recorder.leaves]
        reached: Sequence[Tensor | None] = ()
        try:
            if ends and scalar.requires_grad:
                reached = torch.autograd.grad(scalar, ends, allow_unused=True)
        except RuntimeError as error:
            if recorder.raised is not None:
                raise recorder.raised  # noqa: B904 - by the rule, and not ours to explain
            advice = "; turn its checkpointing off" if "checkpoint" in str(error) else ""
            raise ModelError(
                f"relevance can't go back through the model on batch {batch.index}: "
                f"{reason(error)}{advice}"
            ) from error
        recorder.leaves.clear()
        if all(gradient is None for gradient in reached):
            raise ModelError(
                "no gradient reaches the input: the output does not depend on a floating-point "
                "input or an embedding, or the model runs under no_grad"
            )
        return recorder

    def _not_finite(self, batch: Batch, shapes: Sequence[LayerShape], values: Tensor) -> ModelError:
        """Run the batch again to see which operation first made a NaN, and return what to say."""
        finder = NaNFinder()
        self._followed(batch, nan_finder=finder)
        first = f"; it first is in {finder.found}" if finder.found else ""
        parts = by_layer(shapes, values)
        name = next(shape.name for shape, part in parts if not bool(part.isfinite().all()))
        return ModelError(f"relevance of {name!r} is NaN or infinite in batch {batch.index}{first}")

    def stats(self) -> RelevanceStats:
        """Return the sums of each layer over all batches.

        Raises:
            UsageError: there was no batch.
            ModelError: all of it is 0.
        """
        if self.batches == 0:
            raise UsageError("the calibration set is empty; pass at least one batch")
        layers: dict[str, LayerRelevance] = {}
        for shapes, values in self.sums.items():
            for shape, part in by_layer(shapes, values):
                layer, before = relevance_of(shape, part), layers.get(shape.name)
                layers[shape.name] = layer if before is None else before + layer
        output = self.output
        if not isinstance(output, str):
            output = str(getattr(output, "__name__", "callable"))
        if layers and not any(layer.output_absolute.any() for layer in layers.values()):
            raise ModelError(
                f"relevance is 0 in all {len(layers)} layers for all {self.samples:g} samples: the "
                f"output that it starts from ({output}) is 0 or does not change with them; "
                "check that the model is trained, or pass another output="
            )
        return RelevanceStats(
            dict(sorted(layers.items())),
            self.samples,
            self.rule.name,
            output,
            fingerprint(self.model),
            self.balances,
            _unmeasured(self.model, layers),
        )


def _unmeasured(model: nn.Module, measured: Iterable[str]) -> tuple[str, ...]:
    """Return the parameters of two axes or more that no sums are of, nor of what makes them."""
    layers = [name.partition("[")[0] for name in measured]
    inside = tuple(f"{layer}." for layer in layers)  # where one's weight is computed
    found = []
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and layer_of(name) not in layers and not name.startswith(inside):
            found.append(name)
    return tuple(found)


def _check_patterns(patterns: Iterable[str], layers: Iterable[str]) -> None:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in layers):
            shown = ", ".join(repr(name) for name in islice(layers, 3))
            raise UsageError(f"no layer fits the pattern {pattern!r} of rule=; there are {shown}")
