"""From a request to a criterion and a plan that keep to it, and to a precision if that is open."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from flexrel.core.plan import Plan
from flexrel.core.precision import FINEST_FIRST, RequestedPrecision, Values
from flexrel.criteria import Criterion, Magnitude
from flexrel.errors import BudgetError, PrecisionError
from flexrel.pruning.bisection import most_removal
from flexrel.pruning.request import Request
from flexrel.pruning.trials import Trials

_ROUNDING = 1e-12  # 0.995 - 0.01 is a little above 0.985
_SEARCH_STEPS = 128  # a target is searched to within 1/128 of the units
_ROUNDS = 3  # of choosing a criterion where the last one led
_ROUGHER = 1.1  # of the divergence of the cut: what rounding may leave, where nothing says more


@dataclass(frozen=True, slots=True)
class Found:
    """A plan that keeps to a request, the criterion that made it, and where it was tried."""

    trials: Trials
    criterion: Criterion
    plan: Plan

    @property
    def bytes(self) -> int:
        """Size of the packed file."""
        return self.trials.bytes(self.plan)

    @property
    def divergence(self) -> float:
        """How far the outputs are from the dense network's, on the samples that judge."""
        making = self.trials.making
        return making.divergence(making.network(self.plan))


def solved(
    trials_in: Callable[[Values], Trials],
    values: RequestedPrecision,
    request: Request,
    options: Sequence[Criterion],
) -> Found:
    """Return what keeps to the request.

    Args:
        trials_in: makes networks whose packed files have values of a precision.
        values: that precision. "auto" goes from float32 down as long as that is better: with a
            target, a smaller file; with a budget on bytes, outputs closer to the dense network's;
            else a smaller file whose outputs are at most a tenth further from them than the cut's;
            one that can't hold a value is passed over. The criterion is chosen once, where values
            are finest.
        request: to keep to.
        options: criteria, of which one is chosen on the samples that judge.

    Raises:
        BudgetError: nothing does.
        PrecisionError: the one precision that was asked for can't hold a value.
    """
    found: list[Found] = []
    failed: list[BudgetError] = []
    for precision in FINEST_FIRST if values == "auto" else (values,):
        try:
            one = _chosen(trials_in(precision), request, options)
        except BudgetError as error:  # a coarser one may still fit a budget on bytes
            failed.append(error)
            continue
        except PrecisionError:
            if values != "auto":
                raise
            continue
        if found and not _is_better(one, found, request):
            break
        found.append(one)
        options = (one.criterion,)
    if not found:
        raise next((error for error in failed if error.resource == "accuracy"), failed[-1])
    return found[-1]


def _is_better(one: Found, found: Sequence[Found], request: Request) -> bool:
    last = found[-1]
    if request.target is not None:
        return one.bytes < last.bytes
    if _counts_bytes(request):
        return one.divergence < last.divergence
    return one.bytes < last.bytes and one.divergence <= _ROUGHER * found[0].divergence


def _counts_bytes(request: Request) -> bool:
    return math.isfinite(request.most_bytes)


def _chosen(trials: Trials, request: Request, options: Sequence[Criterion]) -> Found:
    """Return the criterion, chosen of several on the samples that judge, and its plan."""
    if len(options) == 1:
        return Found(trials, options[0], plan_of(trials, request, options[0]))
    magnitude = Magnitude()  # what the first choice is made like
    simplest = trials.removal(magnitude)
    if request.target is None:
        count = least_of(trials, request, magnitude)
        tried: Callable[[Criterion], Plan | None] = partial(plan_of, trials, request)
        if _counts_bytes(request):  # packing takes long
            tried = partial(trials.as_costly, simplest.plan(count))
        chosen = trials.choose(options, tried)
        if chosen == magnitude:  # what it has to do is known
            plan = trials.filled(magnitude, count, request.budgets, request.dense)
        else:
            plan = plan_of(trials, request, chosen)
        return Found(trials, chosen, plan)
    found: list[Found] = []
    like = simplest.plan(simplest.removable // 2)
    for _ in range(_ROUNDS):  # where the plan lands decides what is best there
        chosen = trials.choose(options, partial(trials.as_costly, like))
        if any(chosen is earlier.criterion for earlier in found):
            break
        try:
            like = plan_of(trials, request, chosen)
        except BudgetError:
            if found:
                break
            raise
        found.append(Found(trials, chosen, like))
    return min(found, key=lambda one: one.bytes)


def least_of(trials: Trials, request: Request, criterion: Criterion) -> int:
    """Return the least that goes: what the budgets ask, and N:M on all layers without a target."""
    everywhere = request.target is None
    return trials.units_for(criterion, request.budgets, request.dense, all_layers=everywhere)


def plan_of(trials: Trials, request: Request, criterion: Criterion) -> Plan:
    """Return the criterion's plan: to the budgets, or beyond them as far as the target allows."""
    least = least_of(trials, request, criterion)
    removal = trials.removal(criterion)
    floor = request.floor
    if floor is None:
        return trials.filled(criterion, least, request.budgets, request.dense)
    accuracies: dict[int, float] = {}

    def good(count: int) -> bool:
        plan = removal.plan(count)
        accuracies[count] = trials.accuracy(plan)
        trials.making.progress(f"searching with {criterion.name}", len(accuracies), None)
        reached = accuracies[count] >= floor - _ROUNDING
        return reached and trials.within(plan, request.budgets, request.dense)

    resolution = removal.removable // _SEARCH_STEPS
    count = most_removal(good, least, removal.removable, resolution)
    if count is None:
        advice = "That is what the budgets leave; raise them or allow a larger drop."
        raise BudgetError("accuracy", floor, accuracies[least], advice)
    return removal.plan(count)
