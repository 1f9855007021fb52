"""How much accuracy is lost at most, with a confidence, told by samples that two networks answered.

Of samples that both answer alike nothing is learnt. What counts are the discordant ones: `lost`,
which the dense network answers right and the other wrong, and `won`, the other way round.
"""

import math
from collections.abc import Callable
from typing import Final

import numpy as np

_SHARE_OF_ERROR: Final = 0.05  # of the error allowed, spent on how many samples are discordant
_RATES: Final = 9  # of discordant samples looked at, evenly over their interval
_BISECTIONS: Final = 25
_FAR: Final = 7.0  # standard deviations from the mean beyond which nothing is counted
_Z: Final = 1.645  # standard deviations, where to look for the number of samples first
_FEWEST: Final = 4.6  # over a drop: with fewer samples none shows it, were none discordant
_LARGER: Final = 1.05


def drop_bound(lost: int, won: int, samples: int, confidence: float = 0.95) -> float:
    """Return what the drop of accuracy is at most, in [-1, 1], with at least the confidence.

    Over draws of the samples the true drop is above what is returned in at most a share of
    `1 - confidence`. The exact unconditional test of matched pairs, inverted: the bound is the
    largest drop under which a difference `lost - won` as small as this one is not too unlikely.
    The rate of discordant samples, which it depends on too, goes over its own exact interval.

    Args:
        lost: samples that the dense network answers right and the other wrong.
        won: the other way round.
        samples: that both answered, drawn independently.
        confidence: in (0, 1).

    Source:
        The test and its maximum over the nuisance rate: Suissa and Shuster, "The 2 x 2
        matched-pairs trial: exact unconditional design and analysis" (1991); over an interval
        instead of all rates, whose error is added: Berger and Boos, "P values maximized over a
        confidence set for the nuisance parameter" (1994); the interval: Clopper and Pearson (1934).
    """
    error = 1 - confidence
    spent = _SHARE_OF_ERROR * error
    low, high = share_interval(lost + won, samples, spent)
    observed = lost - won

    def plausible(drop: float) -> bool:
        rates = np.linspace(max(high, abs(drop)), max(low, abs(drop)), _RATES)
        chances = (at_most(observed, samples, (r + drop) / 2, (r - drop) / 2) for r in rates)
        return any(chance > error - spent for chance in chances)

    return _last(plausible, observed / samples, high)


def share_interval(count: int, samples: int, error: float) -> tuple[float, float]:
    """Return the exact two-sided interval of a share that was counted, with that error in all.

    Source:
        Clopper and Pearson, "The use of confidence or fiducial limits illustrated in the case of
        the binomial" (1934).
    """
    share = count / samples
    low = _last(lambda p: at_most(count - 1, samples, p) > 1 - error / 2, 0.0, share)
    high = _last(lambda p: at_most(count, samples, p) > error / 2, share, 1.0)
    return low, high


def at_most(difference: int, samples: int, lost: float, won: float = 0.0) -> float:
    """Return the probability that `lost - won` samples are at most this difference.

    Args:
        difference: of the two counts.
        samples: drawn independently.
        lost: probability that one is lost.
        won: likewise; 0 leaves the binomial distribution of the lost.

    Source:
        The characteristic function of a sum is that of one sample to the power of their number.
        Its inverse Fourier transform has all values but for those far from the mean, which come to
        less than rounding does.
    """
    mean = samples * (lost - won)
    deviation = math.sqrt(max(samples * (lost + won - (lost - won) ** 2), 0.0))
    values = 2 ** math.ceil(math.log2(2 * _FAR * deviation + 64))
    first = round(mean) - values // 2
    if difference < first:
        return 0.0
    turn = np.exp(2j * np.pi * np.arange(values // 2 + 1) / values)
    one = 1 - lost - won + lost * turn.conj() + won * turn
    chances = np.fft.irfft(one**samples, values)  # of each value, modulo their number
    counted = np.arange(first, min(difference, first + values - 1) + 1) % values
    return float(chances[counted].sum())


def samples_needed(
    lost: int, won: int, samples: int, drop: float, confidence: float = 0.95
) -> int | None:
    """Return about how many samples would show a drop of at most `drop`; None: no number would.

    Others are taken to be lost and won as often as these.
    """
    measured, rate = (lost - won) / samples, (lost + won) / samples
    if measured >= drop:
        return None
    needed = max(_Z**2 * (rate - measured**2) / (drop - measured) ** 2, _FEWEST / drop, 1.0)
    while True:
        counts = round(lost * needed / samples), round(won * needed / samples)
        if drop_bound(*counts, math.ceil(needed), confidence) <= drop:
            return math.ceil(needed)
        needed *= _LARGER


def _last(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Return where something stops to hold that holds at `low`; `high` if it never does."""
    if holds(high):
        return high
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return high
