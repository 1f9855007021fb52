"""Why a budget can't be met, in one error for all of those that can't."""

from collections.abc import Sequence
from operator import itemgetter

from flexrel.core.budgets import MACs
from flexrel.core.cost import layer_parameters, macs, weight_macs
from flexrel.core.graph import PruningGraph
from flexrel.core.plan import Plan, named, owner_of
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
    advice = _unscored(graph, ranking.graph) or "Every layer keeps its best unit."
    if graph.pattern.unit == "n:m":
        advice = f"That is {graph.granularity} on all {ranking.removable} layers."
    elif isinstance(ranking, UnitRanking) and ranking.multiple_of > 1:
        advice = f"Every layer keeps a multiple of {ranking.multiple_of}."
    left = max(left_alone(ranking.graph), key=itemgetter(1), default=None)
    if left is not None:
        advice += f" {left[0]!r}, {left[1]:.0%} of the weights, is left alone: {left[2]}."
    if not graph.pattern.zeros:
        advice += _largest(ranking.plan(ranking.removable), resource, left[0] if left else "")
    text = f"{advice} {resource.advice(graph)}".rstrip()
    return BudgetError(resource.name, limit, closest, text, resource.at_least, resource.unit)


def _unscored(graph: PruningGraph, scored: PruningGraph) -> str:
    """Return which layers the criterion can't score, that others may; "" where it can score all."""
    known = {group.name for group in scored.groups}
    missing = [group.name for group in graph.groups if group.name not in known]
    if not missing:
        return ""
    why = next((one.reason for one in scored.protected if one.name == missing[0]), "")
    return (
        f"The criterion can score {len(known)} of {len(graph.groups)} layers, not {missing[0]!r}: "
        f"{why}; another criterion, or magnitude beside it, may."
    )


def _largest(plan: Plan, resource: Resource, known: str) -> str:
    """Return which layer holds most of what stays, but for one that was named, and how much."""
    of_work = resource is MACs.resource
    amounts = (weight_macs if of_work else layer_parameters)(plan.graph, plan.masks)
    total = macs(plan.graph, plan.masks) if of_work else sum(amounts.values())
    layers: dict[str, int] = {}
    for tensor, amount in amounts.items():
        layers[owner_of(tensor)] = layers.get(owner_of(tensor), 0) + amount
    name = max(layers, key=layers.__getitem__, default="")
    if not total or named(name) == known:
        return ""
    unit = "multiply-adds" if of_work else "parameters"
    return f" Of what stays most is in {named(name)!r}, {layers[name] / total:.0%} of the {unit}."


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
