"""What the target can afford: budgets on resources, and a target on accuracy.

A budget given as a fraction is a fraction of the dense network: `MACs(0.5)` is half of its
multiply-adds. Every budget is met from below, or the call fails and says what is possible.
"""

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Protocol, runtime_checkable

from flexrel.errors import UsageError

_BYTES = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*((?:[kKMG]i?)?B)?\s*")
_UNITS = {
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KiB": 2**10,
    "kiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
}


RESOURCES = ("sparsity", "parameters", "MACs", "bytes")


@runtime_checkable
class Budget(Protocol):
    """A limit on one resource; `limit` turns it into that resource's unit."""

    @property
    def resource(self) -> str:
        """One of the names that `flexrel.cost` counts: "sparsity", "parameters", ..."""

    def limit(self, dense: float) -> float:
        """Return the limit in the resource's unit, where the dense network costs `dense`."""


def _share_or_count(amount: float, dense: float) -> int:
    """Return the limit, rounded down: 0.29 of 100 is 29, though the product of floats is less."""
    return (
        math.floor(Fraction(str(amount)) * Fraction(dense)) if isinstance(amount, float) else amount
    )


def _is_number(amount: object) -> bool:
    return isinstance(amount, int | float) and not isinstance(amount, bool)


def _check_amount(resource: str, amount: float) -> None:
    whole = isinstance(amount, int) and not isinstance(amount, bool) and amount > 0
    share = isinstance(amount, float) and 0 < amount <= 1
    if not (whole or share):
        raise UsageError(
            f"{resource} budget is {amount!r}; give a share of the dense network in (0, 1] "
            "as a float, or a count of at least 1 as an int"
        )


@dataclass(frozen=True, slots=True)
class Parameters:
    """At most `amount` parameters: an int counts them, a float is a share of the dense ones."""

    amount: float
    resource: ClassVar[str] = "parameters"

    def __post_init__(self) -> None:
        _check_amount(self.resource, self.amount)

    def limit(self, dense: float) -> int:
        """Return the most parameters allowed."""
        return _share_or_count(self.amount, dense)


@dataclass(frozen=True, slots=True)
class MACs:
    """At most `amount` multiply-adds for one sample: an int, or a share of the dense ones."""

    amount: float
    resource: ClassVar[str] = "MACs"

    def __post_init__(self) -> None:
        _check_amount(self.resource, self.amount)

    def limit(self, dense: float) -> int:
        """Return the most multiply-adds allowed."""
        return _share_or_count(self.amount, dense)


@dataclass(frozen=True, slots=True)
class Bytes:
    """At most `amount` bytes of the packed file: 500_000, "500 kB", "1.5 MiB", or a share.

    A share is a share of the dense network packed with the same encoder.
    """

    amount: float | str
    resource: ClassVar[str] = "bytes"

    def __post_init__(self) -> None:
        if not isinstance(self.amount, str):
            _check_amount(self.resource, self.amount)
        elif not (found := _BYTES.fullmatch(self.amount)) or float(found[1]) == 0:
            raise UsageError(
                f'bytes budget is {self.amount!r}; write it like "500 kB", "1.5 MiB" or 500000'
            )

    def limit(self, dense: float) -> int:
        """Return the most bytes allowed."""
        if isinstance(self.amount, str):
            number, unit = _BYTES.fullmatch(self.amount).groups()  # type: ignore[union-attr]
            return math.floor(Fraction(number) * _UNITS[unit or "B"])
        return _share_or_count(self.amount, dense)


@dataclass(frozen=True, slots=True)
class Sparsity:
    """At least this fraction of the prunable units removed, in [0, 1).

    For elements and N:M these are weights. For channels they are channels (a pruning ratio), which
    take another share of the parameters with them; for blocks they are blocks, of which those at
    the end of a weight may be smaller.
    """

    amount: float
    resource: ClassVar[str] = "sparsity"

    def __post_init__(self) -> None:
        if not _is_number(self.amount) or not 0 <= self.amount < 1:
            raise UsageError(f"sparsity is {self.amount!r}; it is the fraction removed, in [0, 1)")

    def limit(self, dense: float) -> float:  # noqa: ARG002 - a sparsity does not depend on it
        """Return the least fraction removed."""
        return self.amount


@dataclass(frozen=True, slots=True)
class AccuracyDrop:
    """The network may lose at most this much of `evaluate`: 0.01 is one point."""

    amount: float

    def __post_init__(self) -> None:
        if not _is_number(self.amount) or not 0 <= self.amount <= 1:
            raise UsageError(f"accuracy drop is {self.amount!r}; 0.01 is one point, at most 1")
