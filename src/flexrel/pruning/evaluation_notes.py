"""What an evaluation can't tell, each in a line with its numbers."""

import math
from collections.abc import Sequence
from statistics import stdev
from typing import Final

from torch import nn

from flexrel.core.answers import Tally
from flexrel.core.evaluate import Evaluation, Metrics, standard_error
from flexrel.core.segmentation import PixelTally
from flexrel.core.targets import Goal
from flexrel.errors import UsageError

_POINT: Final = 100  # of accuracy, in a whole
_CALLS: Final = 5  # of an evaluation that is random, to tell its spread


def random_warnings(
    evaluate: Evaluation,
    model: nn.Module,
    first: Metrics,
    goals: Sequence[Goal],
    second: Metrics | None = None,
) -> tuple[str, ...]:
    """Return a line for each metric that differs from call to call on one network.

    Args:
        evaluate: called once more, or if that differs until there are five.
        model: the dense network.
        first: what it told the first time.
        goals: on these metrics.
        second: what it told the second time, if it was called.

    Raises:
        UsageError: one varies by more than a goal allows.
    """
    found = [first, evaluate(model) if second is None else second]
    if _alike(*found):
        return ()
    found += [evaluate(model) for _ in range(_CALLS - len(found))]
    lines = []
    for name in first:
        told = [each.get(name, math.nan) for each in found]
        low, high = min(told), max(told)
        if low == high:
            continue
        line = (
            f"evaluate is random: of the same network it says {name} from {low:.6g} to {high:.6g} "
            f"in {_CALLS} calls, standard deviation {stdev(told):.2g}"
        )
        allowed = [abs(first[name] - goal.limit) for goal in goals if goal.metric == name]
        if allowed and high - low > min(allowed):
            raise UsageError(
                f"{line}, and the target allows a change of {min(allowed):.4g}; give it a fixed "
                "seed, or more samples"
            )
        lines.append(line)
    return tuple(lines)


def _alike(one: Metrics, other: Metrics) -> bool:
    names = {*one, *other}
    pairs = ((one.get(name, math.nan), other.get(name, math.nan)) for name in names)
    return all(a == b or (math.isnan(a) and math.isnan(b)) for a, b in pairs)


def left_out(tally: Tally) -> str:
    """Return a warning if samples are left out of the count; else nothing."""
    if not tally.ignored:
        return ""
    every = tally.ignored + tally.samples
    return (
        f"{tally.ignored:,} of {every:,} evaluation samples are labelled -1 or -100 and left out "
        "of the count"
    )


def one_label(tally: Tally) -> str:
    """Return a warning if all samples have one label; else nothing."""
    if tally.labels > 1:
        return ""
    return (
        f"all {tally.samples:,} evaluation samples that count have the same label, which says "
        "nothing of others; pass samples of all classes"
    )


def no_better(tally: Tally) -> str:
    """Return a warning if one of several labels, always given, would be as good; else nothing."""
    if tally.labels == 1 or tally.accuracy > tally.chance:
        return ""
    return (
        f"the network's accuracy is {tally.accuracy:.4g}, no better than the {tally.chance:.4g} of "
        f"always giving the most frequent of {tally.labels:,} labels, on {tally.samples:,} samples "
        f"({tally.seen}); check labels and how inputs are scaled, and of probabilities for 0 or 1 "
        "pass Accuracy(data, threshold=0.5)"
    )


def too_fine(tally: Tally, drop: float) -> str:
    """Return a warning if one standard error is more than the drop that is to be told.

    Of a network that makes no error the accuracy allowed is looked at: one that loses all of the
    drop makes some.
    """
    share = min(tally.accuracy, 1 - drop)
    return _too_fine(math.sqrt(share * (1 - share)), tally.samples, drop, "samples")


def _too_fine(deviation: float, samples: int, drop: float, unit: str) -> str:
    error = standard_error(0.0, samples, deviation)
    if drop >= error:
        return ""
    needed = math.ceil(round(deviation**2 / drop**2, 6)) if drop else None
    advice = f"no number of {unit} tells" if needed is None else f"{needed:,} {unit} would do"
    return (
        f"a drop of {drop * _POINT:.3g} points is less than one standard error of an accuracy "
        f"measured on {samples:,} {unit}, {error * _POINT:.3g} points; {advice}"
    )


def pixel_notes(tally: PixelTally, drop: float | None) -> tuple[str, ...]:
    """Return what an evaluation of pixels can't tell.

    Args:
        tally: of the dense network.
        drop: that a target allows in accuracy; None without one.
    """
    pixels = int(tally.pixels.sum())
    lines = []
    if tally.ignored:
        every = pixels + tally.ignored
        lines.append(f"{tally.ignored:,} of {every:,} evaluation pixels are left out of the count")
    if tally.accuracy <= tally.chance < 1:
        lines.append(
            f"the network's accuracy is {tally.accuracy:.4g} of {pixels:,} pixels, no better than "
            f"the {tally.chance:.4g} of always giving the most frequent class; look at mIoU, "
            f"{tally.overlap:.4g}, and check labels and how inputs are scaled"
        )
    if drop is not None:
        lines.append(_too_fine(tally.deviation, len(tally.right), drop, "images"))
        lines.append(
            f"no evaluation images are set aside to test the final choice; measure it on images "
            f"other than these {len(tally.right):,}"
        )
    return tuple(filter(None, lines))
