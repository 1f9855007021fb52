"""A network as its owner has it, made plain: out of its wrappers, masks applied; or refused."""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from flexrel.core.running import duplicate, unwrapped
from flexrel.errors import ModelError
from flexrel_edge.records import STORAGE

_QUANTISED: Final = ("torch.ao.nn.quantized.", "torch.ao.nn.intrinsic.quantized.")
_ORIGINAL: Final = "_orig"  # ends the names of what torch.nn.utils.prune masks
_SHOWN: Final = 3  # masks


@dataclass(frozen=True, slots=True, eq=False)
class PlainNetwork:
    """A network that can be read.

    Attributes:
        network: a private copy of the model that was given, or of what its wrapper holds, without
            masks.
        warnings: what its owner has to know, each in a line.
    """

    network: nn.Module
    warnings: tuple[str, ...]


def plain_network(model: nn.Module) -> PlainNetwork:
    """Return a private copy of what is inside wrappers, masks of torch.nn.utils.prune applied.

    Raises:
        ModelError: it is a TorchScript module or quantised already; or a tensor of it is on the
            meta device, sparse, of a class or dtype of its own, not initialised, or has NaN. Says
            which, and what to do.
    """
    model = unwrapped(model)
    for name, module in model.named_modules():
        _check_module(name, module)
    saved = model.state_dict(keep_vars=True)
    every = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, tensor in every.items():
        _check_tensor(name, tensor, saved=name in saved)
    masks = _masks(model)
    if not masks:
        return PlainNetwork(private_copy(model), ())
    shown = ", ".join(masks[:_SHOWN]) + (" ..." if len(masks) > _SHOWN else "")
    warning = (
        f"the network carries {len(masks)} masks of torch.nn.utils.prune ({shown}); they were "
        "applied to a copy, whose weights have their plain names and the masks' zeros"
    )
    return PlainNetwork(unmasked(model), (warning,))


def private_copy(model: nn.Module) -> nn.Module:
    """Return the network to be run and listened to: the model's own stays as it is.

    Parameters share the model's memory, and nothing writes there; buffers that `forward` writes,
    attributes, hooks and modes are the copy's own. So two threads may share the model.
    """
    shared = {
        id(p): p if p.is_inference() else nn.Parameter(p.detach(), p.requires_grad)
        for p in model.parameters()
        if type(p) is nn.Parameter
    }
    return duplicate(unmasked(unwrapped(model)), instead=shared)


def unmasked(model: nn.Module) -> nn.Module:
    """Return a copy with the masks of torch.nn.utils.prune applied; the model if it has none."""
    masks = _masks(model)
    if not masks:
        return model
    products: dict[int, Tensor] = {}  # which torch refuses to copy
    for name in masks:
        path, _, attribute = name.rpartition(".")
        product = getattr(model.get_submodule(path), attribute)
        products[id(product)] = product.detach().clone()
    copied = duplicate(model, instead=products)
    for name in masks:
        path, _, attribute = name.rpartition(".")
        module = copied.get_submodule(path)
        order = [key.removesuffix(_ORIGINAL) for key, _ in _own(module)]
        torch_prune.remove(module, attribute)
        own = dict(_own(module))  # put back in the order of before the masks, as fingerprints have
        for key in sorted(own, key=lambda k: order.index(k.removesuffix(_ORIGINAL))):
            delattr(module, key)
            module.register_parameter(key, own[key])
        with torch.no_grad():
            module.get_parameter(attribute).add_(0.0)  # no minus zeros
    return copied


def _masks(model: nn.Module) -> list[str]:
    """Return the names that masked tensors have in the network without masks."""
    return [
        f"{name}.{key.removesuffix(_ORIGINAL)}".removeprefix(".")
        for name, module in model.named_modules()
        if torch_prune.is_pruned(module)
        for key, _ in _own(module)
        if key.endswith(_ORIGINAL)
        and isinstance(getattr(module, key.removesuffix(_ORIGINAL) + "_mask", None), Tensor)
    ]


def _own(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return list(module.named_parameters(recurse=False))


def _check_module(name: str, module: nn.Module) -> None:
    what = f"module {name!r}" if name else "the model"
    kind = f"{type(module).__module__}.{type(module).__qualname__}"
    if isinstance(module, torch.jit.ScriptModule):
        raise ModelError(
            f"{what} is TorchScript, whose code can't be cut or copied; pass the nn.Module that it "
            "was made of"
        )
    if kind.startswith(_QUANTISED):
        raise ModelError(
            f"{what} is quantised already ({kind}), its weights packed out of reach; pass the "
            "floating network that it was made of, values='int8' rounds that in the file"
        )


def _check_tensor(name: str, tensor: Tensor, *, saved: bool) -> None:
    if isinstance(tensor, nn.UninitializedParameter | nn.UninitializedBuffer):
        raise ModelError(f"{name} is not initialised yet; call the model once on a batch")
    if type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        raise ModelError(
            f"{name} is a {type(tensor).__name__}, a tensor of a class of its own; pass a network "
            "of plain tensors: the one it was made of, or dequantize() or full_tensor() of each"
        )
    if tensor.is_meta:
        raise ModelError(
            f"{name} is on the meta device, where tensors have no values; load the weights first, "
            "as with flexrel.load, or load_state_dict(..., assign=True)"
        )
    if tensor.layout != torch.strided:
        raise ModelError(
            f"{name} is of layout {tensor.layout}; make it dense with to_dense(): the packed file "
            "keeps no zeros anyway"
        )
    dtype = str(tensor.dtype).removeprefix("torch.")
    if saved and dtype not in STORAGE:
        raise ModelError(
            f"{name} is {dtype}; packed files hold {', '.join(STORAGE)}: convert it, as with "
            "to(torch.bfloat16) or torch.view_as_real"
        )
    if isinstance(tensor, nn.Parameter) and bool(tensor.isnan().any()):
        count, total = int(tensor.isnan().sum()), tensor.numel()
        raise ModelError(
            f"{name} has {count:,} NaN of {total:,} values; train it again from a checkpoint that "
            "has none"
        )
