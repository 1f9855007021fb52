"""The saliency of units: what their removal costs that no repair brings back, measured.

The Kronecker factors predict what the removal of each unit costs once its readers are refitted.
They take errors at different positions, and in different layers, for independent, and small: by how
much the cost is really larger is measured on samples that they were not fitted to, for each group
by itself.
"""

from collections.abc import Mapping, Sequence
from statistics import median

import torch
from torch import Tensor, nn

from flexrel.core.batches import Batch, RawBatch, samples_of
from flexrel.core.deadline import OutOfTimeError
from flexrel.core.division import divided, joined
from flexrel.core.forecast import forecast
from flexrel.core.graph import Protected, PruningGraph, PruningGroup, layer_of
from flexrel.core.measurement import Progress, Saliency, silent
from flexrel.core.outputs import check_shapes
from flexrel.core.running import undisturbed
from flexrel.criteria.kfac import KFACFactors, measure_factors, output_sizes
from flexrel.criteria.obs import predicted_saliency, refitted
from flexrel.relevance import AttributionTarget, counted
from flexrel.structure import named_tensors

_HELD_OUT = 32  # samples, or a quarter of all if that is fewer
_MOST_HELD = 0.25
_WORK = 2.5  # multiply-adds a cubed number of inputs: of an inverse, and of taking units out
_LEAST = 0.1  # of the typical gain: a group that few samples show no harm of is not free


def measure_saliency(
    model: nn.Module,
    graph: PruningGraph,
    batches: Sequence[RawBatch],
    progress: Progress = silent,
    *,
    output: str | AttributionTarget = "auto",
    seed: int = 0,
) -> tuple[Saliency, list[Protected]]:
    """Return what the removal of each unit costs after a refit, and the groups that are not known.

    Args:
        model: runs in evaluation mode, and is left as it was.
        graph: of it: channels, heads or single weights.
        batches: calibration data, with labels if the output takes them: gone through once forward
            and backward, and 32 samples of it once for each group of channels or heads.
        progress: told after each batch and each group.
        output: of the network, whose squared change counts: as `calibrate` takes it, but "auto" is
            "norm", all outputs, of several each by its own size.
        seed: of random numbers.

    Returns:
        Group name -> float64 of the group's shape, in squared outputs of one sample, higher means
        keep; and the groups of whose readers nothing is known, with reasons.

    Raises:
        ModelError: no gradient can go back through the model.
    """
    samples = samples_of(batches, model)
    held = min(_HELD_OUT / max(samples, 1), _MOST_HELD)
    layers = {reader for group in graph.groups for reader in group.readers}
    factors = measure_factors(model, batches, layers, progress, output=output, held=held, seed=seed)
    lost = {name for name, one in factors.layers.items() if not one.finite}
    tensors = named_tensors(model)
    predicted: dict[str, Tensor] = {}
    unknown: list[Protected] = []
    for done, group in enumerate(graph.groups):
        missing = sorted(group.readers - factors.layers.keys())
        if group.blocks or missing:
            layer = group.name if group.blocks else missing[0]
            reason = f"what a refit of {layer} can make up for was not measured"
            unknown.append(Protected(group.name, reason))
        elif large := sorted(group.readers & lost):
            reason = f"the inputs of {large[0]}, or gradients there, are too large to be squared"
            unknown.append(Protected(group.name, reason))
        else:
            _forecast(progress, group, factors)
            total = predicted_saliency(group, tensors, factors)
            predicted[group.name] = total / max(factors.samples, 1)
        progress("refitting readers", done + 1, len(graph.groups))
    groups = [group for group in graph.groups if group.members and group.name in predicted]
    checks = joined(check for _, check in divided(batches, model, held) if check is not None)
    gains = _gains(model, groups, predicted, factors, checks, output, progress)
    return {name: costs * gains.get(name, 1.0) for name, costs in predicted.items()}, unknown


def _forecast(progress: Progress, group: PruningGroup, factors: KFACFactors) -> None:
    """Say beforehand how long the readers of a group take, where that is long."""
    widths = {name: factors.layers[name].inputs.xx.shape for name in group.readers}
    if widths:
        widest = max(widths, key=lambda name: widths[name][-1])
        work = sum(_WORK * groups * inputs**3 for groups, inputs, _ in widths.values())
        without = f"--criterion magnitude, relevance or --keep {widest} goes without"
        forecast(progress, widest, widths[widest][-1], work, without)


def _gains(
    model: nn.Module,
    groups: Sequence[PruningGroup],
    predicted: Saliency,
    factors: KFACFactors,
    checks: Sequence[Batch],
    output: str | AttributionTarget,
    progress: Progress,
) -> dict[str, float]:
    """Return how many times as large as predicted the saliency of each group is.

    It is measured where the cheaper half of the group's units is gone.
    """
    tensors = named_tensors(model)
    samples = sum(batch.samples for batch in checks)
    found: dict[str, float] = {}
    with undisturbed(model), torch.no_grad():
        dense = [_outputs(model, {}, batch, output) for batch in checks]
        sizes = [output_sizes(each, b.samples) for each, b in zip(dense, checks, strict=True)]
        for done, group in enumerate(groups if checks else ()):
            costs = predicted[group.name]
            gone = costs.argsort(stable=True)[: group.units // 2]
            kept = torch.ones(group.units, dtype=torch.bool).index_fill_(0, gone, 0)
            changed = {
                reader.tensor: refitted(
                    reader, tensors[reader.tensor], factors.layers[layer_of(reader.tensor)], kept
                )
                for reader in group.members
                if reader.reads
            }
            error = 0.0
            for batch, expected, by in zip(checks, dense, sizes, strict=True):
                here = _outputs(model, changed, batch, output)
                check_shapes(expected, here)
                for now, then, size in zip(here, expected, by, strict=True):
                    error += float(((now - then) / size).double().square().sum())
            gain = error / samples / float(costs[gone].sum() + 1e-30)
            if 0 < gain < float("inf"):  # else no harm is seen, or the refit has no solution
                found[group.name] = gain
            try:
                progress("measuring saliency", done + 1, len(groups))
            except OutOfTimeError:  # the others are taken for typical
                break
    typical = median(found.values()) if found else 1.0
    return {group.name: max(found.get(group.name, typical), _LEAST * typical) for group in groups}


def _outputs(
    model: nn.Module,
    changed: Mapping[str, Tensor],
    batch: Batch,
    output: str | AttributionTarget,
) -> list[Tensor]:
    """Return the outputs that count, with other values in the place of some parameters."""
    result = torch.func.functional_call(model, dict(changed), batch.args, dict(batch.kwargs))
    return counted(result, batch, output)
