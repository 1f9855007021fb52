"""What each layer of a network costs, dense and pruned, so that the parts add up to the whole."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Final

from torch import nn

from flexrel.core import cost
from flexrel.core.graph import Masks, PruningGraph, tensor_of
from flexrel.core.plan import changes
from flexrel_edge.format import describe

_OF_THE_MODEL: Final = ("weight", "bias")  # of a network that is one layer


@dataclass(frozen=True, slots=True)
class LayerUnits:
    """How many units a layer makes, and keeps."""

    kept: int
    of: int
    unit: str  # in the plural, as `GroupChange` has it


@dataclass(frozen=True, slots=True)
class LayerCost:
    """What one layer of the dense network takes, and what is left of it.

    Attributes:
        name: of the layer, or of a parameter that is no layer's; None: all that has no weight of
            two axes, such as norms, and what of the file and the multiply-adds is no layer's.
        units: that it makes and a plan can take, by group; none where its outputs all stay.
        weights_dense: entries of its parameters of two axes or more.
        weights: of these, those that are left and not zero.
        macs_dense: multiply-adds of one sample.
        macs: likewise, of the pruned network.
        bytes_dense: in the packed file of the dense network.
        bytes: in that of the pruned one.
        reason: why its outputs all stay; "" where they need not.
    """

    name: str | None
    units: tuple[LayerUnits, ...]
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
    owners = dict.fromkeys(_owner(name) for name, shape in graph.shapes.items() if len(shape) > 1)
    weights = _weights(pruned.network)
    macs_dense, macs = _products(graph, None), _products(graph, masks)
    bytes_dense, left = _file(dense.packed), _file(pruned.packed)
    units = _units(graph, masks)
    layers = [
        LayerCost(
            name=owner,
            units=tuple(units.get(owner, ())),
            weights_dense=sum(
                prod(shape)
                for name, shape in graph.shapes.items()
                if len(shape) > 1 and _owner(name) == owner
            ),
            weights=weights.get(owner, 0),
            macs_dense=macs_dense.get(owner, 0),
            macs=macs.get(owner, 0),
            bytes_dense=bytes_dense.get(owner, 0),
            bytes=left.get(owner, 0),
            reason=_reason(graph, owner),
        )
        for owner in owners
    ]
    rest = LayerCost(
        name=None,
        units=(),
        weights_dense=0,
        weights=0,
        macs_dense=cost.macs(graph) - sum(one.macs_dense for one in layers),
        macs=cost.macs(graph, masks) - sum(one.macs for one in layers),
        bytes_dense=len(dense.packed) - sum(one.bytes_dense for one in layers),
        bytes=len(pruned.packed) - sum(one.bytes for one in layers),
    )
    return (*layers, rest)


def _owner(tensor: str) -> str:
    """Return the layer that a tensor belongs to; of a parameter that is no layer's, its name."""
    module = tensor.rpartition(".")[0]
    return module or ("" if tensor in _OF_THE_MODEL else tensor)


def _summed(parts: Iterable[tuple[str, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for tensor, amount in parts:
        found[_owner(tensor)] = found.get(_owner(tensor), 0) + amount
    return found


def _weights(network: nn.Module) -> dict[str, int]:
    """Return how many entries of each layer's weights are not zero."""
    named = network.named_parameters()
    return _summed((name, int(one.count_nonzero())) for name, one in named if one.ndim > 1)


def _products(graph: PruningGraph, masks: Masks | None) -> dict[str, int]:
    """Return the multiply-adds of each layer's products with its weights."""
    shapes: Mapping[str, list[int]] = cost.shapes_left(graph, masks)
    return _summed((name, times * prod(shapes.get(name, [0]))) for name, times in graph.uses)


def _file(packed: bytes) -> dict[str, int]:
    """Return the bytes of each layer's tensors in a packed file."""
    return _summed((entry.name, entry.bytes) for entry in describe(packed).tensors)


def _units(graph: PruningGraph, masks: Masks) -> dict[str, list[LayerUnits]]:
    """Return the units that each layer makes; residual blocks, of several layers, are none's."""
    found: dict[str, list[LayerUnits]] = {}
    for group, change in zip(graph.groups, changes(graph, masks), strict=True):
        makers = [member.tensor for member in group.members if member.makes]
        if group.is_weight:
            makers = [tensor_of(group.name, graph.shapes)]
        for owner in dict.fromkeys(map(_owner, makers)):
            units = LayerUnits(change.kept, change.units, change.unit)
            found.setdefault(owner, []).append(units)
    return found


def _reason(graph: PruningGraph, owner: str) -> str:
    """Return why a layer's outputs all stay; that of a parameter of it stands for it."""
    reasons = {one.name: one.reason for one in graph.protected}
    inside = (name for name in reasons if owner and name.startswith(f"{owner}."))
    return reasons.get(owner) or reasons.get(next(inside, ""), "")
