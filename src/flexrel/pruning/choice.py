"""Which criterion, and which precision if that is open: the one that does best within limits."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import inf

from flexrel.core.events import JudgedCandidate
from flexrel.core.measurement import RecoveryStep
from flexrel.core.plan import Plan
from flexrel.core.precision import finest_first
from flexrel.criteria import Criterion, Magnitude
from flexrel.errors import BudgetError, PrecisionError
from flexrel.pruning.builder import PrunedNetwork
from flexrel.pruning.evaluator import Evaluator
from flexrel.pruning.limits import Limits
from flexrel.pruning.search import BudgetSearch
from flexrel.pruning.signals import NetworkSignals
from flexrel.repair import Recovery

_HOPELESS = 1.5  # times the best criterion's sketch: too far off to be the smallest
_NEAR = 1.25  # times the least divergence of a sketch: may be the better one all the same
_COMPARED = 0.6  # of the time there is: criteria are compared no longer
_ROUGHER = 1.1  # of the divergence of the cut: what rounding may leave, where nothing says more


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """A plan that keeps to the limits, the criterion that made it, and where it was found."""

    search: BudgetSearch
    criterion: Criterion
    plan: Plan

    @property
    def evaluator(self) -> Evaluator:
        """Makes and measures the plan's network."""
        return self.search.evaluator

    @property
    def network(self) -> PrunedNetwork:
        """The plan's network."""
        return self.evaluator.network_of(self.plan)

    @property
    def divergence(self) -> float:
        """How far its outputs are from the dense network's, on the samples that judge."""
        return self.evaluator.divergence(self.plan)


def best_solution(evaluator: Evaluator, signals: NetworkSignals, limits: Limits) -> Solution:
    """Return what keeps to the limits, by one of the criteria that were asked for.

    Precision "auto" goes from float32 down as long as that is better: with a target, a smaller
    file; with a budget that is measured on the network, as bytes are, outputs closer to the dense
    network's; else a smaller file whose outputs are at most a tenth further from them than the
    cut's; one that can't hold a value is passed over. The criterion is chosen once, where values
    are finest.

    Args:
        evaluator: makes and measures networks.
        signals: what criteria make scores of, and what was asked.
        limits: to keep to.

    Raises:
        BudgetError: nothing does.
        PrecisionError: the one precision that was asked for can't hold a value.
    """
    request = signals.request
    criteria, values = signals.criteria, request.values
    found: list[Solution] = []
    failed: list[BudgetError] = []
    tensors = evaluator.builder.model.state_dict().values()
    for precision in finest_first(tensors) if values == "auto" else (values,):
        try:
            search = BudgetSearch(evaluator.at(precision), signals.rank, limits, request.short)
            one = _chosen(search, criteria)
        except BudgetError as error:  # a coarser one may still fit a budget on bytes
            failed.append(error)
            continue
        except PrecisionError:
            if values != "auto":
                raise
            continue
        if found and not _is_better(one, found):
            break
        found.append(one)
        if not search.in_time:
            break
        criteria = (one.criterion,)
    if not found:
        metrics = [goal.metric for goal in limits.goals]
        raise next((error for error in failed if error.resource in metrics), failed[-1])
    return found[-1]


def finished(
    solution: Solution, training: Recovery | None
) -> tuple[PrunedNetwork, tuple[RecoveryStep, ...]]:
    """Return the solution's network, trained if that is asked for, and what was done to it.

    A training that takes the network out of the limits is undone.
    """
    network, plan, evaluator = solution.network, solution.plan, solution.evaluator
    if training is None:
        return network, network.steps
    trained, step = evaluator.builder.trained(network, plan, training)
    if trained is None:
        return network, (*network.steps, step)
    candidate = evaluator.candidate(plan, trained)
    for resource, limit in solution.search.limits.measured:
        amount = resource.count(candidate)
        if amount > limit:
            note = f"undone: it takes {resource.told(amount)}, above {resource.told(limit)}"
            undone = replace(step, kept=False, notes=(*step.notes, note))
            return network, (*network.steps, undone)
    return trained, trained.steps


def _is_better(one: Solution, found: Sequence[Solution]) -> bool:
    limits = one.search.limits
    if limits.goals:
        return one.search.least_of(one.plan) < found[-1].search.least_of(found[-1].plan)
    if limits.measured:
        return one.divergence < found[-1].divergence
    smaller = len(one.network.packed) < len(found[-1].network.packed)
    return smaller and one.divergence <= _ROUGHER * found[0].divergence


