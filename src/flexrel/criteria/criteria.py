"""From weights and statistics to scores: magnitude, relevance, and their blend. Higher = keep.

A criterion is any object that fits `Criterion`; there is nothing to inherit and nothing to
register. It is shown one `GroupSignals` a group and yields one tensor of scores for each, which
must be comparable over the whole network.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from typing import ClassVar, Final, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from flexrel.core.cost import Cost, unit_parameters
from flexrel.core.graph import PruningGraph
from flexrel.core.measurement import Saliency, Scores
from flexrel.criteria.scales import SCALES, Maker, Scale, alone, scaled
from flexrel.criteria.signals import GroupSignals
from flexrel.errors import UsageError
from flexrel.relevance import PARTS, Attribution, AttributionTarget, Part, RelevanceStats, RuleLike

Blend = Literal["sum", "product"]
BLENDS: tuple[Blend, ...] = ("sum", "product")
_NETWORK: tuple[Scale, Scale] = ("network", "network")
SALIENCY: Final = "saliency"  # what a removal costs that no refit of the readers makes up for
Signal = Attribution | Literal["saliency"]


@runtime_checkable
class Criterion(Protocol):
    """What `prune` asks of a criterion."""

    @property
    def name(self) -> str:
        """Name in plans and reports."""

    @property
    def needs(self) -> frozenset[Signal]:
        """What must be measured for it besides weights: SALIENCY, an `Attribution`, or both."""

    def scores(self, evidence: Sequence[GroupSignals]) -> Iterator[Tensor]:
        """Yield one tensor of scores for each group, of the group's shape. Higher means keep."""


@dataclass(frozen=True, slots=True)
class Magnitude:
    """Keep what is large: magnitude alone.

    Attributes:
        scale: that makes layers comparable, see `FlexRel`.
    """

    scale: Scale | None = None
    name: str = "magnitude"
    needs: ClassVar[frozenset[Signal]] = frozenset()

    def __post_init__(self) -> None:
        _check_scale(self.scale)

    def scores(self, evidence: Sequence[GroupSignals]) -> Iterator[Tensor]:
        """Yield each group's magnitudes on the scale."""
        scale = self.scale or ("mean" if _in_units(evidence) else "network")
        return alone([group.magnitude for group in evidence], scale, _costs(evidence))


@dataclass(frozen=True, slots=True)
class Relevance:
    """Keep what mattered in use: relevance alone.

    Attributes:
        part: of relevance: "sum" (the paper's literal reading), "positive", "absolute", or
            "sample", see `FlexRel`.
        scale: that makes layers comparable, see `FlexRel`.
        rule: how relevance goes back through a layer, as in `calibrate`.
        output: what relevance starts from, likewise.
    """

    part: Part | None = None
    scale: Scale | None = None
    rule: RuleLike = "gradient-input"
    output: str | AttributionTarget = "auto"
    name: str = "relevance"

    @property
    def needs(self) -> frozenset[Signal]:
        """The relevance by the rule, from the output."""
        return frozenset({Attribution(self.rule, self.output)})

    def __post_init__(self) -> None:
        _check_part(self.part)
        _check_scale(self.scale)

    def scores(self, evidence: Sequence[GroupSignals]) -> Iterator[Tensor]:
        """Yield each group's relevance on the scale."""
        makers = _relevances(self.part, evidence)
        scale = self.scale or ("cost" if _in_units(evidence) else "network")
        return alone(makers, scale, _costs(evidence))


