"""Runs the model over a calibration set, fills RelevanceStats, and leaves no trace on the model.

One forward and one backward pass a batch. No gradient of a weight is formed, so the backward
pass does about half of a training step's work; each layer adds two products with its own
activations, summed at once to two vectors.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import islice

import torch
from torch import Tensor, nn

from flexrel.core.batches import Batch, RawBatch, read_batches
from flexrel.core.fingerprint import fingerprint
from flexrel.core.graph import layer_of
from flexrel.core.measurement import Progress, silent
from flexrel.core.running import backward_to_inputs, call, reason, rooted, unwrapped
from flexrel.errors import ModelError, UsageError
from flexrel.relevance.fold import Folded, Folder
from flexrel.relevance.follow import Follow
from flexrel.relevance.ledger import Balance, Ledger, merged
from flexrel.relevance.rules import Rule, RuleLike, rule_of
from flexrel.relevance.stats import LayerRelevance, RelevanceStats
from flexrel.relevance.suspect import Suspect
from flexrel.relevance.targets import AttributionTarget, check_output, start
from flexrel.relevance.together import Layout, Place, by_layer, together


def calibrate(
    model: nn.Module,
    batches: Iterable[RawBatch],
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
        batches: iterable of tensors, tuples `(inputs, labels)` or `(inputs, labels, weights)`
            (how often each sample counts), or dicts of arguments; of any length, read once.
        rule: how relevance goes back through a layer: a name of `flexrel.RULES`, an object that
            fits `flexrel.Rule`, or a mapping of name patterns of layers to either.
        output: what relevance starts from: "label", "predicted", "norm" (half the squared norm
            of the output, for outputs that are no class scores), or a callable
            `(output, labels) -> [samples]`; "auto" is "predicted" for class scores
            `[samples, classes]`, else "norm".
        progress: told after each batch.
        check: also book what each operation does with the relevance it gets, in `balances` of
            the statistics; takes about three times as long.
        max_batches: read no more than so many.
        max_seconds: read no further batch after so long.

    Returns:
        Sums over all samples; memory in proportion to units, not to weights.

    Raises:
        UsageError: an unknown rule or output, no batch, a NaN in a batch, labels missing.
        ModelError: the model does not run, no relevance reaches its layers, or it is NaN; what
            the iterable, the rule or a callable raises passes as it is.
    """
    chosen = rule_of(rule)
    check_output(output)
    _check_limits(max_batches, max_seconds)
    model = unwrapped(model)
    total = _Total()
    folder = Folder()
    began = time.monotonic()
    with backward_to_inputs(model):
        for batch in islice(read_batches(batches, model), max_batches):
            output = _calibrate_batch(model, batch, chosen, output, folder, total, check=check)
            progress("calibrating", batch.index + 1, max_batches)
            if max_seconds is not None and time.monotonic() - began >= max_seconds:
                break
    if total.batches == 0:
        raise UsageError("the calibration set is empty; pass at least one batch")
    found = total.layers()
    if isinstance(rule, Mapping):
        _check_patterns(rule, found)
    started = output if isinstance(output, str) else getattr(output, "__name__", "callable")
    layers = dict(sorted(found.items()))
    if layers and not any(layer.output_absolute.any() for layer in layers.values()):
        raise ModelError(
            f"relevance is 0 in all {len(layers)} layers for all {total.samples:g} samples: the "
            f"output that it starts from ({started}) is 0 or does not change with them; "
            "check that the model is trained, or pass another output="
        )
    return RelevanceStats(
        layers,
        total.samples,
        chosen.name,
        started,
        fingerprint(model),
        merged(total.balances),
        _unmeasured(model, layers),
    )


@dataclass(slots=True)
class _Total:
    """What has been counted so far; a batch is counted whole or not at all."""

    sums: dict[Layout, Tensor] = field(default_factory=dict)  # of batches that ran the same layers
    samples: float = 0.0
    batches: int = 0
    balances: list[Balance] = field(default_factory=list)
    copy: bool = False  # the model overwrites activations unseen, so keep copies

    def layers(self) -> dict[str, LayerRelevance]:
        """Return the sums of each layer, in the order in which they first ran."""
        found: dict[str, LayerRelevance] = {}
        for layout, values in self.sums.items():
            for place, sides in zip(layout, by_layer(layout, values), strict=True):
                layer = _layer(place, *sides)
                found[place.name] = found[place.name] + layer if place.name in found else layer
        return found


