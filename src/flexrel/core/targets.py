"""What a network must still do: targets on anything that `evaluate` tells of it.

A target is one object that fits `Target`, as `AccuracyDrop` does; `Goal` is what it comes to for
one dense network.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Protocol, runtime_checkable

from flexrel.core.budgets import TARGET_EXAMPLES, target_of
from flexrel.core.evaluate import ACCURACY, Metrics
from flexrel.core.resources import TOLERANCE
from flexrel.errors import UsageError, possible

_TEXT: Final = re.compile(
    r"([A-Za-z][^=<>]*?)\s*(>=|<=|\+|-)\s*(-?(?:\d+\.?\d*|\.\d+)(?:e-?\d+)?)(%?)"
)
_LESS_IS_BETTER: Final = ("loss", "perplexity", "error", "mse", "rmse", "mae", "wer", "cer", "nll")


@runtime_checkable
class Target(Protocol):
    """The worst that one metric may come to."""

    @property
    def metric(self) -> str:
        """Its name, as in what `evaluate` tells."""

    @property
    def lower_is_better(self) -> bool:
        """Whether less of it is better, as of a loss."""

    def limit(self, dense: float) -> float:
        """Return the worst value allowed, where the dense network's is `dense`."""


@dataclass(frozen=True, slots=True)
class Worsening:
    """The metric may get worse by this much: `Worsening("loss", 0.02, lower_is_better=True)`.

    Attributes:
        metric: its name, as in what `evaluate` tells.
        amount: by how much, in the metric's own unit.
        relative: whether `amount` is a share of the dense network's value instead: 0.05 is 5 %.
        lower_is_better: whether worse is more.

    Raises:
        UsageError: the amount is no number from 0 on.
    """

    metric: str
    amount: float
    relative: bool = False
    lower_is_better: bool = False

    def __post_init__(self) -> None:
        if not _checked_number(self.metric, self.amount) >= 0:
            raise UsageError(
                f"{self.metric} may get worse by {self.amount!r}; give a number from 0 on"
            )

    def limit(self, dense: float) -> float:
        """Return the worst value allowed, where the dense network's is `dense`."""
        amount = self.amount * abs(dense) if self.relative else self.amount
        return dense + amount if self.lower_is_better else dense - amount


@dataclass(frozen=True, slots=True)
class Floor:
    """The metric, of which more is better, is at least this, in its own unit.

    Raises:
        UsageError: that is no number.
    """

    metric: str
    amount: float
    lower_is_better: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _checked_number(self.metric, self.amount)

    def limit(self, dense: float) -> float:  # noqa: ARG002 - it does not depend on it
        """Return the least value allowed."""
        return self.amount


@dataclass(frozen=True, slots=True)
class Ceiling:
    """The metric, of which less is better, is at most this, in its own unit.

    Raises:
        UsageError: that is no number.
    """

    metric: str
    amount: float
    lower_is_better: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _checked_number(self.metric, self.amount)

    def limit(self, dense: float) -> float:  # noqa: ARG002 - it does not depend on it
        """Return the most allowed."""
        return self.amount


@dataclass(frozen=True, slots=True)
class Goal:
    """What a target comes to for one dense network.

    Attributes:
        metric: its name.
        limit: the worst value allowed.
        lower_is_better: whether less of it is better.
    """

    metric: str
    limit: float
    lower_is_better: bool

    def met(self, value: float) -> bool:
        """Return whether a value is good enough; NaN is not."""
        room = TOLERANCE * max(1.0, abs(self.limit))
        if self.lower_is_better:
            return value <= self.limit + room
        return value >= self.limit - room

    def __str__(self) -> str:
        """Say it in words."""
        return f"{self.metric} at {'most' if self.lower_is_better else 'least'} {self.limit:.4g}"


def missed(goals: Sequence[Goal], metrics: Metrics) -> Goal | None:
    """Return the first goal that a network does not meet, None if it meets all.

    Args:
        goals: to meet.
        metrics: what `evaluate` told of the network, by name.

    Raises:
        UsageError: it did not tell a goal's metric.
    """
    for goal in goals:
        check_told(goal.metric, metrics)
        if not goal.met(metrics[goal.metric]):
            return goal
    return None


