"""Why a budget can't be met, in one error for all of those that can't."""

from collections.abc import Sequence
from operator import itemgetter

from flexrel.core.graph import PruningGraph
from flexrel.core.resources import Resource
from flexrel.criteria import Ranking, UnitRanking
from flexrel.errors import BudgetError
from flexrel.pruning.warnings import left_alone


def refused(
    graph: PruningGraph, ranking: Ranking, resource: Resource, limit: float, closest: float
) -> BudgetError:
    """Return the refusal of a limit that is not met where all goes that can.

    Args:
        graph: of the network.
        ranking: whose units all went.
        resource: that is limited.
        limit: in its unit.
        closest: what the network then takes.
    """
    advice = "Every layer keeps its best unit."
    if graph.pattern.unit == "n:m":
        advice = f"That is {graph.granularity} on all {ranking.removable} layers."
    elif isinstance(ranking, UnitRanking) and ranking.multiple_of > 1:
        advice = f"Every layer keeps a multiple of {ranking.multiple_of}."
    left = max(left_alone(ranking.graph), key=itemgetter(1), default=None)
    if left is not None:
        advice += f" {left[0]!r}, {left[1]:.0%} of the weights, is left alone: {left[2]}."
    text = f"{advice} {resource.advice(graph)}".rstrip()
    return BudgetError(resource.name, limit, closest, text, resource.at_least, resource.unit)


def together(errors: Sequence[BudgetError]) -> BudgetError:
    """Return the first error, which says of the others too what was asked and what is possible."""
    first, *others = errors
    also = (
        f"Also {BudgetError(e.resource, e.limit, e.closest, '', e.at_least, e.unit)}"
        for e in others
    )
    advice = " ".join([first.advice, *also]).strip()
    return BudgetError(
        first.resource, first.limit, first.closest, advice, first.at_least, first.unit
    )
