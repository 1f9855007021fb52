"""What a packed file holds of a network: its tensors, and numbers that no shape tells."""

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flexrel.structure import SizePlace
from flexrel_edge.format import Tensor as Stored
from flexrel_edge.records import Bfloat16

Numbers = Mapping[SizePlace, int]
_NUMBER = re.compile(r"([^\[\]]+)(?:\[(\d{1,9})\])?")


def state_of(
    model: nn.Module, unsaved: Collection[str], *, keep_vars: bool = False
) -> dict[str, Any]:
    """Return the model's state dict, and those of its other buffers that are named."""
    state: dict[str, Any] = model.state_dict(keep_vars=keep_vars)
    more = {name: b for name, b in model.named_buffers() if name in unsaved and name not in state}
    return {**state, **more}


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
