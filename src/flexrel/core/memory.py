"""A budget on the activations that a forward pass holds at once."""

from collections import defaultdict
from dataclasses import dataclass
from typing import ClassVar

from flexrel.core.cost import Cost, remaining
from flexrel.core.graph import Masks, PruningGraph, ShrinkingAxes
from flexrel.core.quantities import bytes_limit, bytes_unread
from flexrel.core.resources import BoundBudget, Candidate, Resource
from flexrel.errors import UsageError


@dataclass(frozen=True, slots=True)
class Activation:
    """A tensor that a forward pass makes or is given, and while it lives.

    Attributes:
        bytes: of it, for one sample.
        first: number of the operation that makes it.
        last: number of the last that reads it; it is alive while both run.
        axes: that shrink.
    """

    bytes: int
    first: int
    last: int
    axes: ShrinkingAxes = ()


@dataclass(frozen=True, slots=True)
class Activations:
    """All tensors of a network's forward pass that are no weights."""

    tensors: tuple[Activation, ...]

    def peak(self, masks: Masks) -> int:
        """Return the most bytes that are alive at once, where these units stay."""
        gone = {group: int((~mask).sum()) for group, mask in masks.items()}
        change: dict[int, int] = defaultdict(int)  # operation -> bytes more than before it
        for one in self.tensors:
            size = remaining(one.bytes, one.axes, gone)
            change[one.first] += size
            change[one.last + 1] -= size
        alive = most = 0
        for at in sorted(change):
            alive += change[at]
            most = max(most, alive)
        return most

    def unit_bytes(self, graph: PruningGraph) -> dict[str, Cost]:
        """Return the bytes that go with one unit of each group, of all tensors, not the peak's.

        Where the peak is cut another place becomes it, so all count.
        """
        found: dict[str, Cost] = {group.name: 0.0 for group in graph.groups}
        for one in self.tensors:
            for length, units in one.axes:
                for name, each in units:
                    if name in found:
                        found[name] += one.bytes * each / length
        return found


@dataclass(frozen=True, slots=True)
class _Peak:
    """Counts a candidate's peak."""

    activations: Activations

    def __call__(self, candidate: Candidate) -> int:
        """Return the bytes."""
        if candidate.graph.pattern.zeros:  # masks of millions, which change nothing
            return self.activations.peak({})
        return self.activations.peak(candidate.plan.masks)


def _unbound(candidate: Candidate) -> int:
    raise UsageError(
        f"memory is counted on the traced network, which {type(candidate).__name__} has not; "
        "pass the budget to flexrel.prune"
    )


def _advice(graph: PruningGraph) -> str:
    return "Zeros save no activations; use granularity='channel'." if graph.pattern.zeros else ""


@dataclass(frozen=True, slots=True)
class PeakMemory:
    """At most `amount` bytes of activations at once, for one sample: "2 MB", 2_000_000, "50%", 0.5.

    Counted on the traced network: every tensor that an operation makes, from that operation to the
    last that reads it or a view of it; the inputs and outputs are held to the end. Weights and
    buffers are not counted, nor what kernels take besides while they run: a runtime that fuses
    operations or plans its memory needs less, one that frees late more. What the dense network
    copies counts as a copy, also where a cut one could do without.

    Raises:
        UsageError: the amount is no count of bytes and no share of the dense network's.
    """

    amount: float | str
    resource: ClassVar[Resource] = Resource("memory", _unbound, advice=_advice, unit="bytes")

    def __post_init__(self) -> None:
        if not bytes_limit("memory", self.amount, 10**12):
            raise bytes_unread("memory", self.amount)

    def limit(self, dense: float) -> int:
        """Return the most bytes allowed."""
        return bytes_limit("memory", self.amount, dense)

    def bound(self, activations: Activations) -> BoundBudget:
        """Return the same limit on one network's activations."""
        return BoundBudget(
            self,
            Resource(
                "memory",
                _Peak(activations),
                unit_costs=activations.unit_bytes,
                advice=_advice,
                unit="bytes",
            ),
        )
