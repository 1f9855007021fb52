"""From a plan to a network: zeros for weights and blocks, smaller tensors for channels."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool
from torch import Tensor, fx, nn

from flexrel.core.cost import removed_blocks
from flexrel.core.graph import (
    PruningGraph,
    PruningGroup,
    SizeAttribute,
    layer_of,
    tensor_of,
    weight_of,
)
from flexrel.core.network import private_copy
from flexrel.core.plan import Plan, check_plan
from flexrel.core.running import duplicate, fingerprint
from flexrel.core.zeros import forget_zeros_, note_zeros_
from flexrel.errors import UsageError
from flexrel.structure.modules import (
    SizePlace,
    note_,
    set_size_,
    size_at,
    skip_,
    tell_sizes_,
)
from flexrel.structure.program_sizes import resize_program_


def apply(model: nn.Module, plan: Plan) -> nn.Module:
    """Return a copy of the model with the plan carried out; the model itself is not changed.

    Args:
        model: that the plan's graph was read from, or another of the same architecture, with or
            without its masks and norms.
        plan: weights and blocks of them become zeros; channels, heads and residual blocks are
            removed for real. What follows it is carried out on what that leaves.

    Raises:
        UsageError: it is no plan, or of another network; says where they differ.
        ModelError: the model can't be copied.
    """
    check_plan(plan)
    model = private_copy(model)
    _check_fit(model, plan.graph)
    pruned = duplicate(model)
    if plan.graph.pattern.zeros:
        mask_(pruned, plan)
    else:
        shrink_(pruned, plan)
    return pruned if plan.then is None else apply(pruned, plan.then)


def _check_fit(model: nn.Module, graph: PruningGraph) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in named_tensors(model).items()}
    modules = {name for name, _ in model.named_modules()}
    parameters = {name: shapes[name] for name, _ in model.named_parameters()}
    for name in sorted(parameters.keys() ^ graph.shapes.keys()):
        lacks = "the model lacks" if name in graph.shapes else "the plan does not know"
        raise _stranger(f"{lacks} {name}")
    for name, shape in graph.shapes.items():
        if parameters[name] != shape:
            raise _stranger(f"{name} is {list(parameters[name])}, the plan's is {list(shape)}")
    for group in graph.groups:
        shape = group.layout.shape if group.layout else group.shape
        if graph.pattern.zeros and shapes.get(tensor_of(group.name, shapes)) != shape:
            raise _stranger(f"the model has no layer {group.name!r} of shape {list(shape)}")
        _check_members(group, shapes)
        for block in group.blocks:
            if block.module not in modules:
                raise _stranger(f"the model has no module {block.module!r}")
    for attribute in graph.attributes:
        _check_size(model, graph, attribute)
    if graph.fingerprint and fingerprint(model) != graph.fingerprint:
        raise _stranger("its tensors have the same shapes, but its modules are others")


def _check_members(group: PruningGroup, shapes: Mapping[str, tuple[int, ...]]) -> None:
    for member in group.members:
        shape, last = shapes.get(member.tensor), int(member.index.max())
        if shape is None:
            raise _stranger(f"the model lacks {member.tensor}")
        if member.axis >= len(shape) or last >= shape[member.axis]:
            place = f"position {last} along axis {member.axis}"
            raise _stranger(f"{member.tensor} is {list(shape)}, without {place}")


def _check_size(model: nn.Module, graph: PruningGraph, attribute: SizeAttribute) -> None:
    size = SizePlace(attribute.module, attribute.name, attribute.place)
    units = {group.name: group.units for group in graph.groups}
    least = sum(each * units.get(group, 0) for group, each in attribute.units)
    have = size_at(model, size)
    if have < least:
        raise _stranger(f"{size} is {have}, but units for {least} can go")


def _stranger(why: str) -> UsageError:
    return UsageError(f"the plan is of another network: {why}")


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers by name, tied ones once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def shrink_(model: nn.Module, plan: Plan) -> None:
    """Remove the plan's units from the model: every tensor that they are in shrinks.

    Args:
        model: the network that the plan's graph was read from, or a copy of it.
        plan: of a granularity whose units are removed for real.
    """
    forget_zeros_(model)
    tensors = named_tensors(model)
    for block in removed_blocks(plan.graph, plan.masks):
        skip_(model, block.module, block.place)
    kept = kept_positions(tensors, plan)
    cut: dict[str, Tensor] = {}
    for (name, axis), mask in kept.items():
        tensor = cut.get(name, tensors[name]).detach()
        cut[name] = tensor.index_select(axis, mask.nonzero().squeeze(1).to(tensor.device))
    for attribute in plan.graph.attributes:
        less = sum(
            each * int((~plan.masks[group]).sum())
            for group, each in attribute.units
            if group in plan.masks
        )
        if less:
            size = SizePlace(attribute.module, attribute.name, attribute.place)
            set_size_(model, size, size_at(model, size) - less)
    shifts = absorbed(tensors, plan)
    resize_(model, cut)
    for layer, shift in shifts.items():
        rows = kept.get((weight_of(layer), 0))
        add_to_bias_(model.get_submodule(layer), shift if rows is None else shift[rows])
    if isinstance(model, fx.GraphModule):
        resize_program_(model, plan)


def kept_positions(tensors: Mapping[str, Tensor], plan: Plan) -> dict[tuple[str, int], Tensor]:
    """Return which positions stay of each axis, by tensor and number, that loses any.

    Args:
        tensors: parameters and buffers by name, whole.
        plan: of units that are removed for real.
    """
    kept: dict[tuple[str, int], Tensor] = {}
    for group in plan.graph.groups:
        gone = ~plan.masks[group.name]
        for member in group.members if gone.any() else ():
            where = member.tensor, member.axis
            whole = torch.ones(tensors[member.tensor].shape[member.axis], dtype=torch.bool)
            kept.setdefault(where, whole)[member.index[gone].flatten()] = False
    return kept


def absorbed(tensors: Mapping[str, Tensor], plan: Plan) -> dict[str, Tensor]:
    """Return what the biases of layers take over from constant units that the plan removes.

    Args:
        tensors: parameters and buffers by name, whole.
        plan: says which units go.

    Returns:
        Layer -> `[out]`, float64, on the CPU; only those that took in something other than 0.
    """
    shifts: dict[str, Tensor] = {}
    for group in plan.graph.groups:
        gone = ~plan.masks[group.name].flatten()
        for member in group.members:
            if member.values is not None and bool(member.values[gone].any()):
                weight = tensors[member.tensor].detach().cpu().double()
                weight = weight.reshape(*weight.shape[:2], -1).sum(2)  # over kernel positions
                values = member.values[gone].flatten(0, 1)  # [entries, groups]
                by_group = weight[:, member.index[gone].flatten()].unflatten(
                    0, (values.shape[1], -1)
                )
                shift = torch.einsum("goe,eg->go", by_group, values).flatten()
                layer = layer_of(member.tensor)
                shifts[layer] = shifts.get(layer, 0) + shift
    return shifts


def add_to_bias_(layer: nn.Module, shift: Tensor) -> None:
    """Add to the layer's bias, and give it one if it has none."""
    weight = layer.get_parameter("weight")
    if layer.bias is None:
        layer.bias = nn.Parameter(shift.to(weight), requires_grad=weight.requires_grad)
    else:
        bias = layer.get_parameter("bias")
        value = (bias.detach() + shift.to(bias.device)).to(bias.dtype)
        layer.bias = nn.Parameter(value, requires_grad=bias.requires_grad)


