"""Removing units for real: smaller tensors in the same modules, with their attributes true."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor, fx, nn

from flexrel.core.graph import PruningGroup, ResidualBlock, layer_of, weight_of
from flexrel.core.plan import Plan
from flexrel.errors import UsageError
from flexrel.structure.numbers import renumber_
from flexrel.structure.skip import skip_

_BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
_Plain = nn.Conv1d | nn.Conv2d | nn.Conv3d
Transposed = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d

Layer = nn.Linear | _Plain | Transposed

_NOTE = "_flexrel_cut"  # on a module: what of it a cut changed that its state does not tell


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers by name, tied ones once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def shrink_(model: nn.Module, plan: Plan) -> None:
    """Remove the plan's units from the model: every tensor that has a part of them shrinks.

    Args:
        model: the network that the plan's graph was read from, or a copy of it.
        plan: of a granularity whose units are removed for real.
    """
    tensors = named_tensors(model)
    for block in blocks_gone(plan):
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
            number = Number(attribute.module, attribute.name, attribute.place)
            set_number_(model, number, number_in(model, number) - less)
    shifts = absorbed(tensors, plan)
    resize_(model, cut)
    for layer, shift in shifts.items():
        rows = kept.get((weight_of(layer), 0))
        add_to_bias_(model.get_submodule(layer), shift if rows is None else shift[rows])
    if isinstance(model, fx.GraphModule):
        renumber_(model, plan)


def kept_positions(tensors: Mapping[str, Tensor], plan: Plan) -> dict[tuple[str, int], Tensor]:
    """Return which positions stay of each axis, by tensor and number, that loses any.

    Args:
        tensors: parameters and buffers by name, whole.
        plan: of units that are removed for real.
    """
    kept: dict[tuple[str, int], Tensor] = {}
    for group in plan.graph.groups:
        gone = ~plan.masks[group.name]
        for part in group.members if gone.any() else ():
            where = part.tensor, part.axis
            whole = torch.ones(tensors[part.tensor].shape[part.axis], dtype=torch.bool)
            kept.setdefault(where, whole)[part.index[gone].flatten()] = False
    return kept


def blocks_gone(plan: Plan) -> list[ResidualBlock]:
    """Return the blocks that the plan removes."""
    return [
        block
        for group in plan.graph.groups
        for unit, block in enumerate(group.blocks)
        if not plan.masks[group.name][unit]
    ]


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
        for part in group.members:
            if part.values is not None and bool(part.values[gone].any()):
                weight = tensors[part.tensor].detach().cpu().double()
                weight = weight.reshape(*weight.shape[:2], -1).sum(2)  # over kernel positions
                values = part.values[gone].flatten(0, 1)  # [entries, groups]
                by_group = weight[:, part.index[gone].flatten()].unflatten(0, (values.shape[1], -1))
                shift = torch.einsum("goe,eg->go", by_group, values).flatten()
                layer = layer_of(part.tensor)
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


class Number(NamedTuple):
    """Where a number is that the code of a module sizes axes by."""

    module: str  # as in `model.named_modules()`
    name: str
    place: int | None  # in a tuple or list; None: it is the number itself

    def __str__(self) -> str:
        place = "" if self.place is None else f"[{self.place}]"
        return f"{self.module}.{self.name}{place}".removeprefix(".")


def number_in(model: nn.Module, number: Number) -> int:
    """Return a number that a module of the model holds.

    Raises:
        UsageError: there is no such module, or it holds no such number.
    """
    held: Any = None
    with suppress(AttributeError):  # no such module
        held = vars(model.get_submodule(number.module)).get(number.name)
    if number.place is not None:
        inside = isinstance(held, tuple | list) and 0 <= number.place < len(held)
        held = held[number.place] if inside else None
    if not isinstance(held, int) or isinstance(held, bool):
        raise UsageError(f"the model holds no number {number}")
    return held


def set_number_(model: nn.Module, number: Number, value: int) -> None:
    """Change a number that a module of the model holds, and note it there for `changed`."""
    module = model.get_submodule(number.module)
    if not _told(module, number.name):
        _note_(module, number.name, number.place)
    if number.place is None:
        setattr(module, number.name, value)
    else:
        held = getattr(module, number.name)
        entries = [*held[: number.place], value, *held[number.place + 1 :]]
        made = getattr(held, "_make", type(held))  # a named tuple takes its entries one by one
        setattr(module, number.name, made(entries))


def changed(model: nn.Module) -> tuple[dict[Number, int], dict[str, Tensor]]:
    """Return what cuts changed in a model that its state does not tell.

    Returns:
        Numbers by their place, as they are now; and buffers that no state dict has, by name.
    """
    numbers: dict[Number, int] = {}
    buffers: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        for name, place in _noted(module):
            if name in module._buffers:  # noqa: SLF001 - as `named_buffers`, at no cost
                buffers[f"{path}.{name}".removeprefix(".")] = module.get_buffer(name)
            else:
                number = Number(path, name, place)
                numbers[number] = number_in(model, number)
    return numbers, buffers


def _told(module: nn.Module, name: str) -> bool:
    """Return whether `_tell_sizes_` will set the number."""
    if isinstance(module, _Plain):
        return name == "groups" and module.groups == module.in_channels == module.out_channels
    return isinstance(module, _BatchNorm) and name == "num_features" and bool(_vectors(module))


def _vectors(norm: _BatchNorm) -> list[Tensor]:
    vectors = (norm.weight, norm.bias, norm.running_mean)
    return [vector for vector in vectors if vector is not None]


def _noted(module: nn.Module) -> Iterator[tuple[str, int | None]]:
    yield from sorted(vars(module).get(_NOTE, ()), key=str)


def _note_(module: nn.Module, name: str, place: int | None = None) -> None:
    setattr(module, _NOTE, frozenset({*_noted(module), (name, place)}))  # copied with the module


def masked(
    tensors: Mapping[str, Tensor], plan: Plan, *, readers: bool = False
) -> dict[str, Tensor]:
    """Return new tensors, by name, in place of those that have a part of the plan's units: zeroed.

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
        if not (group.members or group.blocks):
            weight = tensors[weight_of(group.name)].detach()
            entries = gone_entries(group, plan).to(weight.device)
            zeroed[weight_of(group.name)] = weight.masked_fill(entries, 0)  # times 0 leaves -0.0
        for part in group.members:
            if part.reads or not readers:
                tensor = zeroed.get(part.tensor, tensors[part.tensor].detach())
                entries = part.index[gone].flatten().to(tensor.device)
                zeroed[part.tensor] = tensor.index_fill(part.axis, entries, 0)
    return zeroed


