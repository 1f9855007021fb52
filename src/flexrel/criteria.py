"""From weights and statistics to scores: magnitude, relevance, and their blend. Higher = keep.

A criterion is any object that fits `Criterion`; there is nothing to inherit and nothing to
register. It is shown one `Evidence` a site and yields one tensor of scores for each, which must
be comparable over the whole network.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from flexrel.cost import Cost, unit_macs
from flexrel.curvature import Curvature, LayerCurvature
from flexrel.errors import UsageError
from flexrel.records import Block, Protected, Scores, Site, Structure, layer_of, weight_of
from flexrel.scales import SCALES, Maker, Scale, alone, scaled
from flexrel.statistics import PARTS, Part, SiteStatistics, Statistics

Blend = Literal["sum", "product"]
BLENDS: tuple[Blend, ...] = ("sum", "product")
_NETWORK: tuple[Scale, Scale] = ("network", "network")


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What is known of one site's units. Everything is made on demand and freed after use."""

    site: Site
    tensors: Mapping[str, Tensor]  # of the dense network, by name
    statistics: Statistics | None
    macs: Cost = 0.0  # of one sample, that go with one unit, or with each
    curvature: Curvature | None = None

    def magnitude(self) -> Float[Tensor, "*units"]:
        """Return how large each unit's weights are, in weight units. Higher means keep.

        An element: its absolute value. A channel: the root mean square of the weights that make
        it (ours: the mean, not the sum, so that wide layers are no better than narrow ones);
        where several layers make it, their mean squares add up. A block: the root mean square of
        its weights.
        """
        if self.site.blocks:
            return torch.stack([self._size(block) for block in self.site.blocks])
        if not self.site.slices:
            return self._tensor(weight_of(self.site.name)).abs()
        total = torch.zeros(self.site.units)
        for part in self.site.slices:
            if part.makes:
                rows = self._tensor(part.tensor).movedim(part.axis, 0).flatten(1)
                total += rows.square().mean(dim=1)[part.index].mean(dim=1)
        return total.sqrt()

    def relevance(self, part: Part) -> Float[Tensor, "*units"]:
        """Return how much each unit mattered to the outputs. Higher means keep.

        An element: `rel(w) = r_in + r_out` (arXiv 2405.13088). A channel: the relevance of its
        values where a reader takes them in, averaged over kernel positions; of several readers,
        the largest (ours; Yeom et al. 2021 score a channel by the relevance that arrives at it).
        A block: the relevance that the layers give out which make what it adds to its input.

        Raises:
            UsageError: the statistics lack a layer that the site needs.
        """
        if self.site.blocks:
            given = [[self._given(name, part) for name in b.makers] for b in self.site.blocks]
            return torch.tensor([sum(relevances) for relevances in given])
        if not self.site.slices:
            return self._sums(self.site.name).parameter_relevance(part, torch.float32)
        arrived = [
            self._sums(layer_of(reader.tensor)).along(reader.axis, part)[reader.index].sum(dim=1)
            for reader in self.site.slices
            if reader.reads
        ]
        return torch.stack(arrived).amax(dim=0).float()

    def curved(self, layer: str) -> LayerCurvature:
        """Return the curvature of a layer.

        Raises:
            UsageError: it was not measured.
        """
        if self.curvature is None or layer not in self.curvature:
            raise UsageError(
                f"the curvature of {layer!r} was not measured; leave it alone with keep="
            )
        return self.curvature[layer]

    def _size(self, block: Block) -> Tensor:
        tensors = [self._tensor(name) for name in block.tensors]
        weights = [tensor for tensor in tensors if tensor.ndim > 1] or tensors
        squares = torch.stack([weight.square().sum() for weight in weights]).sum()
        return (squares / sum(weight.numel() for weight in weights)).sqrt()

    def _given(self, layer: str, part: Part) -> float:
        return float(self._sums(layer).vectors(part)[1].sum())

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
    """Keep what is large: magnitude alone.

    Attributes:
        scale: that makes layers comparable, see `FlexRel`.
    """

    scale: Scale | None = None
    name: str = "magnitude"
    needs_relevance: bool = False

    def __post_init__(self) -> None:
        _check_scale(self.scale)

    def scores(self, evidence: Sequence[Evidence]) -> Iterator[Tensor]:
        """Yield each site's magnitudes on the scale."""
        scale = self.scale or ("mean" if _in_units(evidence) else "network")
        return alone([site.magnitude for site in evidence], scale, _costs(evidence))


