"""Values of JSON, each checked for what it should be before it is used; ValueError if it is not.

`what` says in the message whose value it is.
"""

import zlib
from base64 import b64decode
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flexrel_edge.records import is_text, show

MAX_COUNT = 2**40  # of any length or count
_ZLIB_RATIO = 1032  # no zlib stream expands further


def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of which no key is there twice; a hook of `json.loads`."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("it has a key twice")
    return found


def fields_of(value: object, what: str, *names: str) -> Sequence[Any]:
    """Return the values of an object that has these keys and no others."""
    if not isinstance(value, dict) or sorted(value) != sorted(names):
        found = sorted(value) if isinstance(value, dict) else value
        raise ValueError(f"{what} is {show(found)}, expected {', '.join(names)}")
    return [value[name] for name in names]


def list_in(value: object, what: str) -> list[Any]:
    """Return a list."""
    if not isinstance(value, list):
        raise ValueError(f"{what} is {show(value)}, expected a list")  # noqa: TRY004 - as all
    return value


def text_in(value: object, what: str) -> str:
    """Return a text that UTF-8 can carry."""
    if not isinstance(value, str) or not is_text(value):
        raise ValueError(f"{what} is {show(value)}, expected a text")
    return value


def count_in(value: object, what: str, least: int = 0) -> int:
    """Return a whole number from `least` to `MAX_COUNT`."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= MAX_COUNT:
        raise ValueError(f"{what} is {show(value)}, expected a whole number from {least}")
    return value


def pair_in(value: object, what: str) -> tuple[str, int]:
    """Return a name and a count."""
    entries = list_in(value, what)
    if len(entries) != 2:  # noqa: PLR2004 - it is a pair
        raise ValueError(f"{what} is {show(value)}, expected a name and a count")
    return text_in(entries[0], what), count_in(entries[1], what)


def run_in(value: object, below: int, what: str) -> range:
    """Return a run of positions below a number: `[start, stop]` or `[start, stop, step]`."""
    entries = list_in(value, f"a run of {what}")
    whole = all(type(entry) is int and abs(entry) <= MAX_COUNT for entry in entries)
    if not whole or len(entries) not in (2, 3) or entries[2:] == [0]:
        raise ValueError(f"{what} has a run {show(value)}")
    run = range(*entries)
    if not run or min(run[0], run[-1]) < 0 or max(run[0], run[-1]) >= below:
        raise ValueError(f"{what} has a run {show(value)}, of {below} positions")
    return run


def bits_in(value: object, units: int, what: str) -> Tensor:
    """Return `[units]`, bool: the mask that is packed eight to a byte, through zlib and base64."""
    wanted = -(-units // 8)
    try:
        data = b64decode(text_in(value, f"the mask of {what}"), validate=True)
        inflater = zlib.decompressobj()
        bits = inflater.decompress(data, min(wanted, len(data) * _ZLIB_RATIO) + 1)
    except (ValueError, zlib.error) as error:
        raise ValueError(f"the mask of {what} is damaged: {error}") from error
    if len(bits) != wanted or not inflater.eof or inflater.unused_data:
        raise ValueError(f"the mask of {what} has not the bits of {units} units")
    mask = np.unpackbits(np.frombuffer(bits, np.uint8)).astype(np.bool_)
    if mask[units:].any():
        raise ValueError(f"the mask of {what} has more bits than {units} units")
    return torch.from_numpy(mask[:units].copy())
