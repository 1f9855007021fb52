"""Budgets that are counted on one network's own trace, bound to it."""

from dataclasses import replace

from flexrel.core.memory import PeakMemory
from flexrel.core.resources import Budget
from flexrel.errors import UsageError
from flexrel.pruning.request import Request
from flexrel.pruning.sources import PruneTarget
from flexrel.structure import activations_of


def bound(request: Request, target: PruneTarget) -> Request:
    """Return the request with each budget ready to be counted on what is cut.

    Raises:
        UsageError: one can't be counted at the request's granularity.
    """
    return replace(request, budgets=tuple(_bound(one, target) for one in request.budgets))


def _bound(budget: Budget, target: PruneTarget) -> Budget:
    if not isinstance(budget, PeakMemory):
        return budget
    if target.graph.pattern.unit == "depth":
        raise UsageError(
            "activations of a network without some of its blocks are not counted; a budget on "
            "memory takes granularity 'channel' or 'head'"
        )
    return budget.bound(activations_of(target.network, target.examples[0], target.graph))