def _chosen(search: BudgetSearch, criteria: Sequence[Criterion]) -> Solution:
    """Return the criterion, chosen of several, and its plan.

    With a target that of the smallest network which keeps to it; else the closest to the dense one
    on the samples that judge.
    """
    if len(criteria) == 1:
        return Solution(search, criteria[0], search.plan(criteria[0]))
    magnitude = Magnitude()  # what the first choice is made like
    if not search.limits.goals:
        return _chosen_within(search, criteria, magnitude)
    ranking = search.ranking(magnitude)
    like = ranking.plan(ranking.removable // 2)
    first = _closest(search, criteria, partial(search.as_costly, like))
    best: Solution | None = None
    least, hopeless = (inf, inf), inf
    failed: list[BudgetError] = []
    for criterion in sorted(criteria, key=lambda one: one is not first):
        try:
            if best is None:
                plan: Plan | None = search.plan(criterion)
            else:
                plan = _smaller(best, criterion, hopeless)
        except BudgetError as error:
            failed.append(error)
            continue
        takes = least if plan is None else search.least_of(plan)
        if plan is not None and takes < least:
            best, least = Solution(search, criterion, plan), takes
            if not search.in_time:
                break
            if search.evaluator.builder.sketches:
                hopeless = _HOPELESS * search.evaluator.sketched_divergence(plan)
    if best is None:
        raise failed[0]
    return best


def _smaller(best: Solution, criterion: Criterion, hopeless: float) -> Plan | None:
    """Return another criterion's plan for a target, which may be smaller than the best so far.

    None where it can't be, or is not tried: where its sketch at the size of the best is further
    from the dense network's outputs than `hopeless`.
    """
    search, evaluator = best.search, best.evaluator
    if evaluator.builder.sketches:
        alike = search.as_costly(best.plan, criterion)
        if alike is not None and evaluator.sketched_divergence(alike) > hopeless:
            return None
    return search.plan_below(criterion, best.plan)


def _chosen_within(
    search: BudgetSearch, criteria: Sequence[Criterion], magnitude: Criterion
) -> Solution:
    """Return the choice where budgets alone say how much goes."""
    count = search.least(magnitude)
    plan_of: Callable[[Criterion], Plan | None] = search.plan
    if search.limits.measured:  # which takes long: plans are made alike in what is short
        plan_of = partial(search.as_costly, search.ranking(magnitude).plan(count))
    chosen = _closest(search, criteria, plan_of, sure=True)
    if chosen == magnitude:  # what it has to do is known
        return Solution(search, chosen, search.filled(chosen, count))
    return Solution(search, chosen, search.plan(chosen))


def _closest(
    search: BudgetSearch,
    criteria: Sequence[Criterion],
    plan_of: Callable[[Criterion], Plan | None],
    *,
    sure: bool = False,
) -> Criterion:
    """Return the criterion whose plan's network diverges least; a tie goes to the earlier.

    Sketches of the networks tell.

    Args:
        search: judges.
        criteria: to choose from.
        plan_of: makes a criterion's plan, all of one cost; None where there is none.
        sure: whether the best is repaired in full, and the second too if its sketch is close to
            that of the best, or no worse than what became of it.
    """
    evaluator, builder = search.evaluator, search.evaluator.builder
    plans: list[Plan | None] = []
    sketched: list[float] = []
    for criterion in criteria:
        if builder.deadline.reached(_COMPARED) and any(plans):
            break
        builder.progress("choosing a criterion", len(plans), len(criteria))
        try:
            plan = plan_of(criterion)
        except BudgetError:  # it can't score enough of the network
            plan = None
        plans.append(plan)
        sketched.append(inf if plan is None else evaluator.sketched_divergence(plan))
        if plan is not None:
            numbers, sketch = {"divergence": sketched[-1]}, builder.sketches
            builder.judged(
                JudgedCandidate(criterion.name, plan.removed, numbers, sketch=sketch, kept=None)
            )
        if plan and not builder.sketches and sketched[-1] < min(sketched[:-1], default=inf):
            evaluator.hold(plan)
    builder.progress("choosing a criterion", len(criteria), len(criteria))
    first, *others = sorted(range(len(plans)), key=sketched.__getitem__)
    best = plans[first]
    if not sure or not builder.sketches or best is None:
        return criteria[first]
    began = time.monotonic()
    least = evaluator.divergence(best)
    another = builder.deadline.left > time.monotonic() - began
    for at in others[:1] if another else ():
        other = plans[at]
        if other and sketched[at] <= max(least, _NEAR * sketched[first]):
            evaluator.hold(best)
            return criteria[at if evaluator.divergence(other) < least else first]
    return criteria[first]
