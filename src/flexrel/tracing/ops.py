"""Operations of torch as a network runs them, and a recorder that sees every one.

A mode of torch's function overrides sees every call of a torch operation, from modules, functions,
methods and operators alike, before autograd does.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

Function = Callable[..., Any]

NORMS: Mapping[str, str] = {  # name -> its arguments
    "batch_norm": "input weight bias running_mean running_var training momentum eps",
    "instance_norm": "input weight bias running_mean running_var use_input_stats momentum eps",
    "group_norm": "input num_groups weight bias eps",
    "layer_norm": "input normalized_shape weight bias eps",
    "rms_norm": "input normalized_shape weight eps",
}
_ADDS = frozenset(["add", "add_", "__add__", "__radd__", "__iadd__"])
_SCALES = frozenset(["mul", "mul_", "__mul__", "__rmul__", "__imul__"])
_CHANNELWISE = _SCALES | {"batch_norm", "dropout", "feature_dropout"}
_OPERATORS = "add sub mul matmul truediv floordiv mod pow and or xor lshift rshift"
_IN_PLACE = frozenset(["__setitem__", *(f"__i{name}__" for name in _OPERATORS.split())])
_ASKS = "__get__ size dim numel stride is_floating_point data_ptr element_size"
_NO_VALUES = frozenset(_ASKS.split())
_UNSEEN = ("_assert", "sym_")  # of an exported program: no use of a tensor's values


@dataclass(frozen=True, slots=True, eq=False)
class Op:
    """One call of an operation, to be done again with another tensor in the place of one.

    Attributes:
        name: the same for a function, a method and an ATen operation.
        func: what was called.
        args: by place.
        kwargs: by name.
    """

    name: str
    func: Function
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def given(self) -> list[Tensor]:
        """Return all tensors that go in, also those in lists and tuples."""
        values = (*self.args, *self.kwargs.values())
        return [
            tensor
            for value in values
            for tensor in (value if isinstance(value, list | tuple) else (value,))
            if isinstance(tensor, Tensor)
        ]

    def named(self, names: str) -> dict[str, Any]:
        """Return the arguments by name, where `names` are those that may be given by place."""
        return dict(zip(names.split(), self.args, strict=False)) | dict(self.kwargs)

    def norm_arguments(self) -> dict[str, Any]:
        """Return the arguments of a norm by name; those not given are None."""
        return dict.fromkeys(NORMS[self.name].split()) | self.named(NORMS[self.name])

    def again(self, old: Tensor, new: Tensor) -> Tensor:
        """Return what the operation makes with `new` in the place of `old`."""

        def swapped(value: Any) -> Any:  # noqa: ANN401
            return new if value is old else value

        kwargs = {name: swapped(value) for name, value in self.kwargs.items()}
        result: Tensor = self.func(*map(swapped, self.args), **kwargs)
        return result

    @property
    def writes(self) -> bool:
        """Whether it writes its result over what goes in first."""
        by_name = self.name.endswith("_") and not self.name.endswith("__")
        return by_name or self.name in _IN_PLACE

    def continues(self, tensor: Tensor, axis: int) -> bool:
        """Return whether it does a fixed thing to each channel of the tensor, and no more.

        Args:
            tensor: that goes in.
            axis: of it that counts channels.
        """
        if self.name not in _CHANNELWISE:
            return False
        others = [value for value in self.given() if value is not tensor]
        if self.name in _SCALES:  # by a number a channel, and none a sample or position
            if len(tensor) == 1 and any(other.ndim == tensor.ndim for other in others):
                return False  # of one sample, those look like a number a channel
            spare = (1,) * tensor.ndim
            shapes = [(*spare[other.ndim :], *other.shape) for other in others]
            return all(o.numel() == s[axis] for o, s in zip(others, shapes, strict=True))
        return self.name != "batch_norm" or is_fixed(self.name, self.norm_arguments())

    def adds(self, tensor: Tensor) -> Tensor | None:
        """Return the tensor of the same shape that it adds to this one, if that is what it does."""
        plain = self.kwargs.get("alpha", 1) == 1 and len(self.args) == 2  # noqa: PLR2004
        if self.name not in _ADDS or not plain:
            return None
        others = [value for value in self.given() if value is not tensor]
        return others[0] if len(others) == 1 and others[0].shape == tensor.shape else None


def is_fixed(norm: str, arguments: Mapping[str, Any]) -> bool:
    """Return whether a norm's mean and scale are fixed numbers, not made of its input."""
    measures = {"batch_norm": "training", "instance_norm": "use_input_stats"}
    return norm in measures and not arguments[measures[norm]]


class OpRecorder(TorchFunctionMode):
    """Sees every call of an operation, also those inside torch's own Python functions."""

    def __torch_function__(
        self,
        func: Function,
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - as the operation
        """Run one operation of the model."""
        del types
        name = operation_name(func)
        if name in _NO_VALUES or name.startswith(_UNSEEN):
            return func(*args, **(kwargs or {}))
        if (inside := _expanded(func)) is not None:
            with self:
                return inside(*args, **(kwargs or {}))
        return self.run(Op(name, func, args, kwargs or {}))

    def run(self, op: Op) -> Any:  # noqa: ANN401
        """Run the operation and return its result; a recorder adds what it does about it."""
        return op.func(*op.args, **op.kwargs)


def operation_name(func: Function) -> str:
    """Return the operation's name, the same for a function, a method and an ATen operation."""
    if isinstance(func, torch._ops.OpOverload | torch._ops.OpOverloadPacket):  # noqa: SLF001
        packet: Any = getattr(func, "overloadpacket", func)
        space, _, name = packet._qualified_op_name.rpartition("::")  # noqa: SLF001
        return name if space == "aten" else f"{space}::{name}"
    return str(getattr(func, "__name__", ""))


@lru_cache(maxsize=1024)
def _expanded(func: Function) -> Function | None:
    """Return a function of torch that is written in Python, so that what it calls is seen.

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
