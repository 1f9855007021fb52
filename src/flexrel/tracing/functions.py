"""Functions of torch: what they are called, and what is inside those written in Python."""

from collections.abc import Callable, Iterable
from functools import lru_cache
from types import FunctionType
from typing import Any

import torch

Function = Callable[..., Any]


def flat(values: Iterable[Any]) -> list[Any]:
    """Return the values, with those of lists and tuples in place of these."""
    return [w for v in values for w in (v if isinstance(v, list | tuple) else (v,))]


_NO_VALUES = "__get__ size dim numel stride is_floating_point data_ptr element_size"
ASKS = frozenset(_NO_VALUES.split())


def name_of(func: Function) -> str:
    """Return the operation's name, the same for a function, a method and an ATen operation."""
    if isinstance(func, torch._ops.OpOverload | torch._ops.OpOverloadPacket):  # noqa: SLF001
        packet: Any = getattr(func, "overloadpacket", func)
        space, _, name = packet._qualified_op_name.rpartition("::")  # noqa: SLF001
        return name if space == "aten" else f"{space}::{name}"
    return str(getattr(func, "__name__", ""))


_OPERATORS = "add sub mul matmul truediv floordiv mod pow and or xor lshift rshift"
_IN_PLACE = frozenset(["__setitem__", *(f"__i{name}__" for name in _OPERATORS.split())])


def overwrites(name: str) -> bool:
    """Return whether the operation of that name writes over its first argument."""
    return (name.endswith("_") and not name.endswith("__")) or name in _IN_PLACE


@lru_cache(maxsize=1024)
def expanded(func: Function) -> Function | None:
    """Return a function of torch that is written in Python, so that what it calls is followed.

    Such a function first asks whether a mode wants to see it, and would ask again. The one
    returned is the same code, told that none does; what it calls still asks.
    """
    if not isinstance(func, FunctionType) or func.__module__ not in _PYTHON:
        return None
    if not _GUARDS & set(func.__code__.co_names):
        return None
    names = {**func.__globals__, **dict.fromkeys(_GUARDS, _nobody)}
    inside = FunctionType(func.__code__, names, func.__name__, func.__defaults__, func.__closure__)
    inside.__kwdefaults__ = func.__kwdefaults__
    return inside


_PYTHON = frozenset(("torch.nn.functional", "torch.functional"))
_GUARDS = frozenset(
    ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
)


def _nobody(*_: Any) -> bool:  # noqa: ANN401
    return False
