"""What each operation did with the relevance it got: what it kept, and where it made a NaN."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from flexrel.core.running import tensors_of
from flexrel.core.wording import everyday
from flexrel.tracing import Op

_TOLERANCE = 1e-3  # of the relevance that an operation handles


@dataclass(frozen=True, slots=True)
class Balance:
    """Relevance that went into and out of one operation on its way back, over all samples.

    Attributes:
        layer: name of the innermost module that called the operation, as in `named_modules()`.
        operation: as torch names it.
        rule: how relevance goes back through it; "gradient" for its plain gradient.
        received: relevance of its results, `Σ R`, in units of the output.
        passed: relevance that it sent on to its inputs.
        handled: `Σ |R|` of its results: what `lost` is to be compared with.
    """

    layer: str
    operation: str
    rule: str
    received: float
    passed: float
    handled: float

    @property
    def lost(self) -> float:
        """Relevance that did not go on: absorbed by a bias, or lost; below 0 it was made."""
        return self.received - self.passed

    @property
    def holds(self) -> bool:
        """Whether relevance was conserved, to a thousandth of what was handled."""
        return abs(self.lost) <= _TOLERANCE * self.handled

    def __add__(self, other: "Balance") -> "Balance":
        return Balance(
            self.layer,
            self.operation,
            self.rule,
            self.received + other.received,
            self.passed + other.passed,
            self.handled + other.handled,
        )

    def scaled(self, factor: float) -> "Balance":
        """Return every sum times `factor`."""
        return replace(
            self,
            received=self.received * factor,
            passed=self.passed * factor,
            handled=self.handled * factor,
        )


class Ledger:
    """Adds up, for every operation that relevance went through, what came and what went."""

    def __init__(self) -> None:
        self._entries: dict[tuple[str, str, str], list[Tensor]] = {}

    def balances(self) -> tuple[Balance, ...]:
        """Return one balance an operation of a layer, in the order of the forward pass."""
        entries = (
            Balance(*key, *(float(amount) for amount in amounts))
            for key, amounts in self._entries.items()
        )
        return tuple(entry for entry in entries if entry.handled > 0)

    def modified(
        self,
        key: tuple[str, str, str],
        inputs: Tensor,
        outputs: Tensor,
        back: Callable[[Tensor], Tensor],
    ) -> Callable[[Tensor], Tensor]:
        """Return `back` with its relevance booked; `outputs` is a value attached to no graph."""
        before, after = inputs.detach().clone(), outputs.clone()
        self._open(key)

        def booked(gradient: Tensor) -> Tensor:
            found = back(gradient)
            self._receive(key, after, gradient)
            self._pass(key, before, found)
            return found

        return booked

    def native(self, key: tuple[str, str, str], op: Op) -> Any:  # noqa: ANN401 - as the operation
        """Run an operation with its plain gradient, its relevance booked."""
        if op.name in _MOVES:  # it only moves values, and what is a view has to stay one
            return op.func(*op.args, **op.kwargs)
        self._open(key)
        args = [self._booked(key, value) for value in op.args]
        kwargs = {name: self._booked(key, value) for name, value in op.kwargs.items()}
        result = op.func(*args, **kwargs)
        if op.writes and args[0] is not op.args[0]:  # it wrote over a copy
            op.args[0].copy_(args[0])
            result = op.args[0]
        for tensor in tensors_of(result):
            if tensor.requires_grad:
                self._watch(key, tensor, self._receive)
        return result

    def _booked(self, key: tuple[str, str, str], value: Any) -> Any:  # noqa: ANN401
        if isinstance(value, list | tuple) and any(isinstance(v, Tensor) for v in value):
            return type(value)([self._booked(key, v) for v in value])
        if not isinstance(value, Tensor) or not value.requires_grad:
            return value
        alias = value.clone()
        self._watch(key, alias, self._pass)
        return alias

    def _watch(
        self,
        key: tuple[str, str, str],
        tensor: Tensor,
        book: Callable[[tuple[str, str, str], Tensor, Tensor], None],
    ) -> None:
        value = tensor.detach().clone()
        tensor.register_hook(lambda gradient: book(key, value, gradient))

    def _open(self, key: tuple[str, str, str]) -> None:
        self._entries.setdefault(key, [torch.zeros((), dtype=torch.float64) for _ in range(3)])

    def _receive(self, key: tuple[str, str, str], value: Tensor, gradient: Tensor) -> None:
        relevance = _relevance(value, gradient)
        self._entries[key][0] += relevance.sum().cpu()
        self._entries[key][2] += relevance.abs().sum().cpu()

    def _pass(self, key: tuple[str, str, str], value: Tensor, gradient: Tensor) -> None:
        self._entries[key][1] += _relevance(value, gradient).sum().cpu()


def _relevance(value: Tensor, gradient: Tensor) -> Tensor:
    """Return `value * gradient`; 0 where the gradient is, also of an infinite (masked) value."""
    if value.is_complex():
        return (value.conj() * gradient).real.masked_fill(gradient == 0, 0)
    return (value.double() * gradient).masked_fill_(gradient == 0, 0)


def merged(balances: Sequence[Balance]) -> tuple[Balance, ...]:
    """Return one balance an operation of a layer, with those of the same one added up."""
    total: dict[tuple[str, str, str], Balance] = {}
    for balance in balances:
        key = (balance.layer, balance.operation, balance.rule)
        total[key] = total[key] + balance if key in total else balance
    return tuple(total.values())


_MOVED = (
    "view reshape flatten unflatten transpose permute t swapaxes swapdims movedim moveaxis "
    "squeeze unsqueeze expand expand_as view_as __getitem__ narrow select chunk split tensor_split "
    "unbind diagonal unfold detach contiguous requires_grad_ slice alias"
)
_MOVES = frozenset(_MOVED.split())


class NaNFinder:
    """Finds the operation that first made a NaN, forward or on relevance's way back.

    Attributes:
        found: that operation and where it ran; "" if none was found.
    """

    def __init__(self) -> None:
        self.found = ""
        self._readers = WeakTensorKeyDictionary()  # tensor -> the operations that read it

    def look(self, op: Op, place: str, result: Any) -> None:  # noqa: ANN401
        """Look at one operation's result, and at what comes back to it."""
        told = f"{everyday(op.name)} in {place!r}" if place else everyday(op.name)
        made = [tensor for tensor in tensors_of(result) if tensor.is_floating_point()]
        if not self.found and any(bool(tensor.isnan().any()) for tensor in made):
            self.found = told
        for tensor in op.given():
            if tensor.requires_grad:
                self._readers.setdefault(tensor, []).append(told)
        for tensor in made:
            if tensor.requires_grad:
                readers: list[str] = self._readers.setdefault(tensor, [])
                tensor.register_hook(partial(self._look_back, readers))

    def _look_back(self, readers: Sequence[str], gradient: Tensor) -> None:
        if not self.found and not bool(gradient.isfinite().all()):
            self.found = f"the way back through {', '.join(dict.fromkeys(readers))}"
