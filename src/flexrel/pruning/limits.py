"""What a request comes to for one network: goals, and the most of each resource."""

from collections.abc import Mapping
from dataclasses import dataclass

from flexrel.core.evaluate import ACCURACY
from flexrel.core.resources import Candidate, Resource
from flexrel.core.targets import Goal
from flexrel.pruning.request import Request

_REPORTED = ("accuracy", "sparsity", "parameters", "macs", "bytes")  # whether asked for or not


@dataclass(frozen=True, slots=True)
class Limits:
    """What a network must keep to.

    Attributes:
        goals: what targets come to.
        amounts: each budget's resource, with its limit in the resource's unit.
        minimised: what is to be least, where there are goals.
    """

    goals: tuple[Goal, ...]
    amounts: tuple[tuple[Resource, float], ...]
    minimised: Resource

    @property
    def floor(self) -> float | None:
        """The least accuracy allowed; None: any."""
        return max((one.limit for one in self.goals if one.metric == ACCURACY), default=None)

    @property
    def measured(self) -> tuple[tuple[Resource, float], ...]:
        """Those that only the network itself tells, such as the bytes of its file."""
        return tuple(pair for pair in self.amounts if not pair[0].steady)

    def counted(self, dense: Candidate, achieved: Candidate) -> Mapping[str, tuple[float, float]]:
        """Return how much of each limited resource two networks take, by its name."""
        return {r.key: (r.count(dense), r.count(achieved)) for r, _ in self.amounts}

    def as_json(self) -> Mapping[str, float | None]:
        """Return every limit by its resource, None where nothing was asked for."""
        found: dict[str, float | None] = dict.fromkeys(_REPORTED)
        found["accuracy"] = self.floor
        for resource, limit in self.amounts:
            name = resource.key
            tightest = max if resource.at_least else min
            known = found.get(name)
            found[name] = limit if known is None else tightest(known, limit)
        return found


def limits_of(request: Request, dense: Candidate, goals: tuple[Goal, ...]) -> Limits:
    """Return the limits that a request comes to for a dense network."""
    amounts = tuple((b.resource, b.limit(b.resource.count(dense))) for b in request.budgets)
    return Limits(goals, amounts, request.minimised)
