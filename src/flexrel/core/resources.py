"""Resources that a network takes: how one is counted, and what a limit on it is.

A new budget is one object that fits `Budget`, with a `Resource` that says how it is counted; the
search, the result and errors ask nothing else of it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Protocol, runtime_checkable

from torch import nn

from flexrel.core.cost import Cost
from flexrel.core.graph import PruningGraph
from flexrel.core.plan import Plan
from flexrel.errors import UsageError

TOLERANCE: Final = 1e-12  # of accuracies: 0.995 - 0.01 is a little above 0.985 in floats


class Built(Protocol):
    """What becomes of a network that is cut."""

    @property
    def rounded(self) -> nn.Module:
        """The network, with the values that its packed file holds."""

    @property
    def packed(self) -> bytes:
        """Its packed file."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A network that a search might return, made only as far as a resource looks at it.

    Attributes:
        graph: the plan's: what a criterion could score of the dense network.
        units: how many units of it could be pruned, those too that the criterion could not score.
        make_plan: what goes and what stays.
        build: a plan's network.
        known_removed: how many units the plan removes, if that is known without making it.
    """

    graph: PruningGraph
    units: int
    make_plan: Callable[[], Plan]
    build: Callable[[Plan], Built]
    known_removed: int | None = None

    @cached_property
    def plan(self) -> Plan:
        """What goes and what stays."""
        return self.make_plan()

    @property
    def removed(self) -> int:
        """How many units are gone."""
        return self.plan.removed if self.known_removed is None else self.known_removed

    @property
    def network(self) -> nn.Module:
        """The network itself, with the values that its packed file holds."""
        return self._built.rounded  # type: ignore[no-any-return]

    @property
    def packed(self) -> bytes:
        """Its packed file."""
        return self._built.packed  # type: ignore[no-any-return]

    @cached_property
    def _built(self) -> Any:  # noqa: ANN401 - Built; to check it would be to make its file
        return self.build(self.plan)


def _no_advice(graph: PruningGraph) -> str:
    del graph
    return ""


@dataclass(frozen=True, slots=True)
class Resource:
    """Something that a network takes, and how it is counted.

    Attributes:
        name: in results, errors and on the command line.
        count: of a candidate, in the resource's unit.
        steady: whether it never rises as units go, and is counted without making the network: then
            a search bisects it alone. Else it is measured on the network that is returned.
        at_least: whether the target needs so much of it, and not at most so much.
        tolerance: of one that is not steady: a search ends where the amount is within this share
            below the limit. What is steady is met with the least that goes, exactly.
        unit_costs: of a graph, how much of it goes with one unit of each group, which scores are
            weighed by where this is what is short, which only what is steady can be; None: units
            are weighed by their parameters.
        advice: of a graph, what to change where the limit can't be met, or "".
        unit: that amounts are in, where the name does not say it: "s" of "link".
    """

    name: str
    count: Callable[[Candidate], float]
    steady: bool = True
    at_least: bool = False
    tolerance: float = 0.0
    unit_costs: Callable[[PruningGraph], Mapping[str, Cost]] | None = None
    advice: Callable[[PruningGraph], str] = _no_advice
    unit: str = ""

    def __post_init__(self) -> None:
        if self.at_least and not self.steady:
            raise UsageError(
                f"resource {self.name!r} is a floor and is measured on the network; only what is "
                "steady can be one: count what may be kept at most instead"
            )

    @property
    def key(self) -> str:
        """Its name in a result's records, with its unit: "macs", "link_s"."""
        return f"{self.name}_{self.unit}".lower() if self.unit else self.name.lower()

    def told(self, amount: float) -> str:
        """Return an amount in words: "500 MACs", "7.98 s of link"."""
        return (
            f"{amount:,.3g} {self.unit} of {self.name}"
            if self.unit
            else (f"{amount:,.0f} {self.name}")
        )

    def met(self, amount: float, limit: float) -> bool:
        """Return whether an amount keeps to a limit."""
        return amount >= limit if self.at_least else amount <= limit


@runtime_checkable
class Budget(Protocol):
    """A limit on one resource."""

    @property
    def resource(self) -> Resource:
        """What is limited."""

    def limit(self, dense: float) -> float:
        """Return the limit in the resource's unit, where the dense network takes `dense`."""


@dataclass(frozen=True, slots=True)
class BoundBudget:
    """A budget whose resource is counted on one network's own trace, or time: that of this one.

    Attributes:
        asked: the budget as it was given, which knows the limit.
        resource: of the network.
    """

    asked: Budget
    resource: Resource

    def limit(self, dense: float) -> float:
        """Return the limit that was asked for."""
        return self.asked.limit(dense)
