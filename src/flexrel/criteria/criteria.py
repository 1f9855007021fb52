"""From signals to scores: magnitude, relevance, their blend, and OBS. Higher = keep.

A criterion is any object that fits `Criterion`; there is nothing to inherit and nothing to
register. It is shown one `GroupSignals` a group and yields one tensor of scores for each, which
must be comparable over the whole network.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from flexrel.core.cost import Cost, unit_parameters
from flexrel.core.graph import PruningGraph
from flexrel.core.measurement import Saliency, Scores
from flexrel.criteria.criterion import Criterion, SaliencyTarget, Signal, attribution_of
from flexrel.criteria.signals import GroupSignals
from flexrel.errors import UsageError
from flexrel.relevance import (
    Attribution,
    AttributionTarget,
    RelevanceStats,
    RuleLike,
    check_output,
)

Blend = Literal["sum", "product"]
BLENDS: tuple[Blend, ...] = ("sum", "product")


@dataclass(frozen=True, slots=True)
class Magnitude:
    """Keep what is large.

    Single weights are compared as they are. Channels, heads and blocks are compared as multiples
    of their layer's mean: a norm behind a layer makes the size of its weights arbitrary (ours).
    """

    name: ClassVar[str] = "magnitude"
    needs: ClassVar[frozenset[Signal]] = frozenset()

    def scores(self, signals: Sequence[GroupSignals]) -> Iterator[Tensor]:
        """Yield each group's magnitudes; of whole units, over their mean."""
        for group in signals:
            magnitude = group.magnitude()
            yield magnitude if group.single_weights else _over_mean(magnitude)


@dataclass(frozen=True, slots=True)
class Relevance:
    """Keep what mattered in use.

    Single weights are compared by the positive part of their relevance, as it is. Channels, heads
    and blocks are compared by the absolute value of what they add up to in each sample, over the
    square root of what goes with them, which is parameters, or multiply-adds where a budget is on
    those (ours).

    Attributes:
        rule: how relevance goes back through a layer, as in `calibrate`.
        output: what relevance starts from, likewise.
    """

    rule: RuleLike = "gradient-input"
    output: str | AttributionTarget = "auto"
    name: ClassVar[str] = "relevance"

    @property
    def needs(self) -> frozenset[Signal]:
        """The relevance by the rule, from the output."""
        return frozenset({Attribution(self.rule, self.output)})

    def scores(self, signals: Sequence[GroupSignals]) -> Iterator[Tensor]:
        """Yield each group's relevance; of whole units, over the root of their cost."""
        if all(group.single_weights for group in signals):
            return (group.relevance() for group in signals)
        return _relevance_over_root_of_cost(signals)


@dataclass(frozen=True, slots=True)
class OBS:
    """Keep what no refit of the layers behind can make up for; for cuts that are repaired.

    A unit's score is its saliency (`GroupSignals.saliency`) over what goes with it, in parameters
    or multiply-adds (`GroupSignals.cost`). Not for residual blocks.

    Attributes:
        output: whose squared change counts, as in `calibrate`, where "auto" is all outputs: of
            a mapping those under "logits", of several each by its own size. "label" takes labels.

    Raises:
        UsageError: there is no such output.

    Source:
        Hassibi and Stork, 1993 (Optimal Brain Surgeon); the division by the cost is ours.
    """

    output: str | AttributionTarget = "auto"
    name: ClassVar[str] = "obs"

    def __post_init__(self) -> None:
        check_output(self.output)

    @property
    def needs(self) -> frozenset[Signal]:
        """The saliency, of the output."""
        return frozenset({SaliencyTarget(self.output)})

    def scores(self, signals: Sequence[GroupSignals]) -> Iterator[Tensor]:
        """Yield each unit's saliency over its cost; of single weights, as it is."""
        for group in signals:
            if group.group.blocks:
                raise UsageError("criterion 'obs' can't score residual blocks; use another")
            yield (group.saliency() / _cost(group)).float()


@dataclass(frozen=True, slots=True)
class FlexRel:
    """Keep what is large and mattered: a blend of magnitude `M` and relevance `R`.

    With "sum" a score is `(1 - delta) * M + delta * R`, with "product" `M^(1 - delta) * R^delta`.
    Of channels, heads and blocks, `M` and `R` are the scores of `Magnitude` and of `Relevance`. Of
    single weights they are those too, but brought to a common scale: in the sum both are
    min-max normalised over the network, in the product `R` is divided by its layer's mean.

    Attributes:
        delta: share of relevance, in [0, 1]; 0 orders as `Magnitude`, 1 as `Relevance`, but for
            single weights in the product: as relevance over its layer's mean.
        blend: "sum" or "product".
        rule: how relevance goes back through a layer, as in `calibrate`.
        output: what relevance starts from, likewise.

    Raises:
        UsageError: delta is not in [0, 1], or the blend is not known.

    Source:
        The sum: arXiv 2405.13088, score of a parameter, which leaves the normalisation open. The
        normalisation, the product, and all of channels, heads and blocks: ours.
    """

    delta: float = 0.5
    blend: Blend = "sum"
    rule: RuleLike = "gradient-input"
    output: str | AttributionTarget = "auto"

    @property
    def needs(self) -> frozenset[Signal]:
        """The relevance by the rule, from the output."""
        return frozenset({Attribution(self.rule, self.output)})

    def __post_init__(self) -> None:
        if not 0 <= self.delta <= 1:
            raise UsageError(f"delta is {self.delta!r}; it is the share of relevance, in [0, 1]")
        if self.blend not in BLENDS:
            raise UsageError(f"blend {self.blend!r} is not known; there are: {', '.join(BLENDS)}")

    @property
    def name(self) -> str:
        """Name in plans and reports."""
        return f"flexrel:{self.delta:g}" + (":product" if self.blend == "product" else "")

    def scores(self, signals: Sequence[GroupSignals]) -> Iterator[Tensor]:
        """Yield each group's blended scores."""
        magnitudes, relevances = Magnitude().scores(signals), Relevance().scores(signals)
        if all(group.single_weights for group in signals):
            if self.blend == "product":
                relevances = map(_over_mean, relevances)
            elif (
                0 < self.delta < 1
            ):  # of one signal alone, rounding would make ties of what is near
                magnitudes = _min_max(Magnitude(), signals)
                relevances = _min_max(Relevance(), signals)
        if self.delta == 0:
            yield from magnitudes
        elif self.delta == 1:
            yield from relevances
        else:
            for m, r in zip(magnitudes, relevances, strict=True):
                if self.blend == "product":
                    yield m.pow_(1 - self.delta).mul_(r.pow_(self.delta))
                else:
                    yield m.mul_(1 - self.delta).add_(r, alpha=self.delta)


