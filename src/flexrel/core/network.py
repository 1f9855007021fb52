"""A network as its owner has it, made plain: wrappers off, masks and norms folded; or refused."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from flexrel.core.folding import MASK, FoldedWeight, fold_, kept_results
from flexrel.core.running import duplicate, unwrapped
from flexrel.errors import ModelError
from flexrel_edge.records import STORAGE

_QUANTISED: Final = ("torch.ao.nn.quantized.", "torch.ao.nn.intrinsic.quantized.")
_SHOWN: Final = 3  # names


@dataclass(frozen=True, slots=True, eq=False)
class PlainNetwork:
    """A network that can be read.

    Attributes:
        network: a private copy of the model that was given, or of what its wrapper holds, without
            masks, norms and parametrizations of weights.
        warnings: what its owner has to know, each in a line.
    """

    network: nn.Module
    warnings: tuple[str, ...]


def plain_network(model: nn.Module) -> PlainNetwork:
    """Return a private copy of what is inside wrappers, with plain weights.

    Masks of torch.nn.utils.prune are applied; weight norm, spectral norm and parametrizations that
    are constant in evaluation mode are folded.

    Raises:
        ModelError: it is a TorchScript module or quantised already; or a tensor of it is on the
            meta device, sparse, of a class or dtype of its own, not initialised, or has NaN; or a
            weight can't be made. Says which, and what to do.
    """
    model = unwrapped(model)
    _check_modules(model)
    check_tensors(model)
    saved = model.state_dict(keep_vars=True)
    for name, tensor in _tensors(model):
        _check_values(name, tensor, saved=name in saved)
    network, folded = _copied(model)
    for name, parameter in network.named_parameters() if folded else ():
        _check_values(name, parameter, saved=True)
    return PlainNetwork(network, _warnings(folded))


def _warnings(folded: Sequence[FoldedWeight]) -> tuple[str, ...]:
    """Return what was done to weights that the model makes of others, a line a kind."""
    masks = [one.name for one in folded if one.constant and one.by == MASK]
    norms = [one for one in folded if one.constant and one.by != MASK]
    loose = [one for one in folded if not one.constant]
    lines = []
    if masks:
        lines.append(
            f"the network carries {len(masks)} masks of torch.nn.utils.prune ({_shown(masks)}); "
            "they were applied to a copy, whose weights have their plain names and the masks' zeros"
        )
    if norms:
        lines.append(
            f"the network makes {len(norms)} weights of other parameters ({_by(norms)}); they are "
            "constant in evaluation mode, so the copy that was worked on has them as plain weights"
        )
    if loose:
        lines.append(
            f"the network makes {len(loose)} weights anew at each call, and each time others "
            f"({_by(loose)}); they were left as they are"
        )
    return tuple(lines)


def _by(folded: Sequence[FoldedWeight]) -> str:
    """Return the names, after what made them."""
    names: dict[str, list[str]] = {}
    for one in folded:
        names.setdefault(one.by, []).append(one.name)
    return "; ".join(f"{by}: {_shown(some)}" for by, some in names.items())


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (" ..." if len(names) > _SHOWN else "")


def private_copy(model: nn.Module) -> nn.Module:
    """Return the network to be run and listened to: the model's own stays as it is.

    Parameters share the model's memory, and nothing writes there; buffers that `forward` writes,
    attributes, hooks and modes are the copy's own. So two threads may share the model. Weights
    that masks, norms and parametrizations make are plain ones in the copy.

    Raises:
        ModelError: it is a TorchScript module or quantised already, a tensor of it is sparse, of a
            class of its own or not initialised; it can't be copied, or a weight can't be made.
    """
    model = unwrapped(model)
    _check_modules(model)
    check_tensors(model)
    return _copied(model)[0]


def _copied(model: nn.Module) -> tuple[nn.Module, tuple[FoldedWeight, ...]]:
    shared = {
        id(p): p if p.is_inference() else nn.Parameter(p.detach(), p.requires_grad)
        for p in model.parameters()
        if type(p) is nn.Parameter
    }
    copied = duplicate(model, instead={**kept_results(model), **shared})
    return copied, fold_(copied)


def _check_modules(model: nn.Module) -> None:
    for name, module in model.named_modules():
        what = f"module {name!r}" if name else "the model"
        kind = f"{type(module).__module__}.{type(module).__qualname__}"
        if isinstance(module, torch.jit.ScriptModule):
            raise ModelError(
                f"{what} is TorchScript, whose code can't be cut or copied; pass the nn.Module "
                "that it was made of"
            )
        if kind.startswith(_QUANTISED):
            raise ModelError(
                f"{what} is quantised already ({kind}), its weights packed out of reach; pass the "
                "floating network that it was made of, values='int8' rounds that in the file"
            )


def check_tensors(model: nn.Module) -> None:
    """Check that the model has plain tensors; what is on the meta device may be one.

    Raises:
        ModelError: one is sparse, of a class of its own or not initialised.
    """
    for name, tensor in _tensors(model):
        if isinstance(tensor, nn.UninitializedParameter | nn.UninitializedBuffer):
            raise ModelError(f"{name} is not initialised yet; call the model once on a batch")
        if _is_own(type(tensor)):
            raise ModelError(
                f"{name} is a {type(tensor).__name__}, a tensor of a class of its own; pass a "
                "network of plain tensors: the one it was made of, or dequantize() or "
                "full_tensor() of each"
            )
        if tensor.layout != torch.strided:
            raise ModelError(
                f"{name} is of layout {tensor.layout}; make it dense with to_dense(): the packed "
                "file keeps no zeros anyway"
            )


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def _is_own(kind: type[Tensor]) -> bool:
    """Return whether tensors of the class do operations themselves, or can't be copied."""
    if kind.__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return True
    return kind is not Tensor and kind.__deepcopy__ is Tensor.__deepcopy__


def check_not_meta(model: nn.Module) -> None:
    """Check that the model's tensors have values.

    Raises:
        ModelError: one is on the meta device.
    """
    for name, tensor in _tensors(model):
        _check_there(name, tensor)


def _check_there(name: str, tensor: Tensor) -> None:
    if tensor.is_meta:
        raise ModelError(
            f"{name} is on the meta device, where tensors have no values; load the weights first, "
            "as with flexrel.load, or load_state_dict(..., assign=True)"
        )


def _check_values(name: str, tensor: Tensor, *, saved: bool) -> None:
    _check_there(name, tensor)
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
