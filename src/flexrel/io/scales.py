"""Where numbers lie along an axis, and round numbers to name there."""

import math
from collections.abc import Callable
from dataclasses import dataclass

_TICKS = 5


@dataclass(frozen=True, slots=True)
class Box:
    """Where a chart is drawn, in its own units; y grows downwards.

    Attributes:
        width: of all.
        height: likewise.
        left: edge of what is inside of the axes.
        right: likewise.
        top: likewise.
        bottom: likewise.
    """

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int


@dataclass(frozen=True, slots=True)
class Tick:
    """A number that an axis names."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Scale:
    """An axis from one number to a larger one, drawn from one place to another."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Return where a number lies, to a tenth."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + (self.end - self.start) * share, 1)

    def ticks(self, step: float, told: Callable[[float], str]) -> tuple[Tick, ...]:
        """Return the multiples of a step that the axis has."""
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return tuple(Tick(self.at(i * step), told(i * step)) for i in range(first, last + 1))


def step_of(span: float) -> float:
    """Return a round distance between ticks, so that about five fit into the span."""
    rough = span / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * f for f in (1, 2, 2.5, 5, 10) if power * f >= rough)
