"""Sees every operation that a network runs, and which of them are calls of its layers.

A mode of torch's function overrides sees every call of a torch operation, from modules, functions,
methods and operators alike, before autograd does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from flexrel.tracing.affine import READERS, AffineCall
from flexrel.tracing.functions import ASKS, Function, expanded, flat, name_of, overwrites
from flexrel.tracing.norms import bound, is_fixed
from flexrel.tracing.owners import Weights

_ADDS = frozenset(["add", "add_", "__add__", "__radd__", "__iadd__"])
_SCALES = frozenset(["mul", "mul_", "__mul__", "__rmul__", "__imul__"])
_FIXED = _SCALES | {"batch_norm", "dropout", "feature_dropout"}
_UNSEEN = ("_assert", "sym_")  # of an exported program: no use of a tensor's values


@dataclass(frozen=True, slots=True, eq=False)
class Op:
    """One call of an operation, to be done again with another tensor in the place of one."""

    name: str
    func: Function
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def given(self) -> list[Tensor]:
        """Return all tensors that go in."""
        return [v for v in flat((*self.args, *self.kwargs.values())) if isinstance(v, Tensor)]

    def again(self, old: Tensor, new: Tensor) -> Tensor:
        """Return what the operation makes with `new` in the place of `old`."""

        def swapped(value: Any) -> Any:  # noqa: ANN401
            return new if value is old else value

        kwargs = {name: swapped(value) for name, value in self.kwargs.items()}
        result: Tensor = self.func(*map(swapped, self.args), **kwargs)
        return result

    def bound(self) -> dict[str, Any]:
        """Return the arguments of a norm by name."""
        return bound(self.name, self.args, self.kwargs)

    @property
    def writes(self) -> bool:
        """Whether it writes its result over what goes in first."""
        return overwrites(self.name)

    def continues(self, tensor: Tensor, axis: int) -> bool:
        """Return whether it does a fixed thing to each channel of the tensor, and no more.

        Args:
            tensor: that goes in.
            axis: of it that counts channels.
        """
        if self.name not in _FIXED:
            return False
        others = [value for value in self.given() if value is not tensor]
        if self.name in _SCALES:  # by a number a channel, and none a sample or position
            if len(tensor) == 1 and any(other.ndim == tensor.ndim for other in others):
                return False  # of one sample, those look like a number a channel
            spare = (1,) * tensor.ndim
            shapes = [(*spare[other.ndim :], *other.shape) for other in others]
            return all(o.numel() == s[axis] for o, s in zip(others, shapes, strict=True))
        return self.name != "batch_norm" or is_fixed(self.name, self.bound())

    def adds(self, tensor: Tensor) -> Tensor | None:
        """Return the tensor of the same shape that it adds to this one, if that is what it does."""
        plain = self.kwargs.get("alpha", 1) == 1 and len(self.args) == 2  # noqa: PLR2004
        others = [value for value in self.given() if value is not tensor]
        if self.name not in _ADDS or not plain or len(others) != 1:
            return None
        return others[0] if others[0].shape == tensor.shape else None


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
        name = name_of(func)
        if name in ASKS or name.startswith(_UNSEEN):
            return func(*args, **(kwargs or {}))
        if (inside := expanded(func)) is not None:
            with self:
                return inside(*args, **(kwargs or {}))
        return self.ran(Op(name, func, args, kwargs or {}))

    def ran(self, step: Op) -> Any:  # noqa: ANN401
        """Run the operation and return its result."""
        return step.func(*step.args, **step.kwargs)


@dataclass(frozen=True, slots=True, eq=False)
class LayerCall:
    """A call of an affine operation with a parameter of the network."""

    layer: str
    rows: tuple[int, int] | None  # of the parameter, where the weight is only those
    transposed: bool  # whether the weight is the parameter's transpose
    affine: AffineCall


def layer_call(step: Op, weights: Weights) -> LayerCall | None:
    """Return which layer the operation is a call of, if it is one."""
    reader = READERS.get(step.name)
    affine = reader(step.args, step.kwargs) if reader else None
    owner = weights.owner(affine.weight) if affine else None
    if affine is None or owner is None:
        return None
    name, _, rows = owner.name.partition("[")
    first, _, last = rows.rstrip("]").partition(":")
    part = (int(first), int(last)) if rows else None
    return LayerCall(name, part, owner.transposed, affine)
