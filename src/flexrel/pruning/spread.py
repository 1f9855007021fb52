"""Sizes of a sweep: budgets on one resource, and how little of it can be had."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from flexrel.core.budgets import budget_of
from flexrel.core.resources import Resource
from flexrel.errors import UsageError
from flexrel.pruning.dry_run import Feasibility

_DIGITS: Final = 3  # of a share that is asked for


@dataclass(frozen=True, slots=True)
class SweptResource:
    """A resource that budgets of several sizes are put on.

    Attributes:
        name: as a budget has it: "macs", "latency".
        rest: what a budget has besides the amount: "@onnxruntime,threads=2", or nothing.
        resource: the resource itself.
    """

    name: str
    rest: str
    resource: Resource

    @staticmethod
    def of(text: str) -> "SweptResource":
        """Return the resource of a text such as "bytes", "link@1Mbit/s" or "latency@onnxruntime".

        Raises:
            UsageError: there is none of that name.
        """
        name, at, rest = str(text).partition("@")
        if "=" in name:
            raise UsageError(f"resource {text!r} has an amount; those are points=[...]")
        one = "0" if name == "sparsity" else "100%"
        resource = budget_of(f"{name}={one}{at}{rest}")
        return SweptResource(name, f"{at}{rest}", resource.resource)

    @property
    def whole(self) -> str:
        """The budget, as a text, that the dense network keeps to."""
        return self.budget(0.0 if self.resource.at_least else 1.0)

    def budget(self, amount: float | str) -> str:
        """Return the budget, as a text, of an amount: a share as a float, a count, or a text.

        Raises:
            UsageError: it is no amount of this resource.
        """
        share = isinstance(amount, float)
        text = f"{self.name}={f'{100 * amount:.12g}%' if share else amount}{self.rest}"
        budget_of(text)
        return text

    def at(self, position: float, extent: "Extent") -> str:
        """Return the budget of a position: 0 stands for the dense network, 1 for the least."""
        left = 100 * extent.least**position
        decimals = max(0, _DIGITS - 1 - math.floor(math.log10(left)))
        share = 100 - left if self.resource.at_least else left
        return f"{self.name}={share:.{decimals}f}%{self.rest}"

    def extent(self, found: Feasibility) -> "Extent":
        """Return between which amounts it can be had, of a dry run with a budget on it first."""
        asked = found.amounts[0]
        return Extent(asked.dense, asked.closest, at_least=self.resource.at_least)


@dataclass(frozen=True, slots=True)
class Extent:
    """Between which amounts of a resource networks can be had.

    Attributes:
        dense: what the dense network takes.
        closest: how little it can be brought to; of a share that is removed, how much.
        at_least: whether it is such a share.
    """

    dense: float
    closest: float
    at_least: bool = False

    @property
    def least(self) -> float:
        """The least share of the dense network's that can be had."""
        return self._left(self.closest)

    @property
    def falls(self) -> bool:
        """Whether less can be had than the dense network takes."""
        return 0 < self.least < 1

    def position(self, budget: str) -> float:
        """Return where a budget lies: 0 as much as the dense network takes, 1 the least."""
        share = self._left(budget_of(budget).limit(self.dense))
        return min(max(math.log(share) / math.log(self.least), 0.0), 1.0)

    def _left(self, amount: float) -> float:
        """Return the share of the dense network that an amount leaves."""
        return 1 - amount if self.at_least else amount / self.dense


def spread_budgets(
    points: int | Sequence[float | str], resource: SweptResource, extent: Extent
) -> tuple[str, ...]:
    """Return the budgets of a sweep: those given, or so many between the extent's two ends.

    These are even in the logarithm, without the ends: the network as it came, and one of which
    each layer keeps its best unit alone.
    """
    if isinstance(points, int):
        return tuple(resource.at(at / (points + 1), extent) for at in range(1, points + 1))
    return tuple(dict.fromkeys(map(resource.budget, points)))


def check_points(points: object, trials: object) -> None:
    """Refuse a number of points or of trials that is none.

    Raises:
        UsageError: it is none.
    """
    counted = isinstance(points, int) and not isinstance(points, bool)
    listed = isinstance(points, Sequence) and not isinstance(points, str) and len(points) > 0
    if not (listed or (counted and points >= 1)):  # type: ignore[operator]
        raise UsageError(
            f"points is {points!r}; pass how many, or a list of amounts: ['50%', 0.25, '10%']"
        )
    if not isinstance(trials, int) or isinstance(trials, bool) or trials < 0:
        raise UsageError(f"trials is {trials!r}; pass how many networks to search, 0 for none")