@dataclass(frozen=True, slots=True)
class Relevance:
    """Keep what mattered in use: relevance alone.

    Attributes:
        part: of relevance: "sum" (the paper's literal reading), "positive", "absolute", or
            "sample", see `FlexRel`.
        scale: that makes layers comparable, see `FlexRel`.
    """

    part: Part | None = None
    scale: Scale | None = None
    name: str = "relevance"
    needs_relevance: bool = True

    def __post_init__(self) -> None:
        _check_part(self.part)
        _check_scale(self.scale)

    def scores(self, evidence: Sequence[Evidence]) -> Iterator[Tensor]:
        """Yield each site's relevance on the scale."""
        makers = _relevances(self.part, evidence)
        scale = self.scale or ("cost" if _in_units(evidence) else "network")
        return alone(makers, scale, _costs(evidence))


@dataclass(frozen=True, slots=True)
class FlexRel:
    """Keep what is large and mattered: `s = (1 - delta) * M + delta * R`, or its geometric twin.

    Attributes:
        delta: share of relevance, in [0, 1]; 0 orders as `Magnitude`, 1 as `Relevance` of the
            same part and scale. The product with delta 1 orders as relevance on scale "mean".
        blend: "sum", the paper's, of M and R on a common scale; or "product" (ours),
            `M^(1 - delta) * (R / mean of the layer's R)^delta`.
        part: of relevance: "sum", "positive" or "absolute" of every term, or "sample": the
            absolute value of what a channel adds up to in each sample. None takes what measures
            best: "positive" for elements, "sample" for channels and heads.
        scale: what M and R are brought to before they are blended: min-max over the "network",
            min-max over the "layer", multiples of the layer's "mean" absolute value, the "rank"
            among the layer's distinct values, or over the square root of the multiply-adds that
            go with a unit ("cost", ours). None takes what `benchmarks/signals.py` and
            `benchmarks/channels.py` found best: "network" for elements; for channels and heads
            "mean" for M, as a norm behind a layer makes the size of its weights arbitrary, and
            "cost" for R, which is comparable over layers as it is. A single signal, and M in
            the product, is not brought to [0, 1] by "network" but taken as it is: its order is
            the same.

    Source:
        arXiv 2405.13088, score of a parameter; the paper leaves the normalisation open.
    """

    delta: float = 0.5
    blend: Blend = "sum"
    part: Part | None = None
    scale: Scale | None = None
    needs_relevance: bool = True

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

    def scores(self, evidence: Sequence[Evidence]) -> Iterator[Tensor]:
        """Yield each site's blended scores."""
        if self.delta == 0:  # the same order, and nothing near is rounded to a tie
            return Magnitude(self.scale).scores(evidence)
        if self.delta == 1:
            return self._relevance(evidence).scores(evidence)
        return self._product(evidence) if self.blend == "product" else self._sum(evidence)

    def _relevance(self, evidence: Sequence[Evidence]) -> Relevance:
        """Return the criterion whose scores are the product's relevance, or the sum's alone."""
        if self.blend == "sum" or _in_units(evidence):
            return Relevance(self.part, self.scale)
        return Relevance(self.part, "mean")

    def _sum(self, evidence: Sequence[Evidence]) -> Iterator[Tensor]:
        default: tuple[Scale, Scale] = ("mean", "cost") if _in_units(evidence) else _NETWORK
        of_magnitude, of_relevance = (self.scale or scale for scale in default)
        costs = _costs(evidence)
        relevances = scaled(_relevances(self.part, evidence), of_relevance, costs)
        magnitudes = scaled([site.magnitude for site in evidence], of_magnitude, costs)
        for m, r in zip(magnitudes, relevances, strict=True):
            yield m.mul_(1 - self.delta).add_(r, alpha=self.delta)

    def _product(self, evidence: Sequence[Evidence]) -> Iterator[Tensor]:
        magnitudes = Magnitude(self.scale).scores(evidence)
        relevances = self._relevance(evidence).scores(evidence)
        for m, r in zip(magnitudes, relevances, strict=True):
            yield m.pow_(1 - self.delta).mul_(r.pow_(self.delta))


