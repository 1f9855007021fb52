"""What a packed file holds of a network: its tensors, and numbers that no shape tells."""

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flexrel.errors import UsageError
from flexrel.structure import SizePlace
from flexrel_edge.format import Tensor as Stored
from flexrel_edge.records import Bfloat16

Numbers = Mapping[SizePlace, int]
_Mask = np.ndarray[Any, np.dtype[np.bool_]]
_SHOWN = 3  # names in a message
_NUMBER = re.compile(r"([^\[\]]+)(?:\[(\d{1,9})\])?")


def state_of(
    model: nn.Module, unsaved: Collection[str], *, keep_vars: bool = False
) -> dict[str, Any]:
    """Return the model's state dict, and those of its other buffers that are named."""
    state: dict[str, Any] = model.state_dict(keep_vars=keep_vars)
    more = {name: b for name, b in model.named_buffers() if name in unsaved and name not in state}
    return {**state, **more}


def check_casts(
    tensors: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype], source: str
) -> None:
    """Refuse values that another dtype can't hold: too large, or whole numbers that change.

    A fraction that a floating dtype rounds to its nearest value is no loss.

    Args:
        tensors: as they come.
        dtypes: that they are to become, by name.
        source: said in errors.

    Raises:
        UsageError: names up to three of the tensors, each with a value and what would become of it.
    """
    notes = []
    for name, dtype in dtypes.items():
        tensor = tensors[name]
        if dtype == tensor.dtype:
            continue
        lost = _lost(tensor, dtype)
        if lost.any():
            first = int(lost.argmax())
            value, cast = (t.flatten()[first].item() for t in (tensor, tensor.to(dtype)))
            notes.append(
                f"{name} ({_name(tensor.dtype)}) has {value}, which in the model's "
                f"{_name(dtype)} would be {cast}, and so {lost.sum()} of {lost.size} values"
            )
    if notes:
        more = "" if len(notes) <= _SHOWN else f"; and {len(notes) - _SHOWN} tensors more"
        raise UsageError(
            f"{source} does not fit the model: {'; '.join(notes[:_SHOWN])}{more}; "
            "give the model the dtypes of the file"
        )


def _lost(tensor: Tensor, dtype: torch.dtype) -> _Mask:
    """Return for each value, flat, whether it would be another, or no longer a finite one."""
    tensor = tensor.detach().cpu()
    cast = tensor.to(dtype)
    if tensor.is_floating_point() and dtype.is_floating_point:
        lost = np.isfinite(_plain(cast)) != np.isfinite(_plain(tensor))
    else:
        sign = (_plain(cast) < 0) != (_plain(tensor) < 0)
        lost = (_plain(cast.to(tensor.dtype)) != _plain(tensor)) | sign
    return np.asarray(lost).reshape(-1)


def _plain(tensor: Tensor) -> np.ndarray[Any, np.dtype[Any]]:
    """Return it for numpy, which lacks some floating dtypes; whole numbers stay exact."""
    return (tensor.double() if tensor.is_floating_point() else tensor).numpy()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def stored_as_is(tensor: Tensor) -> Stored:
    """Return the tensor as flexrel_edge has it."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return Bfloat16(tensor.view(torch.uint16).numpy())
    return tensor.numpy()


def written(numbers: Numbers) -> str:
    """Return `{"module": {"name": value, "name[place]": value}}`."""
    content: dict[str, dict[str, int]] = {}
    for number, value in numbers.items():
        content.setdefault(number.module, {})[str(number._replace(module=""))] = value
    return json.dumps(content)


def read(text: str) -> Numbers:
    """Return what `written` wrote.

    Raises:
        ValueError: it is something else.
    """
    numbers: dict[SizePlace, int] = {}
    for module, entries in json.loads(text).items():
        for key, value in entries.items():
            found = _NUMBER.fullmatch(key)
            if found is None or type(value) is not int:
                raise ValueError(f"{key!r} is {value!r}")
            name, place = found.groups()
            numbers[SizePlace(module, name, int(place) if place else None)] = value
    return numbers
