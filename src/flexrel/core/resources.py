"""Resources that a network takes: how one is counted, and what a limit on it is.

A new budget is one object that fits `Budget`, with a `Resource` that says how it is counted; the
search, the result and errors ask nothing else of it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

from torch import nn

from flexrel.core.cost import Cost
from flexrel.core.graph import Masks, PruningGraph

TOLERANCE: Final = 1e-12  # of shares and accuracies: 1 - 0.9 is a little above 0.1 in floats


class Candidate(Protocol):
    """A network that a search might return, made only as far as it is looked at."""

    @property
    def graph(self) -> PruningGraph:
        """What could be pruned of the dense network."""

    @property
    def masks(self) -> Masks:
        """Which units stay; empty for the dense network."""

    @property
    def removed(self) -> int:
        """How many units are gone; told without making masks where that takes long."""

    @property
    def network(self) -> nn.Module:
        """The network itself, with the values that its packed file holds."""

    @property
    def packed(self) -> bytes:
        """Its packed file."""


@dataclass(frozen=True, slots=True)
class Resource:
    """Something that a network takes, and how it is counted.

    Attributes:
        name: in results, errors and on the command line.
        count: of a candidate, in the resource's unit.
        steady: whether it never rises as units go, and is counted without making the network: then
            a search bisects it alone. Else it is measured on the network that is returned.
        at_least: whether the target needs so much of it, and not at most so much.
        tolerance: a search ends where the amount is within this share below the limit; 0 finds the
            least that goes exactly.
        unit_costs: of a graph, how much of it goes with one unit of each group, which scores are
            weighed by where this is what is short; None: units are weighed by their parameters.
        advice: of a graph, what to change where the limit can't be met, or "".
    """

    name: str
    count: Callable[[Candidate], float]
    steady: bool = True
    at_least: bool = False
    tolerance: float = 0.0
    unit_costs: Callable[[PruningGraph], Mapping[str, Cost]] | None = None
    advice: Callable[[PruningGraph], str] = lambda _: ""

    def met(self, amount: float, limit: float) -> bool:
        """Return whether an amount keeps to a limit."""
        return amount >= limit - TOLERANCE if self.at_least else amount <= limit


@runtime_checkable
class Budget(Protocol):
    """A limit on one resource."""

    @property
    def resource(self) -> Resource:
        """What is limited."""

    def limit(self, dense: float) -> float:
        """Return the limit in the resource's unit, where the dense network takes `dense`."""
