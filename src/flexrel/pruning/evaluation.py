"""Whether an evaluation can tell what a target asks: more than chance, on samples enough."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import stdev
from typing import Final

import torch
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
from flexrel.pruning.changed import ChangedAnswers, Compared
from flexrel.pruning.promise import (
    BOUND,
    BoundedAccuracy,
    Promise,
    Untouched,
    halves,
    worth_setting_aside,
)

_POINT = 100  # of accuracy, in a whole
_CALLS: Final = 5  # of an evaluation that is random, to tell its spread
_SHUFFLED: Final = (
    "evaluation samples come in another order at each pass, so that none can be set aside to test "
    "the final choice; pass a loader with shuffle=False"
)
_ONE_BATCH: Final = (
    "no evaluation samples are set aside to test the final choice: there is one batch, and the "
    "network does not run on a part of it; pass two or more"
)


@dataclass(frozen=True, slots=True)
class EvaluationData:
    """What an evaluation measures on.

    Attributes:
        evaluate: what is searched with: on the samples that are not set aside.
        metrics: of the dense network, by name; none without an `evaluate`.
        goals: what the targets come to.
        samples: that are counted; None if `evaluate` does not tell.
        classes: that the network tells apart, or labels; likewise.
        warnings: what it can't tell, each in a line with its numbers.
        untouched: the samples that nothing is chosen on; None where samples are not told apart.
        compared: the samples on which answers of the dense network and the pruned one are compared:
            those untouched, or where there are none, all; None where these are not told apart.
    """

    evaluate: Evaluate | None = None
    metrics: Metrics = field(default_factory=dict)
    goals: tuple[Goal, ...] = ()
    samples: int | None = None
    classes: int | None = None
    warnings: tuple[str, ...] = ()
    untouched: Untouched | None = None
    compared: Compared | None = None

    def told(self, network: nn.Module) -> tuple[Promise | None, ChangedAnswers | None]:
        """Return what the samples that nothing was chosen on say of the network returned.

        And which answers changed, on the samples that are compared.
        """
        tally = None if self.compared is None else self.compared.accuracy.tally(network)
        promise = None if self.untouched is None else self.untouched.promise(tally)
        if self.compared is None or tally is None:
            return promise, None
        return promise, self.compared.changed(tally)


def evaluation_data(
    evaluate: Evaluate | None,
    model: nn.Module,
    targets: Sequence[Target],
    *,
    set_aside: bool = False,
    assured: bool = False,
    whole: bool = False,
) -> EvaluationData:
    """Return how the dense network does, and on what; a function of the caller's tells no samples.

    The dense network is evaluated twice: what is random differs.

    Args:
        evaluate: as in `prune`.
        model: the dense network.
        targets: on what `evaluate` tells.
        set_aside: whether half of the samples may be kept for the promise, where they are many.
        assured: whether what is searched for keeps a margin, so that it can be promised.
        whole: whether the network that is cut runs on no part of a batch.

    Raises:
        UsageError: the evaluation or its data are wrong, or more random than a target allows; or
            there is a target, and the network does not meet it, may lose all, or is no more
            accurate than if it always gave the most frequent label.
    """
    if evaluate is None:
        return EvaluationData()
    said = Evaluation(evaluate, unnamed(targets))
    if not isinstance(evaluate, Accuracy):
        metrics = said(model)
        goals = goals_of(targets, metrics)
        random = random_warnings(said, model, metrics, goals)
        return EvaluationData(evaluate, metrics, goals, warnings=random)
    tally, again = evaluate.tally(model), evaluate.tally(model)
    metrics = {ACCURACY: tally.accuracy}
    chance = _no_better(tally)
    if chance and targets:
        raise UsageError(chance)
    goals = goals_of(targets, metrics)
    drop = _drop_allowed(metrics, goals)
    fine = "" if drop is None else _too_fine(tally, drop)
    ordered = torch.equal(tally.truth, again.truth)
    random = random_warnings(said, model, metrics, goals, {ACCURACY: again.accuracy})
    if ordered and not random and not torch.equal(tally.hits, again.hits):
        random = (f"{int((tally.hits != again.hits).sum()):,} answers differ in two evaluations",)
    shuffled = "" if ordered else _SHUFFLED
    warnings = (_left_out(tally), _one_label(tally), chance, fine, *random, shuffled)
    counts = tally.samples, tally.classes
    data = EvaluationData(evaluate, metrics, goals, *counts, tuple(filter(None, warnings)))
    if random or not ordered or not set_aside:
        return data
    data = replace(data, compared=Compared(evaluate, tally))
    data = _with_untouched(data, evaluate, model, tally, targets, whole=whole)
    return _with_margin(data, model) if assured else data


def _with_untouched(
    data: EvaluationData,
    evaluate: Accuracy,
    model: nn.Module,
    tally: Tally,
    targets: Sequence[Target],
    *,
    whole: bool,
) -> EvaluationData:
    """Return the data, half of the samples set aside if there is a target that they can tell."""
    asked = _drop_allowed(data.metrics, data.goals)
    if asked is None:  # nothing is chosen on them
        return replace(data, untouched=Untouched(tally, None, aside=False))
    if not worth_setting_aside(tally.samples, asked):
        return replace(data, untouched=Untouched(None, asked, aside=False))
    parts = halves(evaluate, whole=whole)
    if parts is None:
        return replace(data, warnings=(*data.warnings, _ONE_BATCH))
    searched, rest = parts
    part = searched.tally(model)
    metrics = {ACCURACY: part.accuracy}
    below = next((t for t in targets if t.limit(part.accuracy) > part.accuracy), None)
    if below is not None:  # a floor that the network is just above
        line = (
            f"no evaluation samples are set aside to test the final choice: on half of them the "
            f"network's accuracy is {part.accuracy:.4g}, below the {below.limit(0.0):.4g} asked for"
        )
        return replace(data, warnings=(*data.warnings, line))
    compared = Compared(rest, rest.tally(model))
    return replace(
        data,
        evaluate=searched,
        metrics=metrics,
        goals=goals_of(targets, metrics),
        samples=part.samples,
        untouched=Untouched(compared.dense, asked, aside=True),
        compared=compared,
    )


def _with_margin(data: EvaluationData, model: nn.Module) -> EvaluationData:
    """Return the data with a goal on what the drop is at most, where samples are set aside."""
    untouched, searched = data.untouched, data.evaluate
    if not isinstance(searched, Accuracy) or untouched is None or untouched.asked is None:
        return data
    if not untouched.aside:
        return data
    bounded = BoundedAccuracy(searched, searched.tally(model))
    metrics = bounded(model)
    goal = Goal(BOUND, untouched.asked, lower_is_better=True)
    if goal.met(metrics[BOUND]):
        return replace(data, evaluate=bounded, metrics=metrics, goals=(*data.goals, goal))
    line = (
        f"no margin is kept for the promise: on {data.samples:,} samples a network that loses "
        f"nothing may still lose {metrics[BOUND]:.4g} of accuracy, and {goal.limit:.4g} is asked"
    )
    return replace(data, warnings=(*data.warnings, line))


def _drop_allowed(metrics: Metrics, goals: Sequence[Goal]) -> float | None:
    drops = (metrics[ACCURACY] - goal.limit for goal in goals if goal.metric == ACCURACY)
    return min((round(drop, 12) for drop in drops), default=None)


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
