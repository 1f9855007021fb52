"""What is known of the units of a site: what criteria make scores of."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from flexrel.cost import Cost
from flexrel.errors import UsageError
from flexrel.records import Block, Damages, Protected, Site, Structure, layer_of, weight_of
from flexrel.statistics import Part, SiteStatistics, Statistics


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What is known of one site's units. Everything is made on demand and freed after use."""

    site: Site
    tensors: Mapping[str, Tensor]  # of the dense network, by name
    statistics: Statistics | None
    cost: Cost = 0.0  # what goes with one unit, or with each, of the resource that is short
    damages: Damages | None = None

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

    def damage(self) -> Float[Tensor, "*units"]:
        """Return how much of the outputs no refit can bring back, once a unit goes. Higher = keep.

        In squared outputs of the network, of one sample: see `flexrel.damage`.

        Raises:
            UsageError: it was not measured.
        """
        if self.damages is None or self.site.name not in self.damages:
            raise UsageError(
                f"what the removal of {self.site.name!r} damages was not measured; leave it alone "
                "with keep="
            )
        return self.damages[self.site.name]

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
