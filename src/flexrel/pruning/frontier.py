"""What a sweep found: networks of several sizes, and which of them no other beats."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flexrel_edge.files import replace_file


@dataclass(frozen=True, slots=True)
class Reached:
    """What a network takes, and how well it does its job.

    Attributes:
        amounts: of each resource, by its name in records: "parameters", "macs", "bytes", and what
            was swept.
        metrics: what `evaluate` said, by name.
        standard_error: of the accuracy, where it and its samples are known.
    """

    amounts: Mapping[str, float]
    metrics: Mapping[str, float]
    standard_error: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Return it as one JSON object."""
        metrics = {name: _finite(value) for name, value in self.metrics.items()}
        return {
            "amounts": dict(self.amounts),
            "metrics": metrics,
            "standard_error": self.standard_error,
        }


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """One network of a sweep.

    Attributes:
        budget: that was asked of it, "bytes=50%".
        criterion: likewise, "auto" where one was to be chosen.
        granularity: likewise.
        values: likewise.
        command: that makes it: a call in Python, or of the command line.
        reached: what became of it; None if the budget can't be met.
        refused: why it can't; "" if it can.
        scored_by: the criterion that scored its units; "" if there is no network.
        files: folder of its files, within that of the sweep; "" if they were not asked for.
        searched: number of the trial that proposed it; None for a point of the list.
    """

    budget: str
    criterion: str
    granularity: str
    values: str
    command: str
    reached: Reached | None = None
    refused: str = ""
    scored_by: str = ""
    files: str = ""
    searched: int | None = None

    def encode(self) -> str:
        """Return it as a text, for `decode`."""
        return json.dumps(asdict(self))

    @staticmethod
    def decode(text: str) -> "SweepPoint":
        """Return the point that `encode` made a text of."""
        told = json.loads(text)
        reached = told.pop("reached")
        return SweepPoint(**told, reached=Reached(**reached) if reached else None)


@dataclass(frozen=True, slots=True)
class SweepResult:
    """Networks of several sizes, of one dense network, and which of them no other beats.

    Attributes:
        resource: that was swept, by its name in records: "bytes", "macs", "latency_ms".
        metric: that networks are compared by.
        lower_is_better: of the metric.
        dense: the network as it came.
        points: in the order in which they were made; those that can't be had too.
        at_least: whether more of the resource is less of a network, as of sparsity.
    """

    resource: str
    metric: str
    lower_is_better: bool
    dense: Reached
    points: tuple[SweepPoint, ...]
    at_least: bool = False

    def taken(self, one: Reached, resource: str | None = None) -> float:
        """Return how much a network takes of a resource: less is better.

        Args:
            one: the network.
            resource: by its name in records; None: that which was swept.
        """
        name = resource or self.resource
        amount = one.amounts[name]
        return -amount if self.at_least and name == self.resource else amount

    def front(self, resource: str | None = None) -> tuple[SweepPoint, ...]:
        """Return the points that no other point, nor the dense network, beats; the smallest first.

        One beats another that takes no less and does no better, and is not alike in both.

        Args:
            resource: whose amounts count, by its name in records; None: that which was swept.
        """
        made = [(point, point.reached) for point in self.points if point.reached is not None]
        all_reached = [self.dense, *(reached for _, reached in made)]
        on = unbeaten([(self.taken(one, resource), self._loss(one)) for one in all_reached])[1:]
        front = [one for one, is_on in zip(made, on, strict=True) if is_on]
        return tuple(point for point, _ in sorted(front, key=lambda p: self.taken(p[1], resource)))

    def as_json(self) -> dict[str, Any]:
        """Return the content of `frontier.json`.

        Of each point `front` lists the resources for which no other beats it.
        """
        fronts = {name: self.front(name) for name in self.dense.amounts}
        points = [
            {
                **asdict(point),
                "reached": point.reached and point.reached.as_json(),
                "front": [name for name, front in fronts.items() if point in front],
            }
            for point in self.points
        ]
        return {
            "resource": self.resource,
            "metric": self.metric,
            "lower_is_better": self.lower_is_better,
            "at_least": self.at_least,
            "dense": self.dense.as_json(),
            "points": points,
        }

    def save(self, path: str | Path) -> None:
        """Write it as JSON, all or nothing."""
        content = json.dumps(self.as_json(), indent=1, allow_nan=False) + "\n"
        replace_file(Path(path), content.encode())

    def _loss(self, one: Reached) -> float:
        value = one.metrics[self.metric]
        if math.isnan(value):
            return math.inf
        return value if self.lower_is_better else -value


def unbeaten(pairs: Sequence[tuple[float, float]]) -> list[bool]:
    """Return of each pair whether no other is at most as large in both, and smaller in one.

    Args:
        pairs: of two numbers, of both of which less is better; infinite in the second: never
            on the front.
    """
    on = [False] * len(pairs)
    least = (-math.inf, math.inf)  # the last pair on the front: amount, loss
    for at in sorted(range(len(pairs)), key=pairs.__getitem__):
        if pairs[at][1] < least[1] or (pairs[at] == least and math.isfinite(least[1])):
            on[at], least = True, pairs[at]
    return on


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