def gone_entries(group: PruningGroup, plan: Plan) -> Bool[Tensor, "..."]:
    """Return which entries of the group's weight a plan of zeros takes, of the weight's shape."""
    gone = ~plan.masks[group.name]
    return group.layout.spread(gone) if group.layout else gone


def mask_(model: nn.Module, plan: Plan) -> None:
    """Zero the plan's units in the model; every shape stays.

    A channel is zeroed in all tensors that have a part of it.
    """
    tensors = named_tensors(model)
    with torch.no_grad():
        for name, zeroed in masked(tensors, plan).items():
            tensors[name].copy_(zeroed)


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
                _note_(module, attribute)
            touched[id(module)] = module
    for module in touched.values():
        _tell_sizes_(module)


def _tell_sizes_(module: nn.Module) -> None:
    """Set the size attributes of a standard module to what its tensors are."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, _Plain):
        if module.groups == module.in_channels == module.out_channels:  # depthwise stays so
            module.groups = len(module.weight)
        module.out_channels = module.weight.shape[0]
        module.in_channels = module.weight.shape[1] * module.groups
    elif isinstance(module, Transposed):
        module.in_channels = module.weight.shape[0]
        module.out_channels = module.weight.shape[1] * module.groups
    elif isinstance(module, _BatchNorm):
        module.num_features = len(_vectors(module)[0])
    elif isinstance(module, nn.GroupNorm) and module.weight is not None:
        module.num_channels = len(module.weight)
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = module.weight.shape