def goals_of(targets: Sequence[Target], metrics: Metrics) -> tuple[Goal, ...]:
    """Return what targets come to for a dense network.

    Args:
        targets: what is asked.
        metrics: what `evaluate` told of the dense network, by name.

    Raises:
        UsageError: a metric was not told or is NaN, the dense network itself does not meet a
            target, or one allows an accuracy of nothing though not all is asked for.
    """
    found: list[Goal] = []
    for target in targets:
        check_told(target.metric, metrics)
        dense = metrics[target.metric]
        if math.isnan(dense):
            raise UsageError(f"evaluate says that the network's {target.metric} is NaN")
        limit = target.limit(dense)
        if target.metric == ACCURACY and limit <= 0 and abs(limit - dense + 1) > TOLERANCE:
            raise UsageError(
                f"the network's accuracy is {dense:.4g} and may drop by {dense - limit:.4g}, so a "
                "network that is never right would do; check evaluate= and its labels, or ask for "
                "less"
            )
        at_least = 0.0 if target.metric == ACCURACY else -math.inf
        goal = Goal(target.metric, max(limit, at_least), target.lower_is_better)
        if not goal.met(dense):
            has = possible(dense, at_least=not goal.lower_is_better)
            raise UsageError(
                f"asked for {goal}, but the network as it came has {has}; ask for what it has, or "
                "give it something to lose"
            )
        found.append(goal)
    return tuple(found)


def unnamed(targets: Sequence[Target]) -> str | None:
    """Return what a number is that `evaluate` returns without a name; None: it must have one."""
    names = {target.metric for target in targets} or {ACCURACY}
    return names.pop() if len(names) == 1 else None


def check_told(metric: str, metrics: Metrics) -> None:
    """Raise a UsageError if what `evaluate` told lacks a metric that there is a target on."""
    if metric not in metrics:
        raise UsageError(
            f"there is a target on {metric!r}, but evaluate tells {', '.join(metrics)}; return a "
            f"mapping of names to numbers with {metric!r} in it"
        )


def targets_of(given: object) -> tuple[Target, ...]:
    """Return the targets that are given, or that texts such as "loss<=0.35" ask for.

    Args:
        given: a target, a text, several of them, or None. A text may hold several with commas in
            between. "accuracy-drop=1%" is one point. "NAME>=X" and "NAME<=X" are a floor and a
            ceiling, "NAME-X" and "NAME+X" by how much less or more is allowed than the dense
            network has: in the metric's unit, or with % as a share of the dense value.

    Raises:
        UsageError: one is no target; or two are on one metric, of which more is better by one and
            less by the other; or one says that less accuracy is better, or a text more of a loss.
    """
    if given is None:
        return ()
    several = (given,) if isinstance(given, str | Target) else given
    if not isinstance(several, Sequence):
        raise UsageError(f"target {given!r} is not known; write it like {TARGET_EXAMPLES}")
    found: list[Target] = []
    for one in several:
        parts = one.split(",") if isinstance(one, str) else [one]
        found += [part if isinstance(part, Target) else _read(part) for part in parts]
    directions = {target.metric: target.lower_is_better for target in found}
    for target in found:
        if target.metric == ACCURACY and target.lower_is_better:
            raise UsageError(
                f"{target!r} allows more accuracy, of which more is better; write "
                "accuracy-drop=1%, accuracy-1% or accuracy>=90%"
            )
        if directions[target.metric] != target.lower_is_better:
            raise UsageError(
                f"two targets on {target.metric!r}: by one more of it is better, by the other less"
            )
    return tuple(found)


def _read(given: object) -> Target:
    text = given.strip() if isinstance(given, str) else ""
    read = _TEXT.fullmatch(text)
    if read is None:
        return target_of(text or given)
    metric, operator, number, percent = read[1], read[2], float(read[3]), bool(read[4])
    if metric.lower() in _LESS_IS_BETTER and operator in (">=", "-"):
        raise UsageError(
            f"target {text!r} allows less {metric}, of which less is better; write {metric}<=X for "
            f"the most, {metric}+X or {metric}+5% for how much more"
        )
    if operator in ("+", "-"):
        amount = number / 100 if percent else number
        return Worsening(metric, amount, relative=percent, lower_is_better=operator == "+")
    if percent and metric != ACCURACY:
        raise UsageError(
            f"target {text!r}: % is understood of accuracy alone, which is in [0, 1]; write "
            f"{metric}{operator}X in the unit that evaluate tells, or {metric}-X% for a share of "
            "the dense network's"
        )
    bound = number / 100 if percent else number
    return Floor(metric, bound) if operator == ">=" else Ceiling(metric, bound)


def _checked_number(metric: str, amount: object) -> float:
    if isinstance(amount, bool) or not isinstance(amount, int | float) or not math.isfinite(amount):
        raise UsageError(f"target on {metric!r} is {amount!r}; give a number")
    return amount