def masked(
    tensors: Mapping[str, Tensor], plan: Plan, *, readers: bool = False
) -> dict[str, Tensor]:
    """Return new tensors, by name, in place of those that the plan's units are in.

    The entries of the units that go are zero in them.

    Args:
        tensors: parameters and buffers by name.
        plan: its units that go are zeroed.
        readers: zero only what reads a unit, which is enough for a network that computes what
            it does without it.
    """
    zeroed: dict[str, Tensor] = {}
    for group in plan.graph.groups:
        gone = ~plan.masks[group.name]
        if not gone.any():
            continue
        if group.is_weight:
            name = tensor_of(group.name, tensors)
            weight = tensors[name].detach()
            entries = gone_entries(group, plan).to(weight.device)
            zeroed[name] = weight.masked_fill(entries, 0)  # times 0 leaves -0.0
        for member in group.members:
            if member.reads or not readers:
                tensor = zeroed.get(member.tensor, tensors[member.tensor].detach())
                entries = member.index[gone].flatten().to(tensor.device)
                zeroed[member.tensor] = tensor.index_fill(member.axis, entries, 0)
    return zeroed


def gone_entries(group: PruningGroup, plan: Plan) -> Bool[Tensor, "..."]:
    """Return which entries of the group's weight a plan of zeros takes, of the weight's shape."""
    gone = ~plan.masks[group.name]
    return group.layout.spread(gone) if group.layout else gone


def gone_by(plan: Plan) -> dict[str, Tensor]:
    """Return which entries of each weight a plan sets to zero, by the weight's name."""
    return {
        tensor_of(group.name, plan.graph.shapes): gone_entries(group, plan)
        for group in plan.graph.groups
        if not plan.masks[group.name].all()
    }


def mask_(model: nn.Module, plan: Plan) -> None:
    """Zero the plan's units in the model; every shape stays.

    A channel is zeroed in all tensors that it is in.
    """
    tensors = named_tensors(model)
    zeros = masked(tensors, plan)
    with torch.no_grad():
        for name, zeroed in zeros.items():
            tensors[name].copy_(zeroed)
    note_zeros_(model, zeros)


def resize_(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Replace parameters and buffers by others, and keep attributes true.

    Args:
        model: changed in place; tied parameters stay tied.
        tensors: name as in `named_parameters()` or `named_buffers()` -> the new tensor, of the
            same number of axes.

    Raises:
        UsageError: a tensor has another number of axes than the one it replaces.
    """
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for attribute, tensor in own:
            owners.setdefault(id(tensor), []).append((module, attribute))
    old = named_tensors(model)
    touched: dict[int, nn.Module] = {}
    for name, tensor in tensors.items():
        if old[name].ndim != tensor.ndim:
            raise UsageError(
                f"{name} has {old[name].ndim} axes, so a tensor of shape {tuple(tensor.shape)} "
                "can't take its place"
            )
    for name, tensor in tensors.items():
        before = old[name]
        value: Tensor = tensor
        if isinstance(before, nn.Parameter):
            value = nn.Parameter(tensor, requires_grad=before.requires_grad)
        for module, attribute in owners[id(before)]:
            setattr(module, attribute, value)
            if attribute in module._non_persistent_buffers_set:  # noqa: SLF001 - told by nothing else
                note_(module, attribute)
            touched[id(module)] = module
    for module in touched.values():
        tell_sizes_(module)
