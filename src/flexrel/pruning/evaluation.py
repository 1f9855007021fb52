"""Whether an evaluation can tell what a target asks: more than chance, on samples enough."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from flexrel.core.answers import Tally
from flexrel.core.evaluate import (
    ACCURACY,
    Accuracy,
    Evaluate,
    Evaluation,
    Metrics,
    standard_error,
)
from flexrel.core.targets import Goal, Target, goals_of, unnamed
from flexrel.errors import UsageError

_POINT = 100  # of accuracy, in a whole


@dataclass(frozen=True, slots=True)
class EvaluationData:
    """What an evaluation measures on.

    Attributes:
        metrics: of the dense network, by name; none without an `evaluate`.
        goals: what the targets come to.
        samples: that are counted; None if `evaluate` does not tell.
        warnings: what it can't tell, each in a line with its numbers.
    """

    metrics: Metrics
    goals: tuple[Goal, ...] = ()
    samples: int | None = None
    warnings: tuple[str, ...] = ()


def evaluation_data(
    evaluate: Evaluate | None, model: nn.Module, targets: Sequence[Target]
) -> EvaluationData:
    """Return how the dense network does, and on what; a function of the caller's tells no samples.

    Raises:
        UsageError: the evaluation or its data are wrong; or there is a target, and the network does
            not meet it, may lose all, or is no more accurate than if it always gave the most
            frequent label.
    """
    if evaluate is None:
        return EvaluationData({})
    if not isinstance(evaluate, Accuracy):
        metrics = Evaluation(evaluate, unnamed(targets))(model)
        return EvaluationData(metrics, goals_of(targets, metrics))
    tally = evaluate.tally(model)
    metrics = {ACCURACY: tally.accuracy}
    chance = _no_better(tally)
    if chance and targets:
        raise UsageError(chance)
    goals = goals_of(targets, metrics)
    drop = min((round(tally.accuracy - goal.limit, 12) for goal in goals), default=None)
    fine = "" if drop is None else _too_fine(tally, drop)
    warnings = (_left_out(tally), _one_label(tally), chance, fine)
    return EvaluationData(metrics, goals, tally.samples, tuple(filter(None, warnings)))


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
