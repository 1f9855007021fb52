"""Whether an evaluation can tell what a target asks: more than chance, on samples enough."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
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
)
from flexrel.core.segmentation import Segmentation
from flexrel.core.targets import Goal, Target, goals_of, unnamed
from flexrel.errors import UsageError
from flexrel.pruning.changed import ChangedAnswers, Compared
from flexrel.pruning.changed_pixels import ComparedPixels
from flexrel.pruning.evaluation_notes import (
    left_out,
    no_better,
    one_label,
    pixel_notes,
    random_warnings,
    too_fine,
)
from flexrel.pruning.promise import (
    BOUND,
    BoundedAccuracy,
    Promise,
    Untouched,
    halves,
    worth_setting_aside,
)

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
        deviation: of the dense network's accuracy from sample to sample, where one is right in
            part, as an image is; None where each is right or wrong.
    """

    evaluate: Evaluate | None = None
    metrics: Metrics = field(default_factory=dict)
    goals: tuple[Goal, ...] = ()
    samples: int | None = None
    classes: int | None = None
    warnings: tuple[str, ...] = ()
    untouched: Untouched | None = None
    compared: Compared | ComparedPixels | None = None
    deviation: float | None = None

    def told(self, network: nn.Module) -> tuple[Promise | None, ChangedAnswers | None]:
        """Return what the samples that nothing was chosen on say of the network returned.

        And which answers changed, on the samples that are compared.
        """
        if isinstance(self.compared, ComparedPixels):
            return None, self.compared.changed(network)
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
        data = EvaluationData(evaluate, metrics, goals, warnings=random)
        return _of_pixels(data, evaluate, model) if isinstance(evaluate, Segmentation) else data
    tally, again = evaluate.tally(model), evaluate.tally(model)
    metrics = {ACCURACY: tally.accuracy}
    chance = no_better(tally)
    if chance and targets:
        raise UsageError(chance)
    goals = goals_of(targets, metrics)
    drop = _drop_allowed(metrics, goals)
    fine = "" if drop is None else too_fine(tally, drop)
    ordered = torch.equal(tally.truth, again.truth)
    random = random_warnings(said, model, metrics, goals, {ACCURACY: again.accuracy})
    if ordered and not random and not torch.equal(tally.hits, again.hits):
        random = (f"{int((tally.hits != again.hits).sum()):,} answers differ in two evaluations",)
    shuffled = "" if ordered else _SHUFFLED
    warnings = (left_out(tally), one_label(tally), chance, fine, *random, shuffled)
    counts = tally.samples, tally.classes
    data = EvaluationData(evaluate, metrics, goals, *counts, tuple(filter(None, warnings)))
    if random or not ordered or not set_aside:
        return data
    data = replace(data, compared=Compared(evaluate, tally))
    data = _with_untouched(data, evaluate, model, tally, targets, whole=whole)
    return _with_margin(data, model) if assured else data


def _of_pixels(data: EvaluationData, evaluate: Segmentation, model: nn.Module) -> EvaluationData:
    """Return the data with what images tell, of which pixels are no independent samples."""
    tally = evaluate.tally(model)
    return replace(
        data,
        samples=len(tally.right),
        classes=len(tally.table),
        warnings=(*data.warnings, *pixel_notes(tally, _drop_allowed(data.metrics, data.goals))),
        compared=ComparedPixels(evaluate, model),
        deviation=tally.deviation,
    )


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
