"""Budgets that are counted on one network's own trace, or time, bound to it."""

from dataclasses import dataclass, replace
from operator import itemgetter

from flexrel.core.latency import Latency
from flexrel.core.memory import PeakMemory
from flexrel.core.resources import Budget
from flexrel.criteria import Magnitude, Ranking
from flexrel.errors import UsageError
from flexrel.pruning.clock import Clock, LayerBench
from flexrel.pruning.request import Request
from flexrel.pruning.signals import NetworkSignals
from flexrel.pruning.sources import PruneTarget
from flexrel.pruning.width_grid import layer_widths
from flexrel.structure import activations_of
from flexrel.tracing import layer_works


@dataclass(frozen=True, slots=True)
class BoundRequest:
    """A request whose budgets can be counted on what is cut.

    Attributes:
        request: with widths rounded to what is fast, if that was measured.
        clock: of its budget on latency; None: there is none.
    """

    request: Request
    clock: Clock | None

    def told_by(self, clock: Clock) -> "BoundRequest":
        """Return the request with latency expected by another clock."""
        old = self.clock.bound.resource.key if self.clock else ""
        budgets = (clock.bound if b.resource.key == old else b for b in self.request.budgets)
        return BoundRequest(replace(self.request, budgets=tuple(budgets)), clock)


def bound(request: Request, target: PruneTarget) -> BoundRequest:
    """Return the request with each budget ready to be counted on what is cut.

    Raises:
        UsageError: one can't be counted at the request's granularity, or on the network's device.
        ModelError: the network can't be exported for the runtime that is asked for.
    """
    budgets = tuple(with_memory(one, target) for one in request.budgets)
    request = replace(request, budgets=budgets)
    latency = next((one for one in budgets if isinstance(one, Latency)), None)
    return BoundRequest(request, None) if latency is None else _timed(request, latency, target)


def with_memory(budget: Budget, target: PruneTarget) -> Budget:
    """Return the budget; one on activations counted on the network's own trace.

    Raises:
        UsageError: they can't be counted at the granularity.
    """
    if not isinstance(budget, PeakMemory):
        return budget
    if target.graph.pattern.unit == "depth":
        raise UsageError(
            "activations of a network without some of its blocks are not counted; a budget on "
            "memory takes granularity 'channel' or 'head'"
        )
    return budget.bound(activations_of(target.network, target.examples[0], target.graph))


def _timed(request: Request, budget: Latency, target: PruneTarget) -> BoundRequest:
    """Return the request with its latency measured: at the fastest multiple that can meet it."""
    network, graph, options = target.network, target.graph, request.options
    device = next((p.device.type for p in network.parameters()), "cpu")
    if device != "cpu":
        raise UsageError(f"latency is measured on the CPU; the network is on {device!r}: move it")
    pattern = graph.pattern
    works = () if pattern.zeros else layer_works(network, target.examples[0])
    rounds = pattern.unit in ("channel", "head")
    multiples = () if rounds and options.multiple_of == 1 else (options.multiple_of,)
    layers = layer_widths(works, graph, halved=not multiples)
    bench = LayerBench.of(budget, network, target.data.first, layers, request.progress)
    found: list[tuple[float, BoundRequest, Ranking]] = []
    for multiple in multiples or bench.multiples():
        clock = bench.clock(multiple, graph)
        given = (clock.bound if one is budget else one for one in request.budgets)
        rounded = replace(options, multiple_of=multiple)
        told = replace(request, budgets=tuple(given), options=rounded, halved=not multiples)
        one = BoundRequest(told, clock)
        ranking = NetworkSignals(target, {}, {}, one.request).rank(Magnitude())
        if _beyond(clock, ranking) <= 0 and not pattern.zeros:
            clock = clock.learnt(network, ranking)
            one = one.told_by(clock)
        found.append((_beyond(clock, ranking), one, ranking))
        if found[-1][0] <= 0:
            return one
    _, one, ranking = min(found, key=itemgetter(0))
    if pattern.zeros or one.clock is None:
        return one
    return one.told_by(one.clock.learnt(network, ranking))  # what is refused then was measured


def _beyond(clock: Clock, ranking: Ranking) -> float:
    """Return by how many milliseconds the least that is possible is beyond the limit."""
    plan = ranking.plan(ranking.removable)
    return clock.model.milliseconds(plan.graph, plan.masks) - clock.limit
