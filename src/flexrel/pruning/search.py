"""From limits to the plan of a criterion that keeps to them: bisection over one number.

A ranking cut after `k` units is a plan, and plans of one ranking are nested: a resource that is
steady can only fall as `k` grows.
"""

import itertools
import time
from collections.abc import Callable
from functools import cache
from math import inf
from operator import itemgetter

from flexrel.core.evaluate import Metrics
from flexrel.core.events import JudgedCandidate
from flexrel.core.plan import Plan
from flexrel.core.resources import Candidate, Resource
from flexrel.core.targets import missed
from flexrel.criteria import Criterion, Ranking, UnitRanking
from flexrel.errors import BudgetError
from flexrel.pruning.bisection import least_removal, most_removal
from flexrel.pruning.evaluator import Evaluator
from flexrel.pruning.filling import filled_plan
from flexrel.pruning.limits import Limits
from flexrel.pruning.refusal import refused, together

_ROOM = 0.01  # of a limit left over: not worth filling
_AIMS = 5  # tries to bring a repaired network within a limit that is measured on it
_STEPS = 1000  # of the units, where a measured resource rose as units went
_SKETCHED = 0.5  # of the time there is: sketches take no more
_RESOLUTION = 128  # a target is searched to within 1/128 of the units


class BudgetSearch:
    """Finds plans of one network's graph that keep to limits; answers depend on nothing before.

    Attributes:
        evaluator: makes and measures networks.
        limits: to keep to.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        rank: Callable[[Criterion], Ranking],
        limits: Limits,
        short: Resource,
    ) -> None:
        """Take what makes networks, in which order a criterion lets units go, and the limits.

        Args:
            evaluator: of the network.
            rank: a criterion's ranking of its units.
            limits: to keep to.
            short: the resource that plans of different criteria are made alike in.
        """
        self.evaluator, self.limits = evaluator, limits
        self._rank, self._short = rank, short
        self._took = 0.0  # seconds for the last network that was tried
        self._ranked: tuple[Criterion, Ranking] | None = None  # rankings are large: the last

    @property
    def in_time(self) -> bool:
        """Whether there is time to try another network."""
        return self.evaluator.builder.deadline.left > self._took

    def ranking(self, criterion: Criterion) -> Ranking:
        """Return the order in which the criterion lets units go, or layers take N:M."""
        if self._ranked is None or self._ranked[0] is not criterion:
            self._ranked = criterion, self._rank(criterion)
        return self._ranked[1]

    def plan(self, criterion: Criterion) -> Plan:
        """Return the criterion's plan: to the budgets, or beyond as far as the target allows.

        Raises:
            BudgetError: the limits can't be kept; says the closest that can.
        """
        least = self.least(criterion)
        if not self.limits.goals:
            return self.filled(criterion, least)
        begin = self._sketched(criterion, least) if self.evaluator.builder.sketches else None
        count, found = self._most(criterion, least, begin)
        if count is None and least in found:
            on = self.evaluator.samples
            told = "" if on is None else f" on {on:,} samples"
            advice = f"That is what the budgets leave{told}; raise them or allow a larger drop."
            goal = missed(self.limits.goals, found[least]) or self.limits.goals[0]
            closest, at_least = found[least][goal.metric], not goal.lower_is_better
            raise BudgetError(goal.metric, goal.limit, closest, advice, at_least)
        return self.ranking(criterion).plan(least if count is None else count)

    def plan_below(self, criterion: Criterion, like: Plan) -> Plan | None:
        """Return the plan of `plan` for a target, if it may take less than another's; or None.

        Nothing larger than the other is tried, so that a criterion that is not the best takes one
        network. The other's network is kept until one that takes no more is found.

        Args:
            criterion: whose plan it is.
            like: the other, which keeps to the limits.

        Raises:
            BudgetError: the limits can't be kept.
        """
        ranking, evaluator = self.ranking(criterion), self.evaluator
        resource = self.limits.minimised
        share, amount = 1.0, resource.count(evaluator.candidate(like))
        if not resource.steady:
            rough = resource.count(evaluator.candidate(like, evaluator.builder.rough(like)))
            share = amount / rough if rough else 0.0  # repair changes bytes

        def expected(count: int) -> float:
            return share * resource.count(self._candidate(ranking, count, rough=True))

        enough = least_removal(expected, amount, ranking.removable, resource.tolerance)
        if enough is None:
            return None
        least = max(enough, self.least(criterion))
        count, _ = self._most(criterion, least, least, at_most=amount)
        return None if count is None else ranking.plan(count)

    def least_of(self, plan: Plan) -> tuple[float, int]:
        """Return how much of what is to be least a plan's network takes, and its bytes."""
        candidate = self.evaluator.candidate(plan)
        return self.limits.minimised.count(candidate), len(candidate.packed)

    def _sketched(self, criterion: Criterion, least: int) -> int | None:
        """Return about how many units can go within the goals, told by sketches."""
        ranking, evaluator = self.ranking(criterion), self.evaluator
        tried = itertools.count(1)

        def good(count: int) -> bool:
            plan = ranking.plan(count)
            metrics = evaluator.sketched_metrics(plan)
            kept = missed(self.limits.goals, metrics) is None
            told = JudgedCandidate(criterion.name, plan.removed, metrics, sketch=True, kept=kept)
            evaluator.builder.judged(told)
            evaluator.builder.progress(f"searching with {criterion.name}", next(tried), None)
            return kept

        def goes_on(_: int) -> bool:
            return not evaluator.builder.deadline.reached(_SKETCHED)

        step = 4 * self._resolution(ranking)
        return most_removal(good, least, ranking.removable, step, worth=goes_on)

    def _most(
        self, criterion: Criterion, least: int, begin: int | None, at_most: float = inf
    ) -> tuple[int | None, dict[int, Metrics]]:
        """Return the most units found that can go within the limits, if any; and what was tried.

        Its network takes no more than `at_most` of what is to be least, and is held.
        """
        ranking, evaluator, goals = self.ranking(criterion), self.evaluator, self.limits.goals
        told = f"searching with {criterion.name}"
        found: dict[int, Metrics] = {}
        held: set[int] = set()
        evaluator.builder.progress(told, 0, None)

        def good(count: int) -> bool:
            began = time.monotonic()
            candidate = self._candidate(ranking, count)
            found[count] = evaluator.metrics(candidate.network)
            self._took = time.monotonic() - began
            evaluator.builder.progress(told, len(found), None)
            numbers, removed = found[count], candidate.removed
            kept = missed(goals, numbers) is None and self._exceeded(candidate) is None
            judged = JudgedCandidate(criterion.name, removed, numbers, sketch=False, kept=kept)
            evaluator.builder.judged(judged)
            if kept and self.limits.minimised.count(candidate) <= at_most:
                evaluator.hold(candidate.plan)
                held.add(count)
            return kept

        most, resolution = ranking.removable, self._resolution(ranking)
        count = most_removal(good, least, most, resolution, begin, lambda _: self.in_time)
        return (count if count in held else None), found

    @staticmethod
    def _resolution(ranking: Ranking) -> int:
        return max(ranking.removable // _RESOLUTION, 1)

    def least(self, criterion: Criterion) -> int:
        """Return the least number of units to remove so that every budget is met.

        For N:M it is the number of layers that have it: without a target, all that can.

        Raises:
            BudgetError: one can't be; says of all that can't the closest that can.
        """
        ranking, count = self.ranking(criterion), 0
        errors: list[BudgetError] = []
        for resource, limit in self.limits.amounts:
            try:
                count = max(count, self._least_for(ranking, resource, limit))
            except BudgetError as error:
                errors.append(error)
        if errors:
            raise together(errors)
        if not self.limits.goals and self.evaluator.graph.pattern.unit == "n:m":
            count = ranking.removable
        while self.limits.measured:  # it may rise a little as units go
            candidate = self._candidate(ranking, count)
            exceeded = self._exceeded(candidate)
            if exceeded is None:
                break
            if count == ranking.removable:
                raise self._refused(ranking, *exceeded)
            count = min(count + 1 + ranking.removable // _STEPS, ranking.removable)
        return count

    def filled(self, criterion: Criterion, count: int) -> Plan:
        """Return the plan that removes `count` units, less those that fit the limits after all."""
        steady = all(r.steady for r, _ in self.limits.amounts)
        limits = self.limits.amounts if steady else ()
        return filled_plan(self.evaluator, self.ranking(criterion), count, limits)

    def as_costly(self, like: Plan, criterion: Criterion) -> Plan | None:
        """Return the criterion's plan that takes no more than another of what is short, if any."""
        limit = self._short.count(self.evaluator.candidate(like))
        ranking = self.ranking(criterion)
        count = self._bisected(ranking, self._short, limit)
        return (
            None
            if count is None
            else filled_plan(self.evaluator, ranking, count, ((self._short, limit),))
        )

    def _candidate(self, ranking: Ranking, count: int, *, rough: bool = False) -> Candidate:
        """Return the plan that removes the ranking's first units, its network not yet made."""
        exact = isinstance(ranking, UnitRanking) and ranking.multiple_of == 1
        evaluator = self.evaluator
        return Candidate(
            ranking.graph,
            evaluator.graph.units,
            lambda: ranking.plan(count),
            evaluator.builder.rough if rough else evaluator.network_of,
            known_removed=count if exact else None,
        )

    def _exceeded(self, candidate: Candidate) -> tuple[Resource, float] | None:
        """Return the tightest limit on what only the network tells that it does not keep to."""
        missed = [pair for pair in self.limits.measured if pair[0].count(candidate) > pair[1]]
        return min(missed, key=itemgetter(1), default=None)

    def _bisected(self, ranking: Ranking, resource: Resource, limit: float) -> int | None:
        sign = -1 if resource.at_least else 1

        def amount(count: int) -> float:
            return sign * resource.count(self._candidate(ranking, count))

        return least_removal(amount, sign * limit, ranking.removable)

    def _least_for(self, ranking: Ranking, resource: Resource, limit: float) -> int:
        if not resource.steady:
            return self._least_measured(ranking, resource, limit)
        count = self._bisected(ranking, resource, limit)
        if count is None:
            raise self._refused(ranking, resource, limit)
        return count

    def _least_measured(self, ranking: Ranking, resource: Resource, limit: float) -> int:
        """Return the least number of units without which the network itself keeps to the limit.

        A repair takes much longer than a count, and may change it: bytes grow. So amounts are
        searched without it, for what a repaired network is expected to take; where it takes more,
        or leaves room, the next expectation is learnt from it.
        """

        @cache
        def rough(count: int) -> float:
            self.evaluator.builder.progress(f"counting {resource.name}", count, ranking.removable)
            return resource.count(self._candidate(ranking, count, rough=True))

        met: int | None = None
        grown = 1.0  # times as much as not repaired
        for _ in range(_AIMS):
            aim = limit if grown == 1 else limit * (1 - resource.tolerance / 2) / grown
            count = least_removal(rough, aim, ranking.removable, resource.tolerance)
            if count is None or count == met:
                break
            amount = resource.count(self._candidate(ranking, count))
            grown = amount / rough(count) if rough(count) else 1.0
            if amount <= limit:
                met = count
            if met is not None and amount >= (1 - _ROOM) * limit:
                break
        if met is not None:
            return met
        if resource.count(self._candidate(ranking, ranking.removable)) > limit:
            raise self._refused(ranking, resource, limit)
        return ranking.removable

    def _refused(self, ranking: Ranking, resource: Resource, limit: float) -> BudgetError:
        closest = resource.count(self._candidate(ranking, ranking.removable))
        return refused(self.evaluator.graph, ranking, resource, limit, closest)
