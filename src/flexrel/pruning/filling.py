"""What comes back of a plan that leaves room within its limits."""

from flexrel.core.plan import Plan
from flexrel.core.resources import Resource
from flexrel.criteria import Ranking, UnitRanking
from flexrel.pruning.evaluator import Evaluator

_FILLS = 100  # units tried that may stay within the limits after all
_ROOM = 0.01  # of a limit left over: not worth filling


def filled_plan(
    evaluator: Evaluator,
    ranking: Ranking,
    count: int,
    limits: tuple[tuple[Resource, float], ...],
) -> Plan:
    """Return the plan, less units that fit within steady limits after all.

    Units differ in cost, so that the last one to go may leave much room: heads and groups of
    channels do. Of those removed the best come back first.
    """
    plan = ranking.plan(count)
    graph = ranking.graph
    if graph.pattern.zeros or not isinstance(ranking, UnitRanking) or not limits:
        return plan
    if ranking.multiple_of > 1:
        return plan

    def room(plan: Plan) -> float:
        candidate = evaluator.candidate(plan)
        over = ((r, r.count(candidate) / (limit or 1) - 1) for r, limit in limits)
        return min(share if r.at_least else -share for r, share in over)

    for tried, (group, unit) in enumerate(ranking.best_removed(count)):
        if tried == _FILLS or room(plan) < _ROOM:
            break
        mask = plan.masks[group].clone()
        mask[unit] = True
        fuller = Plan(graph, {**plan.masks, group: mask})
        if room(fuller) >= 0:
            plan = fuller
    return plan