def without_unmeasured(structure: Structure, statistics: Statistics) -> Structure:
    """Return the structure without the sites whose relevance was not measured, which it protects.

    Raises:
        ModelError: no site is left.
    """
    sites, protected = [], []
    for whole in structure.sites:
        site, passed = _measured_blocks(whole, statistics)
        protected += passed
        if site is None:
            continue
        missing = sorted(site.readers - statistics.keys())
        if missing and not site.blocks:
            reason = f"the relevance of {missing[0]} was not measured: none came to it"
            protected.append(Protected(site.name, reason))
        else:
            sites.append(site)
    return structure.only(sites, protected)


def _measured_blocks(site: Site, statistics: Statistics) -> tuple[Site | None, list[Protected]]:
    """Return the site with the blocks whose relevance was measured, and the others."""
    missing = {b.module: [n for n in b.makers if n not in statistics] for b in site.blocks}
    blocks = tuple(block for block in site.blocks if not missing[block.module])
    others = [
        Protected(name, f"the relevance of {layers[0]} was not measured: none came to it")
        for name, layers in missing.items()
        if layers
    ]
    if not site.blocks or not others:
        return site, []
    return (replace(site, shape=(len(blocks),), blocks=blocks) if blocks else None), others


def scores_of(
    criterion: Criterion,
    structure: Structure,
    tensors: Mapping[str, Tensor],
    statistics: Statistics | None,
    curvature: Curvature | None = None,
) -> Scores:
    """Return the criterion's scores for every site of the structure, checked.

    Args:
        criterion: makes them.
        structure: has the sites.
        tensors: the dense network's parameters and buffers, by name.
        statistics: of the dense network; None where the criterion needs none.
        curvature: likewise.

    Returns:
        Site name -> float32 scores of the site's shape, on the CPU. Higher means keep. A block's is
        the mean of its weights' (the reduction); units that never change have the lowest there is.

    Raises:
        UsageError: the statistics are missing, or the criterion made a NaN or a wrong shape.
    """
    if criterion.needs_relevance and statistics is None:
        raise UsageError(f"criterion {criterion.name!r} needs statistics; pass calibration data")
    macs = unit_macs(structure)
    entries = [replace(s, shape=s.layout.shape) if s.layout else s for s in structure.sites]
    evidence = [Evidence(s, tensors, statistics, macs[s.name], curvature) for s in entries]
    scores: dict[str, Tensor] = {}
    for site, made in zip_longest(entries, criterion.scores(evidence)):
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
        if site.constant is not None:  # nothing is lost with them, whatever the criterion
            values = values.masked_fill(site.constant, -torch.inf)
        scores[site.name] = site.layout.means(values) if site.layout else values
    return scores


def _in_units(evidence: Sequence[Evidence]) -> bool:
    """Return whether units are channels, heads or blocks, and not entries of weights."""
    return any(site.site.slices or site.site.blocks for site in evidence)


def _costs(evidence: Sequence[Evidence]) -> list[Cost]:
    return [site.macs for site in evidence]


def _relevances(part: Part | None, evidence: Sequence[Evidence]) -> list[Maker]:
    part = part or ("sample" if _in_units(evidence) else "positive")
    return [partial(site.relevance, part) for site in evidence]


def _check(what: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UsageError(f"{what} {value!r} is not known; there are: {', '.join(known)}")


def _check_part(part: Part | None) -> None:
    if part is not None:
        _check("part", part, PARTS)


def _check_scale(scale: Scale | None) -> None:
    if scale is not None:
        _check("scale", scale, SCALES)