@dataclass(frozen=True, slots=True)
class OBS:
    """Keep what no refit of the layers behind can make up for; for cuts that are repaired.

    A unit's score is what its removal damages (`GroupSignals.damage`), over what goes with it, in
    parameters or multiply-adds (`GroupSignals.cost`). No labels. Not for residual blocks.

    Source:
        Hassibi and Stork, 1993 (Optimal Brain Surgeon); the division by the cost is ours.
    """

    name: str = "obs"
    needs: ClassVar[frozenset[Signal]] = frozenset({SALIENCY})

    def scores(self, evidence: Sequence[GroupSignals]) -> Iterator[Tensor]:
        """Yield what each unit's removal damages, over its cost; of single weights, as it is."""
        for group in evidence:
            if group.group.blocks:
                raise UsageError("criterion 'obs' can't score residual blocks; use another")
            cost = (
                torch.as_tensor(group.cost if group.group.members else 1.0).double().clamp_min(1.0)
            )
            yield (group.damage() / cost).float()


@dataclass(frozen=True, slots=True)
class FlexRel:
    """Keep what is large and mattered: `s = (1 - delta) * M + delta * R`, or its geometric twin.

    Attributes:
        delta: share of relevance, in [0, 1]; 0 orders as `Magnitude`, 1 as `Relevance` of the
            same part and scale. Of elements the product with 1 orders as relevance on scale "mean".
        blend: "sum", the paper's, of M and R on a common scale; or "product" (ours),
            `M^(1 - delta) * R^delta`, R on its scale, or of elements over its layer's mean.
        part: of relevance: "sum", "positive" or "absolute" of every term, or "sample": the
            absolute value of what a channel adds up to in each sample. None takes what measures
            best: "positive" for elements, "sample" for channels and heads.
        scale: what M and R are brought to before they are blended: min-max over the "network",
            min-max over the "layer", multiples of the layer's "mean" absolute value, the "rank"
            among the layer's distinct values, or over the square root of what goes with a unit
            ("cost", ours): parameters, or multiply-adds where a budget is on those. None takes
            what `benchmarks/forms.py` and `benchmarks/channels.py` found best: "network" for
            elements; for channels and heads "mean" for M, as a norm behind a layer makes the
            size of its weights arbitrary, and "cost" for R, which is comparable over layers as
            it is. A single signal, and M in the product, is not brought to [0, 1] by "network"
            but taken as it is: its order is the same.
        rule: how relevance goes back through a layer, as in `calibrate`.
        output: what relevance starts from, likewise.

    Source:
        arXiv 2405.13088, score of a parameter; the paper leaves the normalisation open.
    """

    delta: float = 0.5
    blend: Blend = "sum"
    part: Part | None = None
    scale: Scale | None = None
    rule: RuleLike = "gradient-input"
    output: str | AttributionTarget = "auto"

    @property
    def needs(self) -> frozenset[Signal]:
        """The relevance by the rule, from the output."""
        return frozenset({Attribution(self.rule, self.output)})

    def __post_init__(self) -> None:
        if not 0 <= self.delta <= 1:
            raise UsageError(f"delta is {self.delta!r}; it is the share of relevance, in [0, 1]")
        _check("blend", self.blend, BLENDS)
        _check_part(self.part)
        _check_scale(self.scale)
        if self.blend == "product" and self.part == "sum":
            raise UsageError(
                "blend='product' needs relevance without a sign: part='positive', 'absolute' "
                "or 'sample'"
            )

    @property
    def name(self) -> str:
        """Name in plans and reports."""
        return f"flexrel:{self.delta:g}" + (":product" if self.blend == "product" else "")

    def scores(self, evidence: Sequence[GroupSignals]) -> Iterator[Tensor]:
        """Yield each group's blended scores."""
        if self.delta == 0:  # the same order, and nothing near is rounded to a tie
            return Magnitude(self.scale).scores(evidence)
        if self.delta == 1:
            return self._relevance(evidence).scores(evidence)
        return self._product(evidence) if self.blend == "product" else self._sum(evidence)

    def _relevance(self, evidence: Sequence[GroupSignals]) -> Relevance:
        """Return the criterion whose scores are the product's relevance, or the sum's alone."""
        if self.blend == "sum" or _in_units(evidence):
            return Relevance(self.part, self.scale, self.rule, self.output)
        return Relevance(self.part, "mean", self.rule, self.output)

    def _sum(self, evidence: Sequence[GroupSignals]) -> Iterator[Tensor]:
        default: tuple[Scale, Scale] = ("mean", "cost") if _in_units(evidence) else _NETWORK
        of_magnitude, of_relevance = (self.scale or scale for scale in default)
        costs = _costs(evidence)
        relevances = scaled(_relevances(self.part, evidence), of_relevance, costs)
        magnitudes = scaled([group.magnitude for group in evidence], of_magnitude, costs)
        for m, r in zip(magnitudes, relevances, strict=True):
            yield m.mul_(1 - self.delta).add_(r, alpha=self.delta)

    def _product(self, evidence: Sequence[GroupSignals]) -> Iterator[Tensor]:
        magnitudes = Magnitude(self.scale).scores(evidence)
        relevances = self._relevance(evidence).scores(evidence)
        for m, r in zip(magnitudes, relevances, strict=True):
            yield m.pow_(1 - self.delta).mul_(r.pow_(self.delta))


