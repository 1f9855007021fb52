"""Budgets that no cut can meet are refused before anything is measured of the network."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from flexrel.core.budgets import Bytes
from flexrel.core.distance import Divergence
from flexrel.core.latency import Latency
from flexrel.core.plan import Plan
from flexrel.core.precision import finest_first
from flexrel.core.resources import Budget, Candidate, Resource
from flexrel.criteria import Magnitude, Ranking
from flexrel.errors import BudgetError, PrecisionError
from flexrel.pruning.binding import with_memory
from flexrel.pruning.evaluator import Evaluator, evaluator_of
from flexrel.pruning.limits import Limits
from flexrel.pruning.refusal import refused, together
from flexrel.pruning.request import Request
from flexrel.pruning.search import BudgetSearch
from flexrel.pruning.signals import NetworkSignals
from flexrel.pruning.sources import PruneTarget, Sources
from flexrel.structure import apply

_REPAIR: Final = 0.05  # of what is measured: so much may a repair and the criterion change of it
_WIDTHS: Final = 0.2  # likewise, where another criterion cuts channels to other widths before


@dataclass(frozen=True, slots=True, eq=False)
class Extremes:
    """A network as it came, and the least that can be made of it.

    That is by magnitude, and not repaired, which hardly changes what it takes.

    Attributes:
        evaluators: of its cuts, at each precision that the packed file may have.
        signals: that its units are ranked with.
        ranking: of its units.
    """

    evaluators: tuple[Evaluator, ...]
    signals: NetworkSignals
    ranking: Ranking

    @property
    def dense(self) -> Candidate:
        """The network as it came."""
        return self.evaluators[0].dense

    def evaluator(self, resource: Resource) -> Evaluator:
        """Return the one by whose precision least of a resource can be had."""
        if resource.steady:
            return self.evaluators[0]
        return min(self.evaluators, key=lambda one: self._least(one, resource))

    def closest(self, resource: Resource) -> float:
        """Return how much a network takes of which all goes that can."""
        return self._least(self.evaluator(resource), resource)

    def refusals(self, request: Request, roughly: float) -> Iterator[BudgetError]:
        """Yield why each budget of a request that can't be met can't be.

        Args:
            request: whose budgets can be counted.
            roughly: share by which what is measured may come out otherwise: it is refused where it
                is beyond that, and what is told to be possible has that much added.
        """
        graph = self.signals.target.graph
        for budget in request.budgets:
            resource, limit = budget.resource, budget.limit(budget.resource.count(self.dense))
            closest = self.closest(resource)
            off = 0.0 if resource.steady else roughly
            if not resource.met((1 - off) * closest, limit):
                error = refused(graph, self.ranking, resource, limit, closest)
                yield _with_room(error, off) if off else error

    def plan(self, budgets: Sequence[Budget]) -> Plan:
        """Return the plan that keeps to budgets, or that takes all that can go where none does.

        Args:
            budgets: on what is counted on plans.
        """
        amounts = tuple((b.resource, b.limit(b.resource.count(self.dense))) for b in budgets)
        limits, request = Limits((), amounts, Bytes.resource), self.signals.request
        search = BudgetSearch(self.evaluators[0], self.signals.rank, limits, request.short)
        try:
            count = search.least(Magnitude())
        except BudgetError:
            count = self.ranking.removable
        return self.ranking.plan(count)

    def _least(self, evaluator: Evaluator, resource: Resource) -> float:
        plan = self.ranking.plan(self.ranking.removable)
        rough, units = evaluator.builder.rough, evaluator.graph.units
        try:
            return resource.count(Candidate(plan.graph, units, lambda: plan, rough))
        except PrecisionError:  # others may hold the values
            if len(self.evaluators) == 1:
                raise
            return math.inf


def extremes_of(target: PruneTarget, request: Request) -> Extremes:
    """Return what can be had of a network at all, counted in seconds."""
    untracked = replace(request.options, history=None)
    asked = replace(request, criteria=(Magnitude(),), evaluate=None, options=untracked)
    signals = NetworkSignals(target, {}, {}, asked)
    evaluator = evaluator_of(signals, Divergence(target.network, target.examples[:1]))
    tensors = target.network.state_dict().values()
    coarser = finest_first(tensors)[1:] if request.values == "auto" else ()
    evaluators = (evaluator, *map(evaluator.at, coarser))
    return Extremes(evaluators, signals, signals.rank(Magnitude()))


def possible_target(sources: Sources) -> PruneTarget:
    """Return what is cut of a model: what budgets are possible of, before they are searched for.

    Latency, which takes long to measure, is left for later.

    Raises:
        BudgetError: they are not; says of each that is not what is.
        ModelError: the network can't be analysed.
    """
    target = sources.first()
    try:
        _check(target, sources.request)
    except BudgetError as error:
        target = sources.instead(target, error)
        _check(target, sources.request)
    return target


def check_both(channels: PruneTarget, first: Request, second: Request) -> None:
    """Refuse budgets on channels, and then on zeros of what these leave, that no cut can meet.

    Args:
        channels: the network.
        first: whose budgets channels go for.
        second: whose budgets zeros come for then, their limits known.

    Raises:
        BudgetError: says of each that can't be met what can.
    """
    first = countable(first, channels)
    extremes = extremes_of(channels, first)
    errors = list(extremes.refusals(first, _REPAIR))
    cut = apply(channels.network, extremes.plan(first.budgets))
    zeros = Sources(cut, channels.data, second).first()
    errors += extremes_of(zeros, second).refusals(second, _WIDTHS)
    if errors:
        raise together(errors)


def _check(target: PruneTarget, request: Request) -> None:
    request = countable(request, target)
    if not request.budgets:
        return
    roughly = _REPAIR if request.fits else 0.0
    if errors := list(extremes_of(target, request).refusals(request, roughly)):
        raise together(errors)


def countable(request: Request, target: PruneTarget) -> Request:
    """Return the request with those budgets that are counted without timing anything."""
    budgets = (one for one in request.budgets if not isinstance(one, Latency))
    return replace(request, budgets=tuple(with_memory(one, target) for one in budgets))


def _with_room(error: BudgetError, off: float) -> BudgetError:
    """Return the error with what is possible a share larger, and why."""
    closest = type(error.closest)((1 + off) * error.closest)
    advice = f"{error.advice} {off:.0%} are added for what the search and repair may change."
    return BudgetError(error.resource, error.limit, closest, advice, error.at_least, error.unit)
