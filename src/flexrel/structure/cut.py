"""Removing units for real: smaller tensors in the same modules, with their attributes true."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from flexrel.errors import UsageError
from flexrel.records import Plan, weight_of

_BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
Layer = nn.Linear | Convolution


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers by name, tied ones once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def shrink_(model: nn.Module, plan: Plan) -> None:
    """Remove the plan's channels from the model: every tensor that has a part of them shrinks.

    Args:
        model: the network that the plan's structure was read from, or a copy of it.
        plan: of granularity "channel".
    """
    tensors = named_tensors(model)
    cut: dict[str, Tensor] = {}
    for site in plan.structure.sites:
        kept = plan.masks[site.name].nonzero().squeeze(1)
        if len(kept) == site.units:
            continue
        for part in site.slices:
            tensor = cut.get(part.tensor, tensors[part.tensor]).detach()
            entries = (kept[:, None] * part.inner + torch.arange(part.inner)).flatten()
            cut[part.tensor] = tensor.index_select(part.axis, entries.to(tensor.device))
    resize_(model, cut)


def mask_(model: nn.Module, plan: Plan) -> None:
    """Zero the plan's units in the model; every shape stays.

    A channel is zeroed in all tensors that have a part of it, so that the result computes what
    the model with those channels removed computes.
    """
    tensors = named_tensors(model)
    with torch.no_grad():
        for site in plan.structure.sites:
            mask = plan.masks[site.name]
            if not site.slices:
                weight = tensors[weight_of(site.name)]
                weight.masked_fill_(~mask.to(weight.device), 0)  # times 0 would leave -0.0
                continue
            for part in site.slices:
                tensor = tensors[part.tensor]
                entries = mask.repeat_interleave(part.inner).to(tensor.device)
                shape = [1] * tensor.ndim
                shape[part.axis] = -1
                tensor.masked_fill_(~entries.view(shape), 0)


def resize_(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Replace parameters and buffers by tensors of other sizes, and keep attributes true.

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
    elif isinstance(module, Convolution):
        if module.groups > 1:  # depthwise: one group a channel, before and after
            module.groups = len(module.weight)
        module.out_channels = module.weight.shape[0]
        module.in_channels = module.weight.shape[1] * module.groups
    elif isinstance(module, _BatchNorm):
        vectors = (module.weight, module.bias, module.running_mean)
        module.num_features = next(len(v) for v in vectors if v is not None)