def _calibrate_batch(
    model: nn.Module,
    batch: Batch,
    rule: Rule,
    output: str | AttributionTarget,
    folder: Folder,
    total: _Total,
    *,
    check: bool,
) -> str | AttributionTarget:
    """Add one batch to the total; return `output` resolved."""
    ledger = Ledger() if check else None
    follow = Follow(model, rule, folder, ledger=ledger, copy=total.copy)
    output = _pass(model, batch, output, follow)
    if follow.unsure:
        total.copy = True
        ledger = Ledger() if check else None
        follow = Follow(model, rule, folder, ledger=ledger, copy=True)
        _pass(model, batch, output, follow)
    layout, values = together(follow.sums)
    if not bool(values.isfinite().all()):
        suspect = Suspect()
        _pass(model, batch, output, Follow(model, rule, folder, copy=True, suspect=suspect))
        first = f"; it first is in {suspect.found}" if suspect.found else ""
        sides = zip(layout, by_layer(layout, values), strict=True)
        name = next(
            place.name
            for place, sums in sides
            if not all(bool(part.isfinite().all()) for side in sums for part in side)
        )
        raise ModelError(f"relevance of {name!r} is NaN or infinite in batch {batch.index}{first}")
    total.sums[layout] = total.sums[layout].add_(values) if layout in total.sums else values
    total.samples += batch.samples if batch.weights is None else float(batch.weights.sum())
    total.batches += 1
    total.balances = list(merged([*total.balances, *(ledger.balances() if ledger else ())]))
    return output


def _unmeasured(model: nn.Module, measured: Iterable[str]) -> tuple[str, ...]:
    """Return the parameters of two axes or more that are no sums's weight, nor make one."""
    layers = {name.partition("[")[0] for name in measured}
    weights = (name for name, parameter in model.named_parameters() if parameter.ndim > 1)
    return tuple(
        name
        for name in weights
        if layer_of(name) not in layers and not any(name.startswith(f"{at}.") for at in layers)
    )


def _layer(place: Place, inputs: Folded, outputs: Folded) -> LayerRelevance:
    return LayerRelevance(
        *(inputs.sums[0], outputs.sums[0], inputs.sums[1], outputs.sums[1]),
        groups=place.groups,
        transposed=place.transposed,
        tied=place.tied,
        input_samples=inputs.samples,
        output_samples=outputs.samples,
    )


def _pass(
    model: nn.Module, batch: Batch, output: str | AttributionTarget, follow: Follow
) -> str | AttributionTarget:
    """Run the batch forward and its relevance back; return `output` resolved."""
    roots, fresh = rooted(batch)
    with follow.running():
        result = call(model, fresh)
    output, scalar = start(result, batch, output)
    ends = [*roots, *follow.leaves]
    try:
        reached = (
            torch.autograd.grad(scalar, ends, allow_unused=True)
            if ends and scalar.requires_grad
            else ()
        )
    except RuntimeError as error:
        if follow.raised is not None:
            raise follow.raised  # noqa: B904 - by the rule, and not ours to explain
        advice = "; turn its checkpointing off" if "checkpoint" in str(error) else ""
        raise ModelError(
            f"relevance can't go back through the model on batch {batch.index}: "
            f"{reason(error)}{advice}"
        ) from error
    follow.leaves.clear()
    if all(gradient is None for gradient in reached):
        raise ModelError(
            "no gradient reaches the input: the output does not depend on a floating-point "
            "input or an embedding, or the model runs under no_grad"
        )
    return output


def _check_patterns(patterns: Iterable[str], layers: Iterable[str]) -> None:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in layers):
            shown = ", ".join(repr(name) for name in islice(layers, 3))
            raise UsageError(f"no layer fits the pattern {pattern!r} of rule=; there are {shown}")


def _check_limits(max_batches: int | None, max_seconds: float | None) -> None:
    if max_batches is not None and (not isinstance(max_batches, int) or max_batches < 1):
        raise UsageError(f"max_batches={max_batches} must be a whole number, at least 1")
    if max_seconds is not None and not max_seconds > 0:
        raise UsageError(f"max_seconds={max_seconds} must be above 0")
