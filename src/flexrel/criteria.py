"""From weights and statistics to scores: magnitude, relevance, and their blend. Higher = keep.

A criterion is any object that fits `Criterion`; there is nothing to inherit and nothing to
register. It is shown one `Evidence` a site and yields one tensor of scores for each, which must
be comparable over the whole network.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from flexrel.errors import UsageError
from flexrel.records import Scores, Site, Structure, layer_of, weight_of
from flexrel.statistics import PARTS, Part, SiteStatistics, Statistics

Scale = Literal["network", "layer", "rank"]
SCALES: tuple[Scale, ...] = ("network", "layer", "rank")
Blend = Literal["sum", "product"]
BLENDS: tuple[Blend, ...] = ("sum", "product")


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What is known of one site's units. Everything is made on demand and freed after use."""

    site: Site
    tensors: Mapping[str, Tensor]  # of the dense network, by name
    statistics: Statistics | None

    def magnitude(self) -> Float[Tensor, "*units"]:
        """Return how large each unit's weights are, in weight units. Higher means keep.

        An element: its absolute value. A channel: the root mean square of the weights that make
        it (ours: the mean, not the sum, so that it can be compared between layers); where several
        layers make it, their mean squares add up.
        """
        if not self.site.slices:
            return self._tensor(weight_of(self.site.name)).abs()
        total = torch.zeros(self.site.units)
        for part in self.site.slices:
            if part.role == "producer":
                rows = self._tensor(part.tensor).movedim(part.axis, 0).flatten(1)
                total += rows.square().mean(dim=1)
        return total.sqrt()

    def relevance(self, part: Part) -> Float[Tensor, "*units"]:
        """Return how much each unit mattered to the outputs. Higher means keep.

        An element: `rel(w) = r_in + r_out` (arXiv 2405.13088). A channel: the relevance of its
        values as its readers take them in, averaged over kernel positions and summed over
        readers (ours; Yeom et al. 2021 score a channel by the relevance that arrives at it).

        Raises:
            UsageError: the statistics lack a layer that the site needs.
        """
        if not self.site.slices:
            return self._sums(self.site.name).parameter_relevance(part, torch.float32)
        total = torch.zeros(self.site.units, dtype=torch.float64)
        for reader in self.site.slices:
            if reader.role != "consumer":
                continue
            inputs, _ = self._sums(layer_of(reader.tensor)).vectors(part)
            stripes = inputs.unflatten(0, (self.site.units, reader.inner))
            total += stripes.sum(dim=1).view(self.site.units, -1).mean(dim=1)
        return total.float()

    def _tensor(self, name: str) -> Tensor:
        return self.tensors[name].detach().float().cpu()

    def _sums(self, layer: str) -> SiteStatistics:
        if self.statistics is None or layer not in self.statistics:
            raise UsageError(
                f"the statistics have no relevance of {layer!r}; calibrate this very model"
            )
        return self.statistics[layer]


@runtime_checkable
class Criterion(Protocol):
    """What `prune` asks of a criterion."""

    @property
    def name(self) -> str:
        """Name in plans and reports."""

    @property
    def needs_relevance(self) -> bool:
        """Whether the evidence must have statistics."""

    def scores(self, evidence: Sequence[Evidence]) -> Iterator[Tensor]:
        """Yield one tensor of scores for each site, of the site's shape. Higher means keep."""


@dataclass(frozen=True, slots=True)
class Magnitude:
    """Keep what is large: the magnitude alone, as it is, over the whole network."""

    name: str = "magnitude"
    needs_relevance: bool = False

    def scores(self, evidence: Sequence[Evidence]) -> Iterator[Tensor]:
        """Yield each site's magnitudes."""
        return (site.magnitude() for site in evidence)


@dataclass(frozen=True, slots=True)
class Relevance:
    """Keep what mattered in use: relevance alone.

    Attributes:
        part: of relevance: "sum" (the paper's literal reading), "positive" or "absolute".
        scale: "network" compares relevance as it is; "layer" and "rank" see `FlexRel`.
    """

    part: Part = "positive"
    scale: Scale = "network"
    name: str = "relevance"
    needs_relevance: bool = True

    def __post_init__(self) -> None:
        _check("part", self.part, PARTS)
        _check("scale", self.scale, SCALES)

    def scores(self, evidence: Sequence[Evidence]) -> Iterator[Tensor]:
        """Yield each site's relevance, as it is or on the common scale."""
        if self.scale == "network":
            return (site.relevance(self.part) for site in evidence)
        return _scaled([partial(site.relevance, self.part) for site in evidence], self.scale)


