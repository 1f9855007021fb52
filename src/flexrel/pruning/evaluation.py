"""Whether an evaluation can tell what a target asks: more than chance, on samples enough."""

import math
from dataclasses import dataclass

from torch import nn

from flexrel.core.answers import Tally
from flexrel.core.budgets import AccuracyDrop
from flexrel.core.evaluate import Accuracy, Evaluate, standard_error
from flexrel.errors import UsageError

_POINT = 100  # of accuracy, in a whole


@dataclass(frozen=True, slots=True)
class EvaluationData:
    """What an evaluation measures on.

    Attributes:
        samples: that are counted; None if `evaluate` does not tell.
        accuracy: of the dense network, in [0, 1]; None likewise.
        warnings: what it can't tell, each in a line with its numbers.
    """

    samples: int | None
    accuracy: float | None
    warnings: tuple[str, ...]


def evaluation_data(
    evaluate: Evaluate | None, model: nn.Module, target: AccuracyDrop | None
) -> EvaluationData:
    """Return what the dense network is evaluated on; a function of the caller's does not tell.

    Raises:
        UsageError: the evaluation data are wrong, or there is a target, and the network's accuracy
            is no better than if it always gave the most frequent label.
    """
    if not isinstance(evaluate, Accuracy):
        return EvaluationData(None, None, ())
    tally = evaluate.tally(model)
    chance = _no_better(tally)
    if chance and target is not None:
        raise UsageError(chance)
    fine = "" if target is None else _too_fine(tally, target.amount)
    warnings = (_left_out(tally), _one_label(tally), chance, fine)
    return EvaluationData(tally.samples, tally.accuracy, tuple(filter(None, warnings)))


def _left_out(tally: Tally) -> str:
    """Return a warning if samples are left out of the count; else nothing."""
    if not tally.ignored:
        return ""
    every = tally.ignored + tally.samples
    return (
        f"{tally.ignored:,} of {every:,} evaluation samples are labelled -1 or -100 and left out "
        "of the count"
    )


def _one_label(tally: Tally) -> str:
    """Return a warning if all samples have one label; else nothing."""
    if tally.labels > 1:
        return ""
    return (
        f"all {tally.samples:,} evaluation samples that count have the same label, which says "
        "nothing of others; pass samples of all classes"
    )


def _no_better(tally: Tally) -> str:
    """Return a warning if one of several labels, always given, would be as good; else nothing."""
    if tally.labels == 1 or tally.accuracy > tally.chance:
        return ""
    return (
        f"the network's accuracy is {tally.accuracy:.4g}, no better than the {tally.chance:.4g} of "
        f"always giving the most frequent of {tally.labels:,} labels, on {tally.samples:,} samples "
        f"({tally.seen}); check labels and how inputs are scaled, and of probabilities for 0 or 1 "
        "pass Accuracy(data, threshold=0.5)"
    )


def _too_fine(tally: Tally, drop: float) -> str:
    """Return a warning if one standard error is more than the drop that is to be told.

    Of a network that makes no error the accuracy allowed is looked at: one that loses all of the
    drop makes some.
    """
    share = min(tally.accuracy, 1 - drop)
    error = standard_error(share, tally.samples)
    if drop >= error:
        return ""
    needed = math.ceil(round(share * (1 - share) / drop**2, 6)) if drop else None
    advice = "no number of samples tells" if needed is None else f"{needed:,} samples would do"
    return (
        f"a drop of {drop * _POINT:.3g} points is less than one standard error of an accuracy "
        f"measured on {tally.samples:,} samples, {error * _POINT:.3g} points; {advice}"
    )


def floor_of(accuracy: float, target: AccuracyDrop) -> float:
    """Return the least accuracy that a target allows a dense network of this accuracy.

    Raises:
        UsageError: it allows any, though not all is asked for.
    """
    if accuracy <= target.amount < 1:
        raise UsageError(
            f"the network's accuracy is {accuracy:.4g} and may drop by {target.amount:.4g}, so a "
            "network that is never right would do; check evaluate= and its labels, or ask for less"
        )
    return max(accuracy - target.amount, 0.0)