def scores_of(
    criterion: Criterion,
    graph: PruningGraph,
    tensors: Mapping[str, Tensor],
    stats: RelevanceStats | None,
    saliency: Saliency | None = None,
    costs: Mapping[str, Cost] | None = None,
) -> Scores:
    """Return the criterion's scores for every group of the graph, checked.

    Args:
        criterion: makes them.
        graph: has the groups.
        tensors: the dense network's parameters and buffers, by name.
        stats: of the dense network; None where the criterion needs none.
        saliency: likewise, as `measure_saliency` returns it.
        costs: group name -> what goes with one unit, or with each, of the resource that is short;
            None: parameters.

    Returns:
        Group name -> float32 scores of the group's shape, on the CPU. Higher means keep. A block's
        is the mean of its weights' (the reduction); units that never change have the lowest there
        is.

    Raises:
        UsageError: a signal is missing, or the criterion made a NaN or a wrong shape.
    """
    if attribution_of(criterion) is not None and stats is None:
        raise UsageError(f"criterion {criterion.name!r} needs stats; pass calibration data")
    costs = unit_parameters(graph) if costs is None else costs
    signals = []
    for group in graph.groups:
        scored = replace(group, shape=group.layout.shape) if group.layout else group
        signals.append(GroupSignals(scored, tensors, stats, costs[group.name], saliency))
    scores: dict[str, Tensor] = {}
    for known, made in zip_longest(signals, criterion.scores(signals)):
        if known is None or not isinstance(made, Tensor):
            raise UsageError(
                f"criterion {criterion.name!r} must yield one tensor for each of the "
                f"{len(graph.groups)} groups, but after {len(scores)} came "
                f"{'one too many' if known is None else type(made).__name__}"
            )
        group, values = known.group, made.detach().to("cpu", torch.float32)
        if tuple(values.shape) != group.shape or bool(values.isnan().any()):
            found = f"{int(values.isnan().sum())} NaN in shape {tuple(values.shape)}"
            raise UsageError(
                f"criterion {criterion.name!r} scored {group.name!r} with {found}; "
                f"it must give one number for each unit of {group.shape}"
            )
        if group.constant is not None:  # nothing is lost with them, whatever the criterion
            values = values.masked_fill(group.constant, -torch.inf)
        scores[group.name] = group.layout.means(values) if group.layout else values
    return scores


def _cost(group: GroupSignals) -> Float[Tensor, "*units"]:
    """Return what goes with each unit, float64, at least 1: it is divided by."""
    return torch.as_tensor(group.cost).double().clamp_min(1.0)


def _over_mean(values: Tensor) -> Tensor:
    """Return the values as multiples of their mean absolute value, in place."""
    mean = float(values.abs().mean())
    return values.div_(mean if mean > 0 else 1.0)


def _min_max(criterion: Criterion, signals: Sequence[GroupSignals]) -> Iterator[Tensor]:
    """Yield the criterion's scores brought to [0, 1] over the network.

    All are made twice, which is cheaper than to keep them: one layer is in memory at a time.
    """
    bounds = [values.aminmax() for values in criterion.scores(signals)]
    low, high = min(float(b.min) for b in bounds), max(float(b.max) for b in bounds)
    for values in criterion.scores(signals):
        yield values.sub_(low).div_(high - low if high > low else 1.0)


def _relevance_over_root_of_cost(signals: Sequence[GroupSignals]) -> Iterator[Tensor]:
    """Yield relevance over the root of what goes with a unit, as multiples of the network's mean.

    As in `_min_max`, all is made twice.
    """
    factors = [_cost(group).rsqrt().float() for group in signals]
    total, units = 0.0, 0
    for group, factor in zip(signals, factors, strict=True):
        total += float((group.relevance().abs() * factor).sum())
        units += group.group.units
    mean = total / max(units, 1)
    for group, factor in zip(signals, factors, strict=True):
        yield group.relevance().mul_(factor).div_(mean if mean > 0 else 1.0)
