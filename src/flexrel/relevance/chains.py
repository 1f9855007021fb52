"""Chains of elementwise functions of one tensor, such as a GELU written out, read as one function.

Only the whole function's value without an input, `f(0)`, is a constant that keeps its share of
relevance; the constants of its parts are not (ours).
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from flexrel.relevance.arguments import active, is_active
from flexrel.tracing import Function


class Chains:
    """Which tensors are elementwise functions of which others."""

    def __init__(self) -> None:
        self._known = WeakTensorKeyDictionary()  # tensor -> root, its value at 0, versions

    def forget(self) -> None:
        """Let go of all tensors."""
        self._known.clear()

    def note(self, outputs: Tensor, root: Tensor, zero: float | None) -> None:
        """Note that `outputs` are an elementwise function of `root`, and its value at 0."""
        versions = (outputs._version, root._version)  # noqa: SLF001
        self._known[outputs] = (root, zero, versions)

    def of(self, tensor: Tensor) -> tuple[Tensor, float | None]:
        """Return what the tensor is an elementwise function of, and that function of 0.

        It is the tensor itself, and 0, if of nothing else; None if it differs between entries.
        """
        root, zero, versions = self._known.get(tensor, (tensor, 0.0, None))
        known = versions == (tensor._version, root._version)  # noqa: SLF001 - else overwritten
        return (root, zero) if known else (tensor, 0.0)

    def root(self, tensor: Tensor) -> Tensor:
        """Return what the tensor is an elementwise function of: itself, if of nothing else."""
        return self.of(tensor)[0]

    def common_root(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
        """Return the tensor that all active arguments are elementwise functions of, if several."""
        roots = [self.root(v) for v in (*args, *kwargs.values()) if is_active(v)]
        same = len(roots) > 1 and all(root is roots[0] for root in roots)
        return roots[0] if same else None

    def at_zero(
        self, func: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> float | None:
        """Return what the operation gives where the root of its arguments is 0.

        None if that is not finite, or differs between entries.
        """
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if any(self._value_at_zero(value) is None for value in tensors):
            return None
        named = {key: self._value_at_zero(value) for key, value in kwargs.items()}
        with torch.no_grad():
            zero = float(func(*map(self._value_at_zero, args), **named))
        return zero if math.isfinite(zero) else None

    def _value_at_zero(self, value: Any) -> Any:  # noqa: ANN401 - an operation's argument
        if is_active(value):
            value = self.of(value)[1]
            return value if value is None else torch.tensor(value, dtype=torch.float64)
        return None if isinstance(value, Tensor) and value.numel() > 1 else value

    def goes_on(
        self,
        outputs: Any,  # noqa: ANN401
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Tensor | None:
        """Return the root of a chain that goes on through a scaling or a shift, if one does."""
        given = active(args, kwargs)
        if len(given) != 1 or not isinstance(outputs, Tensor):
            return None
        root = self.root(given[0])
        return root if root.shape == outputs.shape else None


def slope_back(zero: float | None, gradient: Tensor, inputs: Tensor, outputs: Tensor) -> Tensor:
    """Return `G(y) (y - f(0)) / x`; 0 where `x` is (almost) 0."""
    tiny = 1e-6 if inputs.dtype == torch.float16 else 1e-12
    slope = (outputs - zero if zero else outputs) / inputs
    return slope.masked_fill_(inputs.abs() < tiny, 0).mul_(gradient)
