"""The evidence beside a result: magnitude and relevance alone, for the same request."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import cast

from torch import nn

from flexrel.core.batches import RawBatches
from flexrel.core.caches import uncached
from flexrel.core.evaluate import ACCURACY, Accuracy, Evaluate, evaluate_of
from flexrel.core.measurement import Measurement
from flexrel.core.network import plain_network
from flexrel.core.outputs import Outputs
from flexrel.core.progress import RequestedProgress, shown
from flexrel.core.targets import Goal, missed
from flexrel.criteria import Criterion, FlexRel, Magnitude, Relevance, attribution_of
from flexrel.errors import BudgetError, UsageError
from flexrel.io import figure, percent
from flexrel.pruning.annotation import unnoted
from flexrel.pruning.data import calibration_data
from flexrel.pruning.evaluator import divergence_of, evaluator_of
from flexrel.pruning.promise import searched_with
from flexrel.pruning.request import Request
from flexrel.pruning.result import Result
from flexrel.pruning.search import BudgetSearch
from flexrel.pruning.signals import measured_relevance, measured_signals
from flexrel.pruning.sources import PruneTarget, Sources
from flexrel.relevance import Attribution

_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # of units removed


def compare(
    result: Result,
    model: nn.Module,
    *,
    calibration: RawBatches,
    evaluate: Evaluate | RawBatches | None = None,
    progress: RequestedProgress = None,
) -> Result:
    """Return the result with its `rivals` and `curves` measured, for the report.

    Curves are those of magnitude, of relevance and of the result's own criterion; where that is one
    of these, of `FlexRel(0.5)`.

    Args:
        result: of `prune`.
        model: that was pruned; not changed.
        calibration: that it was pruned with.
        evaluate: likewise.
        progress: as of `PruneOptions`.

    Raises:
        UsageError: the data can't be used.
        ModelError: the network can't be analysed, or no relevance reaches its layers.
    """
    if result.plan.then is not None:
        raise UsageError(
            "rivals of a network that lost channels and then weights are not measured; compare a "
            "result of granularity 'channel' or 'element'"
        )
    attributions = filter(None, map(attribution_of, result.request.criteria))
    how = next(attributions, Attribution())
    magnitude, relevance = Magnitude(), Relevance(rule=how.rule, output=how.output)
    chosen = result.criterion
    third = chosen
    if chosen.name in (magnitude.name, relevance.name):
        third = FlexRel(rule=how.rule, output=how.output)
    criteria = (magnitude, relevance, third)
    options = replace(result.request.options, stats=result.stats)
    measure = evaluate_of(evaluate, options.outputs)
    if not callable(options.outputs):
        options = replace(options, outputs=cast("Outputs", result.outputs))
    asked = replace(result.request, criteria=criteria, values=result.values)
    request = replace(asked, evaluate=measure, options=options)
    stages = [name for name in request.stages if name in ("reading the data", "calibrating")]
    with shown(progress, (*stages, "measuring rivals", "measuring curves")) as tell:
        return _compared(result, model, calibration, replace(request, progress=tell))


def _compared(
    result: Result, model: nn.Module, calibration: RawBatches, request: Request
) -> Result:
    """Return the result with rivals and curves; the last of the request's criteria is no rival."""
    request.progress("reading the data", 0, None)
    model = uncached(plain_network(model).network)
    data = calibration_data(model, calibration, fits=request.fits)
    given, promise = request.evaluate, result.promise
    if isinstance(given, Accuracy) and promise is not None and promise.aside:
        whole = data.first.whole or result.samples_a_call is not None
        searched = searched_with(given, model, result.limits.goals, whole=whole)
        request = replace(request, evaluate=searched)
    source = PruneTarget(model, result.plan.graph, (data.example,), data)
    if result.form == "exported":
        source = replace(Sources(model, data, request).exported(), graph=result.plan.graph)
    relevances = measured_relevance(model, request, data)
    signals = measured_signals(source, request, relevances)
    evaluator = evaluator_of(signals, divergence_of(model, source.data, request))
    search = BudgetSearch(evaluator, signals.rank, result.limits, request.short)
    scored = [one for one in request.criteria if one in signals.criteria]
    chosen, third = result.criterion.name, request.criteria[-1]
    rivals = [one for one in scored if one is not third and one.name != chosen]
    found: list[Measurement] = []
    for done, one in enumerate(rivals):
        request.progress("measuring rivals", done, len(rivals))
        found += filter(None, [_at_limits(search, one)])
    # as rivals are counted:
    bare = replace(result.achieved, bytes=len(unnoted(result.packed, request.options.metadata)))
    return replace(
        result,
        rivals=tuple(found),
        curves=tuple(_curves(search, scored, result.dense)),
        warnings=(*result.warnings, *_smaller(replace(result, achieved=bare), found)),
    )


def _smaller(result: Result, rivals: Sequence[Measurement]) -> Iterator[str]:
    """Yield which rivals are as accurate as was asked for, or as the result, and smaller."""
    achieved, goals = result.achieved, result.limits.goals
    if not goals and achieved.accuracy is not None:
        goals = (Goal(ACCURACY, achieved.accuracy, lower_is_better=False),)
    for rival in rivals:
        told = goals and all(goal.metric in rival.metrics for goal in goals)
        if told and rival.bytes < achieved.bytes and missed(goals, rival.metrics) is None:
            yield (
                f"criterion {rival.criterion!r} came out smaller: {rival.bytes:,} bytes, "
                f"{_told(rival, goals)}, where the result has {achieved.bytes:,} "
                f"bytes, {_told(achieved, goals)}"
            )


def _told(one: Measurement, goals: Sequence[Goal]) -> str:
    """Return what a network's metrics are that there are goals on."""
    values = {goal.metric: one.metrics[goal.metric] for goal in goals}
    return ", ".join(
        f"{name} {percent(value) if name == ACCURACY else figure(value)}"
        for name, value in values.items()
    )


def _at_limits(search: BudgetSearch, criterion: Criterion) -> Measurement | None:
    """Measure a criterion's plan for the same limits.

    One that can't meet the target within the budgets is measured at the budgets; None for one that
    can't meet those.
    """
    try:
        plan = search.plan(criterion)
    except BudgetError:
        try:
            plan = search.ranking(criterion).plan(search.least(criterion))
        except BudgetError:
            return None
    return search.evaluator.measure(criterion.name, search.evaluator.candidate(plan))


def _curves(
    search: BudgetSearch, criteria: Sequence[Criterion], dense: Measurement
) -> list[Measurement]:
    """Measure each criterion at several shares of units removed."""
    points: list[Measurement] = []
    evaluator, total = search.evaluator, len(criteria) * (len(_SHARES) + 1)
    evaluator.builder.progress("measuring curves", 0, total)
    for criterion in criteria:
        points.append(replace(dense, criterion=criterion.name))
        ranking = search.ranking(criterion)
        for share in _SHARES:
            plan = ranking.plan(int(share * ranking.removable))
            points.append(evaluator.measure(criterion.name, evaluator.candidate(plan)))
            evaluator.builder.progress("measuring curves", len(points), total)
    return points