def attribution_of(criterion: Criterion) -> Attribution | None:
    """Return which relevance the criterion needs, if any."""
    return next((need for need in criterion.needs if isinstance(need, Attribution)), None)


def scores_of(
    criterion: Criterion,
    graph: PruningGraph,
    tensors: Mapping[str, Tensor],
    statistics: RelevanceStats | None,
    damages: Saliency | None = None,
    costs: Mapping[str, Cost] | None = None,
) -> Scores:
    """Return the criterion's scores for every group of the graph, checked.

    Args:
        criterion: makes them.
        graph: has the groups.
        tensors: the dense network's parameters and buffers, by name.
        statistics: of the dense network; None where the criterion needs none.
        damages: likewise, as `measure_saliency` returns them.
        costs: group name -> what goes with one unit, or with each, of the resource that is short;
            None: parameters.

    Returns:
        Group name -> float32 scores of the group's shape, on the CPU. Higher means keep. A block's
        is the mean of its weights' (the reduction); units that never change have the lowest there
        is.

    Raises:
        UsageError: the statistics are missing, or the criterion made a NaN or a wrong shape.
    """
    if attribution_of(criterion) is not None and statistics is None:
        raise UsageError(f"criterion {criterion.name!r} needs statistics; pass calibration data")
    costs = unit_parameters(graph) if costs is None else costs
    entries = [replace(s, shape=s.layout.shape) if s.layout else s for s in graph.groups]
    evidence = [GroupSignals(s, tensors, statistics, costs[s.name], damages) for s in entries]
    scores: dict[str, Tensor] = {}
    for group, made in zip_longest(entries, criterion.scores(evidence)):
        if group is None or not isinstance(made, Tensor):
            raise UsageError(
                f"criterion {criterion.name!r} must yield one tensor for each of the "
                f"{len(graph.groups)} groups, but after {len(scores)} came "
                f"{'one too many' if group is None else type(made).__name__}"
            )
        values = made.detach().to("cpu", torch.float32)
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


def _in_units(evidence: Sequence[GroupSignals]) -> bool:
    """Return whether units are channels, heads or blocks, and not entries of weights."""
    return any(group.group.members or group.group.blocks for group in evidence)


def _costs(evidence: Sequence[GroupSignals]) -> list[Cost]:
    return [group.cost for group in evidence]


def _relevances(part: Part | None, evidence: Sequence[GroupSignals]) -> list[Maker]:
    part = part or ("sample" if _in_units(evidence) else "positive")
    return [partial(group.relevance, part) for group in evidence]


def _check(what: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UsageError(f"{what} {value!r} is not known; there are: {', '.join(known)}")


def _check_part(part: Part | None) -> None:
    if part is not None:
        _check("part", part, PARTS)


def _check_scale(scale: Scale | None) -> None:
    if scale is not None:
        _check("scale", scale, SCALES)
