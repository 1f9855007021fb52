"""What each operation did with the relevance it got: the report of conservation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from flexrel.core.running import tensors_of
from flexrel.tracing import overwrites

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

    def native(
        self,
        key: tuple[str, str, str],
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:  # noqa: ANN401 - as the operation
        """Run an operation with its plain gradient, its relevance booked."""
        name = key[1]
        if name in MOVES:  # it only moves values, and what is a view has to stay one
            return func(*args, **kwargs)
        self._open(key)
        rest = [self._booked(key, value) for value in args]
        named = {name: self._booked(key, value) for name, value in kwargs.items()}
        result = func(*rest, **named)
        if overwrites(name) and rest[0] is not args[0]:  # it wrote over a copy
            args[0].copy_(rest[0])
            result = args[0]
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


_MOVES = (
    "view reshape flatten unflatten transpose permute t swapaxes swapdims movedim moveaxis "
    "squeeze unsqueeze expand expand_as view_as __getitem__ narrow select chunk split tensor_split "
    "unbind diagonal unfold detach contiguous requires_grad_ slice alias"
)
MOVES = frozenset(_MOVES.split())
