"""What is known of the units of a group: what criteria make scores of."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from flexrel.core.cost import Cost
from flexrel.core.graph import (
    Protected,
    PruningGraph,
    PruningGroup,
    ResidualBlock,
    layer_of,
    weight_of,
)
from flexrel.core.measurement import Saliency
from flexrel.errors import UsageError
from flexrel.relevance import LayerRelevance, Part, RelevanceStats


@dataclass(frozen=True, slots=True, eq=False)
class GroupSignals:
    """What is known of one group's units. Everything is made on demand and freed after use."""

    group: PruningGroup
    tensors: Mapping[str, Tensor]  # of the dense network, by name
    statistics: RelevanceStats | None
    cost: Cost = 0.0  # what goes with one unit, or with each, of the resource that is short
    damages: Saliency | None = None

    def magnitude(self) -> Float[Tensor, "*units"]:
        """Return how large each unit's weights are, in weight units. Higher means keep.

        An element: its absolute value. A channel: the root mean square of the weights that make
        it (ours: the mean, not the sum, so that wide layers are no better than narrow ones);
        where several layers make it, their mean squares add up. A block: the root mean square of
        its weights.
        """
        if self.group.blocks:
            return torch.stack([self._size(block) for block in self.group.blocks])
        if not self.group.members:
            return self._tensor(weight_of(self.group.name)).abs()
        total = torch.zeros(self.group.units)
        for part in self.group.members:
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
            UsageError: the statistics lack a layer that the group needs.
        """
        if self.group.blocks:
            given = [[self._given(name, part) for name in b.makers] for b in self.group.blocks]
            return torch.tensor([sum(relevances) for relevances in given])
        if not self.group.members:
            return self._sums(self.group.name).parameter_relevance(part, torch.float32)
        arrived = [
            self._sums(layer_of(reader.tensor)).along(reader.axis, part)[reader.index].sum(dim=1)
            for reader in self.group.members
            if reader.reads
        ]
        return torch.stack(arrived).amax(dim=0).float()

    def damage(self) -> Float[Tensor, "*units"]:
        """Return how much of the outputs no refit can bring back, once a unit goes. Higher = keep.

        In squared outputs of the network, of one sample: see `flexrel.damage`.

        Raises:
            UsageError: it was not measured.
        """
        if self.damages is None or self.group.name not in self.damages:
            raise UsageError(
                f"what the removal of {self.group.name!r} damages was not measured; leave it alone "
                "with keep="
            )
        return self.damages[self.group.name]

    def _size(self, block: ResidualBlock) -> Tensor:
        tensors = [self._tensor(name) for name in block.tensors]
        weights = [tensor for tensor in tensors if tensor.ndim > 1] or tensors
        squares = torch.stack([weight.square().sum() for weight in weights]).sum()
        return (squares / sum(weight.numel() for weight in weights)).sqrt()

    def _given(self, layer: str, part: Part) -> float:
        return float(self._sums(layer).vectors(part)[1].sum())

    def _tensor(self, name: str) -> Tensor:
        return self.tensors[name].detach().float().cpu()

    def _sums(self, layer: str) -> LayerRelevance:
        if self.statistics is None or layer not in self.statistics:
            raise UsageError(
                f"the statistics have no relevance of {layer!r}; calibrate this very model"
            )
        return self.statistics[layer]


def without_unmeasured(graph: PruningGraph, statistics: RelevanceStats) -> PruningGraph:
    """Return the graph without the groups whose relevance was not measured, which it protects.

    Raises:
        ModelError: no group is left.
    """
    groups, protected = [], []
    for whole in graph.groups:
        group, passed = _measured_blocks(whole, statistics)
        protected += passed
        if group is None:
            continue
        missing = sorted(group.readers - statistics.keys())
        if missing and not group.blocks:
            reason = f"the relevance of {missing[0]} was not measured: none came to it"
            protected.append(Protected(group.name, reason))
        else:
            groups.append(group)
    return graph.only(groups, protected)


def _measured_blocks(
    group: PruningGroup, statistics: RelevanceStats
) -> tuple[PruningGroup | None, list[Protected]]:
    """Return the group with the blocks whose relevance was measured, and the others."""
    missing = {b.module: [n for n in b.makers if n not in statistics] for b in group.blocks}
    blocks = tuple(block for block in group.blocks if not missing[block.module])
    others = [
        Protected(name, f"the relevance of {layers[0]} was not measured: none came to it")
        for name, layers in missing.items()
        if layers
    ]
    if not group.blocks or not others:
        return group, []
    return (replace(group, shape=(len(blocks),), blocks=blocks) if blocks else None), others
