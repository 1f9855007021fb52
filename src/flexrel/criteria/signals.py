"""What is known of the units of a group: what criteria make scores of."""

from collections.abc import Container, Mapping
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
    tensor_of,
)
from flexrel.core.measurement import Saliency
from flexrel.errors import UsageError
from flexrel.relevance import LayerRelevance, Part, RelevanceStats


@dataclass(frozen=True, slots=True, eq=False)
class GroupSignals:
    """What is known of one group's units. Everything is made on demand and freed after use.

    Attributes:
        group: whose units they are.
        tensors: the dense network's parameters and buffers, by name.
        stats: its relevance; None if not measured.
        cost: what goes with one unit, or with each, of the resource that is short: parameters or
            multiply-adds; 0 of single weights.
        saliencies: of all groups, by name; None if not measured.
    """

    group: PruningGroup
    tensors: Mapping[str, Tensor]
    stats: RelevanceStats | None
    cost: Cost = 0.0
    saliencies: Saliency | None = None

    @property
    def single_weights(self) -> bool:
        """Whether a unit is one entry of a weight, and no channel, head or residual block."""
        return self.group.is_weight

    def magnitude(self) -> Float[Tensor, "*units"]:
        """Return how large each unit's weights are, in weight units. Higher means keep.

        A single weight: its absolute value. A channel or head: the root mean square of the weights
        that make it (ours: the mean, not the sum, so that wide layers are no better than narrow
        ones); where several layers make it, their mean squares add up. A residual block: the root
        mean square of its weights.
        """
        if self.group.blocks:
            return torch.stack([self._block_magnitude(block) for block in self.group.blocks])
        if self.single_weights:
            return self._tensor(tensor_of(self.group.name, self.tensors)).abs()
        total = torch.zeros(self.group.units)
        for member in self.group.members:
            if member.makes:
                rows = self._tensor(member.tensor).movedim(member.axis, 0).flatten(1)
                total += rows.square().mean(dim=1)[member.index].mean(dim=1)
        return total.sqrt()

    def relevance(self, part: Part | None = None) -> Float[Tensor, "*units"]:
        """Return how much each unit mattered to the outputs. Higher means keep.

        A single weight: `rel(w) = r_in + r_out` (arXiv 2405.13088). A channel or head: the
        relevance of its values where a reader takes them in, averaged over kernel positions; of
        several readers, the largest (ours; Yeom et al. 2021 score a channel by the relevance that
        arrives at it). A residual block: the relevance that the layers give out which make what it
        adds to its input.

        Args:
            part: of relevance that counts, as `LayerRelevance.vectors` has it: its "sum" (the
                paper's literal reading), the "positive" or "absolute" value of every term, or the
                absolute value of what a channel adds up to in each "sample". None takes what
                prunes best: "positive" for single weights, "sample" for all else.

        Raises:
            UsageError: the stats lack a layer that the group needs.
        """
        part = part or ("positive" if self.single_weights else "sample")
        if self.group.blocks:
            given = [
                sum(float(self._layer(maker).vectors(part)[1].sum()) for maker in block.makers)
                for block in self.group.blocks
            ]
            return torch.tensor(given, dtype=torch.float32)
        if self.single_weights:
            layers = [self._layer(name) for name in _layers_of(self.group, self.stats or {})]
            return torch.cat([one.parameter_relevance(part, torch.float32) for one in layers])
        arrived = [
            self._layer(layer_of(member.tensor)).along(member.axis, part)[member.index].sum(dim=1)
            for member in self.group.members
            if member.reads
        ]
        return torch.stack(arrived).amax(dim=0).float()

    def saliency(self) -> Float[Tensor, "*units"]:
        """Return what each unit's removal costs that no refit of its readers makes up for.

        Float64, in squared outputs of the network, of one sample. Higher means keep.

        Raises:
            UsageError: it was not measured.
        """
        if self.saliencies is None or self.group.name not in self.saliencies:
            raise UsageError(
                f"the saliency of {self.group.name!r} was not measured; leave it alone with keep="
            )
        return self.saliencies[self.group.name]

    def _block_magnitude(self, block: ResidualBlock) -> Tensor:
        tensors = [self._tensor(name) for name in block.tensors]
        weights = [tensor for tensor in tensors if tensor.ndim > 1] or tensors
        squares = torch.stack([weight.square().sum() for weight in weights]).sum()
        return (squares / sum(weight.numel() for weight in weights)).sqrt()

    def _tensor(self, name: str) -> Tensor:
        return self.tensors[name].detach().float().cpu()

    def _layer(self, layer: str) -> LayerRelevance:
        if self.stats is None or layer not in self.stats:
            raise UsageError(f"the stats have no relevance of {layer!r}; calibrate this very model")
        return self.stats[layer]


def _layers_of(group: PruningGroup, stats: Container[str]) -> list[str]:
    """Return the layers whose relevance a group needs.

    Of single weights it is their own, or the rows of it that the stats have, if these are all.
    """
    if group.members or group.name in stats:
        return sorted(group.readers)
    length = (group.layout.shape if group.layout else group.shape)[0]
    rows, first = [], 0
    while first < length:
        names = ((f"{group.name}[{first}:{end}]", end) for end in range(first + 1, length + 1))
        name, first = next(((name, end) for name, end in names if name in stats), ("", length))
        rows.append(name)
    return rows if all(rows) else [group.name]


def without_unmeasured(graph: PruningGraph, stats: RelevanceStats) -> PruningGraph:
    """Return the graph without the groups whose relevance was not measured, which it protects.

    Of residual blocks, which are all in one group, those alone are left out.

    Raises:
        ModelError: no group is left.
    """
    groups: list[PruningGroup] = []
    protected: list[Protected] = []
    for group in graph.groups:
        if group.blocks:
            needed = {block.module: list(block.makers) for block in group.blocks}
        else:
            needed = {group.name: _layers_of(group, stats)}
        missing = {name: [n for n in layers if n not in stats] for name, layers in needed.items()}
        protected += [
            Protected(name, f"the relevance of {layers[0]} was not measured: none came to it")
            for name, layers in missing.items()
            if layers
        ]
        if not any(missing.values()):
            groups.append(group)
        elif blocks := tuple(block for block in group.blocks if not missing[block.module]):
            groups.append(replace(group, shape=(len(blocks),), blocks=blocks))
    return graph.only(groups, protected)
