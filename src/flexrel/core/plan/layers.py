"""What a plan does to each layer: width, parameters and multiply-adds, dense and now."""

from collections.abc import Mapping
from dataclasses import dataclass

from flexrel.core import cost
from flexrel.core.graph import Masks, PruningGraph, tensor_of
from flexrel.core.plan.explain import named


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One module that holds parameters, or a parameter that is no module's weight.

    Attributes:
        name: as in `model.named_modules()`; "the model itself" for what is the whole network.
        width_dense: how many outputs it has: channels, neurons, features of a norm or a table.
        width: how many of them are left; 0 of a layer that went whole.
        parameters_dense: how many it has; of tied ones the first name counts.
        parameters: how many are left, zeros not counted.
        macs_dense: multiply-adds of one sample. Products without parameters, as between the
            tokens of attention, are no layer's.
        macs: how many are left.
        bytes: that its tensors take in the packed file.
        reason: why it was left alone; "" where it was not.
    """

    name: str
    width_dense: int
    width: int
    parameters_dense: int
    parameters: int
    macs_dense: int
    macs: int
    bytes: int
    reason: str


def layer_rows(graph: PruningGraph, masks: Masks, sizes: Mapping[str, int]) -> tuple[LayerRow, ...]:
    """Return what a plan does to each layer, in the order of the network.

    Args:
        graph: what could be pruned.
        masks: of its groups.
        sizes: bytes of each tensor in the packed file.
    """
    reasons = {owner_of(tensor_of(one.name, graph.shapes)): one.reason for one in graph.protected}
    left = cost.shapes_left(graph, masks)
    counts = cost.layer_parameters(graph, None), cost.layer_parameters(graph, masks)
    macs = cost.weight_macs(graph, None), cost.weight_macs(graph, masks)
    tensors: dict[str, list[str]] = {}
    for tensor in graph.shapes:
        tensors.setdefault(owner_of(tensor), []).append(tensor)
    held: dict[str, int] = {}
    for tensor, size in sizes.items():  # buffers too
        held[owner_of(tensor)] = held.get(owner_of(tensor), 0) + size
    rows = []
    for owner, own in tensors.items():
        tensor, axis = _outputs(graph, own)
        rows.append(
            LayerRow(
                name=named(owner),
                width_dense=graph.shapes[tensor][axis],
                width=left[tensor][axis] if tensor in left else 0,
                parameters_dense=sum(counts[0].get(name, 0) for name in own),
                parameters=sum(counts[1].get(name, 0) for name in own),
                macs_dense=sum(macs[0].get(name, 0) for name in own),
                macs=sum(macs[1].get(name, 0) for name in own),
                bytes=held.get(owner, 0),
                reason=reasons.get(owner, ""),
            )
        )
    return tuple(rows)


def owner_of(tensor: str) -> str:
    """Return the module that a tensor is in; of one in the network itself, its own name."""
    module, _, name = tensor.rpartition(".")
    return module if module or name in ("weight", "bias") else name


def _outputs(graph: PruningGraph, tensors: list[str]) -> tuple[str, int]:
    """Return the tensor of a layer, and its axis, that is as long as the layer has outputs."""
    biases = [name for name in tensors if name.rpartition(".")[2] == "bias"]
    if biases and len(graph.shapes[biases[0]]) == 1:
        return biases[0], 0
    made = {
        part.tensor: part.axis for group in graph.groups for part in group.members if part.makes
    }
    for tensor in tensors:
        if tensor in made:
            return tensor, made[tensor]
    first, multiplied = tensors[0], {name for name, _ in graph.uses}
    table = len(graph.shapes[first]) == 2 and first not in multiplied  # noqa: PLR2004 - axes
    return first, -1 if table else 0
