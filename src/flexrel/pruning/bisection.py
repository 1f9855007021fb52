"""Where along a ranking things turn: the least removal that is enough, the most that is good."""

from collections.abc import Callable
from functools import cache


def least_removal(
    cost: Callable[[int], float], limit: float, most: int, tolerance: float = 0.0
) -> int | None:
    """Return the least `k` in 0 ... `most` with `cost(k) <= limit`, or None if there is none.

    Args:
        cost: of the plan that removes `k` units; taken not to rise with `k`.
        limit: that the cost must not exceed.
        most: the largest `k`.
        tolerance: stop at a `k` whose cost is within this share below the limit; 0 finds the
            least exactly. A costly `cost` needs few calls when it falls about evenly, as the
            next `k` is where a straight line between the last two bounds meets the limit.

    Returns:
        A `k` whose cost was really measured to be within the limit.
    """
    measured = cache(cost)
    if measured(0) <= limit:
        return 0
    if measured(most) > limit:
        return None
    low, high = 0, most  # cost(low) > limit >= cost(high)
    straight = True
    while high - low > 1 and not (tolerance and measured(high) >= limit * (1 - tolerance)):
        middle = (low + high) // 2
        if tolerance and straight:
            aim = limit * (1 - tolerance / 2)
            share = (measured(low) - aim) / (measured(low) - measured(high))
            middle = min(max(low + 1, round(low + share * (high - low))), high - 1)
        straight = not straight
        if measured(middle) > limit:
            low = middle
        else:
            high = middle
    return high


def most_removal(
    good: Callable[[int], bool],
    least: int,
    most: int,
    resolution: int,
    begin: int | None = None,
    worth: Callable[[int], bool] = lambda _: True,
) -> int | None:
    """Return the largest `k` found in `least` ... `most` with `good(k)`, or None if none was.

    Bisects as if `good` turned false once and stayed false, to within `resolution` units. What
    is returned was really found good, also where `good` is noisy.

    Args:
        good: whether the plan that removes `k` units does its job.
        least: the smallest `k` allowed; if that is not good, nothing is.
        most: the largest `k`.
        resolution: how close to the turning point to go, in units.
        begin: a `k` that is likely to be near it, from which steps double until it is passed.
        worth: whether a removal of `k` would be worth it, asked after each that was tried; where
            the most that is still possible is not, the search ends.
    """
    resolution = max(resolution, 1)
    low, high = least - 1, most + 1  # the last that is known to be good, the first that is not
    at, step = least if begin is None else min(max(begin, least), most), 4 * resolution
    while low < least or (begin is not None and high > most):
        if good(at):
            low = at
            if begin is None or low == most or not worth(high - 1):
                break
            at = min(low + step, most)
        else:
            high = at
            if high == least or not worth(high - 1):
                return None
            at = max(high - step, least)
        step *= 2
    while high - low > resolution and worth(high - 1):
        middle = (low + high) // 2
        if good(middle):
            low = middle
        else:
            high = middle
    return low
