"""From a plan that is expected to keep to a latency to a network that was measured to."""

from collections.abc import Callable
from typing import Final

import torch

from flexrel.core.latency import Timing
from flexrel.core.plan import Plan
from flexrel.errors import BudgetError
from flexrel.pruning.choice import Solution
from flexrel.pruning.clock import Clock

_TRIES: Final = 5  # of bringing a cut network to the limit, each measured
_FINAL: Final = 3  # of tightening where the network itself, repaired, is over it


def kept_in_time(
    clock: Clock, solution: Solution, again: Callable[[Clock], Solution]
) -> tuple[Clock, Solution, Timing]:
    """Return a solution whose network really keeps to the latency, and the clock that says so.

    Cuts are timed as they are, for what they are repaired to makes no difference to time; what
    one takes tells the next search better. The network that is returned is timed itself.

    Args:
        clock: of the budget.
        solution: that it expects within the limit.
        again: returns what it is by another clock.

    Raises:
        BudgetError: none of those tried does; says the closest.
    """
    if clock.profile is not None:  # of another device
        return clock, solution, clock.timed(solution.network.rounded, solution.plan)
    clock, solution = _brought_close(clock, solution, again)
    closest: Timing | None = None
    for _ in range(_FINAL):
        timing = clock.timed(solution.network.rounded, solution.plan)
        if timing.meets(clock.budget):
            return clock.settled(timing), solution, timing
        if closest is None or timing.share < closest.share:
            closest = timing
        clock = clock.corrected(solution.plan, timing)
        solution = again(clock)
    raise _over(clock, closest or timing)


def _brought_close(
    clock: Clock, solution: Solution, again: Callable[[Clock], Solution]
) -> tuple[Clock, Solution]:
    """Return the slowest cut found that keeps to the limit, and the clock that knows its time.

    The last one, if none does.
    """
    met: tuple[float, Clock, Solution] | None = None
    for _ in range(_TRIES):
        plan = solution.plan
        timing = clock.timed(solution.evaluator.builder.rough(plan).rounded, plan)
        clock = clock.corrected(plan, timing)
        if timing.meets(clock.budget) and (met is None or timing.share > met[0]):
            met = timing.share, clock, solution
        if clock.close(timing) or not plan.removed:
            break
        try:
            following = again(clock)
        except BudgetError:
            if met is None:
                raise
            break
        if _same(following.plan, plan):
            break
        solution = following
    return (clock, solution) if met is None else met[1:]


def _same(one: Plan, other: Plan) -> bool:
    return all(torch.equal(mask, other.masks[name]) for name, mask in one.masks.items())


def _over(clock: Clock, timing: Timing) -> BudgetError:
    limit = clock.budget.limit(timing.dense)
    advice = (
        f"That was measured in {timing.runtime} {timing.version}, in turn with the dense network's "
        f"{timing.dense:.4g} ms; ask for a little more."
    )
    name, unit = clock.budget.resource.name, clock.budget.resource.unit
    return BudgetError(name, limit, timing.milliseconds, advice, unit=unit)
