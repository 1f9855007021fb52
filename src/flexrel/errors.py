"""What can go wrong, one tree; each leaf has the exit code of the command line.

FlexrelError            1   (defined in flexrel_edge, which does not need torch)
├── UsageError          2   the request, the data or the evaluation is wrong
│   └── PrecisionError      a value is beyond what the asked precision holds
├── BudgetError         3   the budget or target can't be met; says the closest that can
├── ModelError          4   the network can't be analysed; says where
│   └── UnprunableError     it can, but nothing of it can be pruned
└── PackError           5   a file is damaged or not trusted (defined in flexrel_edge)
"""

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal

from flexrel_edge import FlexrelError, PackError

__all__ = [
    "BudgetError",
    "FlexrelError",
    "ModelError",
    "PackError",
    "PrecisionError",
    "UnprunableError",
    "UsageError",
    "possible",
]

_DIGITS = 4  # of a number that is told


def possible(value: float, *, at_least: bool) -> str:
    """Return what can be had in four digits, never better than it is: asked for, it can be met.

    Args:
        value: of an allowed network; a whole number is told with all of its digits.
        at_least: whether more of it is better.
    """
    near = _told(value)
    if isinstance(value, int) or not math.isfinite(value):
        return near
    better = float(near.replace(",", "")) - value
    if (better > 0) if at_least else (better < 0):
        rounding = ROUND_FLOOR if at_least else ROUND_CEILING
        return f"{Context(prec=_DIGITS, rounding=rounding).create_decimal(value):,f}"
    return near


def _told(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{Decimal(f'{value:.{_DIGITS}g}'):,f}"


class UsageError(FlexrelError):
    """The request can't be carried out as it was made: options, data, weights or evaluation."""

    exit_code = 2


class PrecisionError(UsageError):
    """A value is beyond what the precision that was asked for can hold; others may hold it."""


class ModelError(FlexrelError):
    """The network can't be analysed, or a cut of it did not verify."""

    exit_code = 4


class UnprunableError(ModelError):
    """The network runs and is understood, but nothing of it can be pruned."""


class BudgetError(FlexrelError):
    """No allowed plan meets the budget or the target.

    Carries its numbers as attributes, so that a caller can react without parsing the text.

    Attributes:
        resource: what is limited: "accuracy", or the name of a budget's resource.
        limit: what was asked for, in that resource's unit.
        closest: the closest value that an allowed plan reaches, same unit.
        advice: one sentence on what to change, or "".
        at_least: whether so much is asked for at least, and not at most.
        unit: that limit and closest are in, where the resource's name does not say it.
    """

    exit_code = 3

    def __init__(
        self,
        resource: str,
        limit: float,
        closest: float,
        advice: str = "",
        at_least: bool = False,  # noqa: FBT001, FBT002 - `args` are given by place when unpickled
        unit: str = "",
    ) -> None:
        """Keep the numbers; `args` holds them all, so the error survives pickling."""
        super().__init__(resource, limit, closest, advice, at_least, unit)
        self.resource, self.limit, self.closest, self.advice = resource, limit, closest, advice
        self.at_least, self.unit = at_least, unit

    def __str__(self) -> str:
        """Say what was asked and what is possible."""
        bound = "at least" if self.at_least else "at most"
        what = f"{self.unit} of {self.resource}" if self.unit else self.resource
        closest = possible(self.closest, at_least=self.at_least)
        asked = _told(self.limit)
        if asked == closest:  # to so many digits
            asked = possible(self.limit, at_least=not self.at_least)
        text = f"asked for {bound} {asked} {what}, but the closest possible is {closest} {what}."
        return f"{text} {self.advice}".rstrip()
