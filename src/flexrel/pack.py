"""Networks to packed files and back; the format itself is flexrel_edge's."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

import flexrel_edge
from flexrel.errors import PackError, UsageError
from flexrel.structure import resize_
from flexrel_edge.files import read_packed, replace_file
from flexrel_edge.records import Array

Values = Literal["float32", "float16"]
VALUES: tuple[Values, ...] = ("float32", "float16")


def encode(model: nn.Module, values: Values = "float32") -> bytes:
    """Return the packed file's bytes: the state of the model, losslessly, or in float16.

    Args:
        model: whose parameters and persistent buffers are packed; tied ones once.
        values: "float32" packs every tensor as it is; "float16" rounds float32 tensors.

    Raises:
        UsageError: an unknown precision, a value that float16 can't hold, or state that is no
            tensor.
    """
    if values not in VALUES:
        raise UsageError(f"values {values!r} is not known; there are: {', '.join(VALUES)}")
    first: dict[tuple[Any, ...], str] = {}
    arrays: dict[str, Any] = {}
    tied: dict[str, str] = {}
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):
            raise UsageError(f"{name} is a {type(tensor).__name__}; only tensors can be packed")
        where = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if tensor.numel() and where in first:
            tied[name] = first[where]
            continue
        first[where] = name
        arrays[name] = _array(name, tensor, values)
    metadata = {"tied": json.dumps(tied)} if tied else {}
    return flexrel_edge.encode(arrays, metadata=metadata)


def round_(model: nn.Module, values: Values) -> None:
    """Round the model's tensors, in place, to what its packed file will hold."""
    if values == "float16":
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                if tensor.dtype == torch.float32:
                    tensor.copy_(_half(name, tensor))


def pack(model: nn.Module, path: str | Path, values: Values = "float32") -> int:
    """Write the model to a packed file, whole or not at all; return its size in bytes.

    Args:
        model: as for `encode`.
        path: of the file; replaced if it is there.
        values: as for `encode`.
    """
    data = encode(model, values)
    replace_file(Path(path), data)
    return len(data)


def load(path: str | Path, into: nn.Module) -> nn.Module:
    """Return `into` with the packed weights: its shapes are cut to fit, then the weights copied.

    Args:
        path: of a packed file.
        into: the dense architecture, changed in place.

    Raises:
        UsageError: there is no such file, or its tensors do not fit the model; `into` is as
            it was.
        PackError: the file is damaged.
    """
    if not Path(path).is_file():
        raise UsageError(f"{path}: no such file")
    packed = read_packed(path)
    tensors = {name: _tensor(array) for name, array in packed.tensors.items()}
    try:
        tied = json.loads(packed.metadata.get("tied", "{}"))
        tensors |= {name: tensors[source] for name, source in tied.items()}
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise PackError(f"{path}: its list of tied tensors is damaged: {error}") from error
    fit(into, tensors, str(path))
    return into


def fit(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy weights into a model in place, its shapes cut first where they are larger.

    Args:
        model: the dense architecture.
        tensors: state of a network of the same names and the same or smaller shapes.
        source: said in errors.

    Raises:
        UsageError: names or shapes do not fit; the model is as it was.
    """
    state = model.state_dict()
    for what, names in (
        ("lacks", state.keys() - tensors.keys()),
        ("has, and the model has not,", tensors.keys() - state.keys()),
    ):
        if names:
            shown = ", ".join(sorted(names)[:3]) + (" ..." if len(names) > 3 else "")  # noqa: PLR2004
            raise UsageError(f"{source} does not fit the model: it {what} {shown}")
    tied: dict[int, str] = {}
    for name, slot in model.state_dict(keep_vars=True).items():
        other = tied.setdefault(id(slot), name)
        one, two = tensors[other], tensors[name]
        if one is not two and not torch.equal(one, two):
            raise UsageError(
                f"{source} does not fit the model: {other} and {name} differ in it, "
                "but are one tensor in the model"
            )
    smaller: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        have, want = tuple(state[name].shape), tuple(tensor.shape)
        if len(have) != len(want) or any(w > h for h, w in zip(have, want, strict=True)):
            raise UsageError(
                f"{source} does not fit the model: {name} is {list(want)}, "
                f"the model's is {list(have)}"
            )
        if have != want:
            smaller[name] = torch.empty(want, dtype=state[name].dtype, device=state[name].device)
    known = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    resize_(model, {name: tensor for name, tensor in smaller.items() if name in known})
    with torch.no_grad():
        for name, slot in model.state_dict().items():
            slot.copy_(tensors[name])


def _array(name: str, tensor: Tensor, values: Values) -> Array | flexrel_edge.Bfloat16:
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return flexrel_edge.Bfloat16(tensor.view(torch.uint16).numpy())
    if values == "float16" and tensor.dtype == torch.float32:
        tensor = _half(name, tensor)
    return tensor.numpy()


def _half(name: str, tensor: Tensor) -> Tensor:
    half = tensor.half()
    if bool((half.isinf() & tensor.isfinite()).any()):
        largest = float(tensor.abs().max())
        raise UsageError(f"{name} has a value of {largest:.3g}, which float16 can't hold")
    return half


def _tensor(array: Array | flexrel_edge.Bfloat16) -> Tensor:
    if isinstance(array, flexrel_edge.Bfloat16):
        return torch.from_numpy(array.bits).view(torch.bfloat16)
    return torch.from_numpy(array)
