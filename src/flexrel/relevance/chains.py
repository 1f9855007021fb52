"""Chains of elementwise functions of one tensor, such as a GELU written out, read as one function.

Only the whole function's value without an input, `f(0)`, is a constant that keeps its share of
relevance; the constants of its parts are not (ours).
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from flexrel.tracing import Op


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

    def common_root(self, op: Op) -> Tensor | None:
        """Return the tensor that all active arguments are elementwise functions of, if several."""
        roots = [self.root(tensor) for tensor in active(op.given())]
        same = len(roots) > 1 and all(root is roots[0] for root in roots)
        return roots[0] if same else None

    def at_zero(self, op: Op) -> float | None:
        """Return what the operation gives where the root of its arguments is 0.

        None if that is not finite, or differs between entries.
        """
        if any(self._value_at_zero(tensor) is None for tensor in op.given()):
            return None
        kwargs = {name: self._value_at_zero(value) for name, value in op.kwargs.items()}
        with torch.no_grad():
            zero = float(op.func(*map(self._value_at_zero, op.args), **kwargs))
        return zero if math.isfinite(zero) else None

    def _value_at_zero(self, value: Any) -> Any:  # noqa: ANN401 - an operation's argument
        if isinstance(value, Tensor) and value.requires_grad:
            zero = self.of(value)[1]
            return zero if zero is None else torch.tensor(zero, dtype=torch.float64)
        return None if isinstance(value, Tensor) and value.numel() > 1 else value

    def goes_on(self, op: Op, outputs: Any) -> Tensor | None:  # noqa: ANN401
        """Return the root of a chain that goes on through a scaling or a shift, if one does."""
        given = active(op.given())
        if len(given) != 1 or not isinstance(outputs, Tensor):
            return None
        root = self.root(given[0])
        return root if root.shape == outputs.shape else None


def active(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return those that relevance goes to: that are made of the model's inputs."""
    return [tensor for tensor in tensors if tensor.requires_grad]
