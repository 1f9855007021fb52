"""What each layer of a network costs, dense and pruned, so that the parts add up to the whole."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Final

from torch import nn

from flexrel.core import cost
from flexrel.core.graph import Masks, PruningGraph
from flexrel.core.plan import layer_rows, named, owner_of
from flexrel_edge.format import describe

REST: Final = ""  # name of what is no layer's


@dataclass(frozen=True, slots=True)
class LayerCost:
    """What one layer with weights takes, and what is left of it.

    Attributes:
        name: as `LayerRow` has it; "" of all that has no weight of two axes, such as norms, and of
            what of the file and the multiply-adds is no layer's.
        width_dense: how many outputs it has; 0 of what is no layer's.
        width: how many of them are left.
        weights_dense: entries of its parameters of two axes or more.
        weights: of these, those that are left and not zero.
        macs_dense: multiply-adds of one sample.
        macs: likewise, of the pruned network.
        bytes_dense: in the packed file of the dense network.
        bytes: in that of the pruned one.
        reason: why it was left alone; "" where it was not.
    """

    name: str
    width_dense: int
    width: int
    weights_dense: int
    weights: int
    macs_dense: int
    macs: int
    bytes_dense: int
    bytes: int
    reason: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class WholeNetwork:
    """A network and its packed file."""

    network: nn.Module
    packed: bytes


def layer_costs(
    graph: PruningGraph, masks: Masks, dense: WholeNetwork, pruned: WholeNetwork
) -> tuple[LayerCost, ...]:
    """Return what each layer with weights takes, in the order of the network, and last the rest.

    Sums over them are the totals: all weights, multiply-adds, bytes of the packed file.

    Args:
        graph: of the dense network.
        masks: of the plan.
        dense: the network as it came.
        pruned: what the plan made of it.
    """
    of_weights = {name: shape for name, shape in graph.shapes.items() if len(shape) > 1}
    whole = _summed((name, prod(shape)) for name, shape in of_weights.items())
    left = _summed(
        (name, int(one.count_nonzero()))
        for name, one in pruned.network.named_parameters()
        if one.ndim > 1
    )
    sizes = {entry.name: entry.bytes for entry in describe(pruned.packed).tensors}
    before = _summed((entry.name, entry.bytes) for entry in describe(dense.packed).tensors)
    layers = [
        LayerCost(
            name=row.name,
            width_dense=row.width_dense,
            width=row.width,
            weights_dense=whole[row.name],
            weights=left.get(row.name, 0),
            macs_dense=row.macs_dense,
            macs=row.macs,
            bytes_dense=before.get(row.name, 0),
            bytes=row.bytes,
            reason=row.reason,
        )
        for row in layer_rows(graph, masks, sizes)
        if row.name in whole
    ]
    rest = LayerCost(
        name=REST,
        width_dense=0,
        width=0,
        weights_dense=0,
        weights=0,
        macs_dense=cost.macs(graph) - sum(one.macs_dense for one in layers),
        macs=cost.macs(graph, masks) - sum(one.macs for one in layers),
        bytes_dense=len(dense.packed) - sum(one.bytes_dense for one in layers),
        bytes=len(pruned.packed) - sum(one.bytes for one in layers),
    )
    return (*layers, rest)


def _summed(parts: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Return amounts of tensors added up by layer."""
    found: dict[str, int] = {}
    for tensor, amount in parts:
        name = named(owner_of(tensor))
        found[name] = found.get(name, 0) + amount
    return found