@dataclass(frozen=True, slots=True)
class FlexRel:
    """Keep what is large and mattered: `s = (1 - delta) * M + delta * R`, or its geometric twin.

    Attributes:
        delta: share of relevance, in [0, 1]; 1 orders as `Relevance` of the same part and scale,
            0 as `Magnitude` (with scale "layer" or "rank": within a layer). The product with
            delta 1 orders as relevance divided by its layer's mean.
        blend: "sum", the paper's, of M and R on a common scale; or "product" (ours),
            `M^(1 - delta) * (R / mean of the layer's R)^delta`, which needs no common scale.
        part: of relevance: "sum", "positive" or "absolute".
        scale: what brings M and R to [0, 1] for the sum: min-max over the "network", min-max
            over the "layer", or the "rank" among the layer's distinct values.

    Source:
        arXiv 2405.13088, score of a parameter; the paper leaves the normalisation open.
    """

    delta: float = 0.5
    blend: Blend = "sum"
    part: Part = "positive"
    scale: Scale = "network"
    needs_relevance: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.delta <= 1:
            raise UsageError(f"delta is {self.delta!r}; it is the share of relevance, in [0, 1]")
        _check("blend", self.blend, BLENDS)
        _check("part", self.part, PARTS)
        _check("scale", self.scale, SCALES)
        if self.blend == "product" and self.part == "sum":
            raise UsageError(
                "blend='product' needs relevance without a sign: part='positive' or 'absolute'"
            )

    @property
    def name(self) -> str:
        """Name in plans and reports."""
        return f"flexrel:{self.delta:g}" + (":product" if self.blend == "product" else "")

    def scores(self, evidence: Sequence[Evidence]) -> Iterator[Tensor]:
        """Yield each site's blended scores."""
        if self.blend == "product":
            yield from (self._product(site) for site in evidence)
            return
        if self.delta == 1:
            yield from Relevance(self.part, self.scale).scores(evidence)
            return
        if self.delta == 0 and self.scale == "network":  # scaling would round near values to ties
            yield from Magnitude().scores(evidence)
            return
        relevances = _scaled([partial(site.relevance, self.part) for site in evidence], self.scale)
        magnitudes = _scaled([site.magnitude for site in evidence], self.scale)
        for m, r in zip(magnitudes, relevances, strict=True):
            yield m.mul_(1 - self.delta).add_(r, alpha=self.delta)

    def _product(self, site: Evidence) -> Tensor:
        relevance = site.relevance(self.part)
        mean = relevance.mean()
        if mean > 0:
            relevance /= mean
        return relevance.pow_(self.delta).mul_(site.magnitude().pow_(1 - self.delta))


def scores_of(
    criterion: Criterion,
    structure: Structure,
    tensors: Mapping[str, Tensor],
    statistics: Statistics | None,
) -> Scores:
    """Return the criterion's scores for every site of the structure, checked.

    Args:
        criterion: makes them.
        structure: has the sites.
        tensors: the dense network's parameters and buffers, by name.
        statistics: of the dense network; None where the criterion needs none.

    Returns:
        Site name -> float32 scores of the site's shape, on the CPU. Higher means keep.

    Raises:
        UsageError: the statistics are missing, or the criterion made a NaN or a wrong shape.
    """
    if criterion.needs_relevance and statistics is None:
        raise UsageError(f"criterion {criterion.name!r} needs statistics; pass calibration data")
    evidence = [Evidence(site, tensors, statistics) for site in structure.sites]
    scores: dict[str, Tensor] = {}
    for site, made in zip_longest(structure.sites, criterion.scores(evidence)):
        if site is None or not isinstance(made, Tensor):
            raise UsageError(
                f"criterion {criterion.name!r} must yield one tensor for each of the "
                f"{len(structure.sites)} sites, but after {len(scores)} came "
                f"{'one too many' if site is None else type(made).__name__}"
            )
        values = made.detach().to("cpu", torch.float32)
        if tuple(values.shape) != site.shape or bool(values.isnan().any()):
            found = f"{int(values.isnan().sum())} NaN in shape {tuple(values.shape)}"
            raise UsageError(
                f"criterion {criterion.name!r} scored {site.name!r} with {found}; "
                f"it must give one number for each unit of {site.shape}"
            )
        scores[site.name] = values
    return scores


def _scaled(makers: Sequence[Callable[[], Tensor]], scale: Scale) -> Iterator[Tensor]:
    """Yield what each maker makes, on a common scale; "network" makes everything twice.

    Making it twice is cheaper than keeping it: one layer is in memory at a time.
    """
    if scale == "rank":
        yield from (_ranks(make()) for make in makers)
        return
    low, high = _range(makers) if scale == "network" else (0.0, 0.0)
    for make in makers:
        values = make()
        if scale == "layer":
            low, high = (float(bound) for bound in values.aminmax())
        yield values.sub_(low).div_(high - low if high > low else 1.0)


def _range(makers: Sequence[Callable[[], Tensor]]) -> tuple[float, float]:
    bounds = [make().aminmax() for make in makers]
    return min(float(b.min) for b in bounds), max(float(b.max) for b in bounds)


def _ranks(values: Tensor) -> Tensor:
    distinct, index = torch.unique(values, return_inverse=True)
    ranks: Tensor = index.to(torch.float32) / max(len(distinct) - 1, 1)
    return ranks


def _check(what: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UsageError(f"{what} {value!r} is not known; there are: {', '.join(known)}")
