"""Removing units for real: smaller tensors in the same modules, with their attributes true."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from flexrel.errors import UsageError
from flexrel.records import Plan, weight_of

_BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
_Plain = nn.Conv1d | nn.Conv2d | nn.Conv3d
Transposed = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d

Layer = nn.Linear | _Plain | Transposed


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers by name, tied ones once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def shrink_(model: nn.Module, plan: Plan) -> None:
    """Remove the plan's units from the model: every tensor that has a part of them shrinks.

    Args:
        model: the network that the plan's structure was read from, or a copy of it.
        plan: of a granularity whose units are removed for real.
    """
    tensors = named_tensors(model)
    kept: dict[tuple[str, int], Tensor] = {}
    for site in plan.structure.sites:
        gone = ~plan.masks[site.name]
        for part in site.slices if gone.any() else ():
            where = part.tensor, part.axis
            whole = torch.ones(tensors[part.tensor].shape[part.axis], dtype=torch.bool)
            kept.setdefault(where, whole)[part.index[gone].flatten()] = False
    cut: dict[str, Tensor] = {}
    for (name, axis), mask in kept.items():
        tensor = cut.get(name, tensors[name]).detach()
        cut[name] = tensor.index_select(axis, mask.nonzero().squeeze(1).to(tensor.device))
    for attribute in plan.structure.attributes:
        less = sum(
            each * int((~plan.masks[site]).sum())
            for site, each in attribute.units
            if site in plan.masks
        )
        if less:
            _reduce_(model.get_submodule(attribute.module), attribute.name, attribute.place, less)
    resize_(model, cut)


def _reduce_(module: nn.Module, name: str, place: int | None, less: int) -> None:
    value = getattr(module, name)
    if place is None:
        setattr(module, name, value - less)
    else:
        entries = list(value)
        entries[place] -= less
        setattr(module, name, type(value)(entries))


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
    for site in plan.structure.sites:
        gone = ~plan.masks[site.name]
        if not gone.any():
            continue
        if not site.slices:
            weight = tensors[weight_of(site.name)].detach()
            gone = site.layout.spread(gone) if site.layout else gone
            # times 0 would leave -0.0
            zeroed[weight_of(site.name)] = weight.masked_fill(gone.to(weight.device), 0)
        for part in site.slices:
            if part.reads or not readers:
                tensor = zeroed.get(part.tensor, tensors[part.tensor].detach())
                entries = part.index[gone].flatten().to(tensor.device)
                zeroed[part.tensor] = tensor.index_fill(part.axis, entries, 0)
    return zeroed


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
        vectors = (module.weight, module.bias, module.running_mean)
        module.num_features = next(len(v) for v in vectors if v is not None)
    elif isinstance(module, nn.GroupNorm) and module.weight is not None:
        module.num_channels = len(module.weight)
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = module.weight.shape
