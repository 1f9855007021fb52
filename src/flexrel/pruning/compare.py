"""The evidence beside a result: magnitude and relevance alone, for the same request."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import cast

from torch import nn

from flexrel.core.batches import RawBatch
from flexrel.core.evaluate import Accuracy, Evaluate
from flexrel.core.measurement import Measurement, Progress, silent
from flexrel.core.network import plain_network
from flexrel.core.outputs import Outputs
from flexrel.criteria import Criterion, FlexRel, Magnitude, Relevance, attribution_of
from flexrel.errors import BudgetError
from flexrel.pruning.data import calibration_data
from flexrel.pruning.evaluator import divergence_of, evaluator_of
from flexrel.pruning.promise import searched_with
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
    calibration: Iterable[RawBatch],
    evaluate: Evaluate | None = None,
    progress: Progress = silent,
) -> Result:
    """Return the result with its `rivals` and `curves` measured, for the report.

    Args:
        result: of `prune`.
        model: that was pruned; not changed.
        calibration: that it was pruned with.
        evaluate: likewise.
        progress: told after each step.

    Raises:
        UsageError: the data can't be used.
        ModelError: the network can't be analysed, or no relevance reaches its layers.
    """
    attributions = filter(None, map(attribution_of, result.request.criteria))
    how = next(attributions, Attribution())
    magnitude, relevance = Magnitude(), Relevance(rule=how.rule, output=how.output)
    chosen = result.criterion
    blend = chosen if isinstance(chosen, FlexRel) else FlexRel(rule=how.rule, output=how.output)
    criteria = (magnitude, relevance, blend)
    options = replace(result.request.options, stats=result.stats, progress=progress)
    if not callable(options.outputs):
        options = replace(options, outputs=cast("Outputs", result.outputs))
    asked = replace(result.request, criteria=criteria, values=result.values)
    model = plain_network(model).network
    if isinstance(evaluate, Accuracy) and result.promise is not None and result.promise.aside:
        evaluate = searched_with(evaluate, model, result.limits.goals)
    request = replace(asked, evaluate=evaluate, options=options)
    data = calibration_data(model, calibration, fits=request.fits)
    source = PruneTarget(model, result.plan.graph, (data.example,))
    if result.form == "exported":
        source = replace(Sources(model, data, request).exported(), graph=result.plan.graph)
    relevances = measured_relevance(model, request, data)
    signals = measured_signals(source, request, data, relevances)
    evaluator = evaluator_of(signals, data, divergence_of(model, data, request))
    search = BudgetSearch(evaluator, signals.rank, result.limits, request.short)
    scored = [one for one in criteria if one in signals.criteria]
    rivals = [one for one in scored if one is not blend and one.name != chosen.name]
    return replace(
        result,
        rivals=tuple(filter(None, (_at_limits(search, one) for one in rivals))),
        curves=tuple(_curves(search, scored, result.dense)),
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
    for criterion in criteria:
        points.append(replace(dense, criterion=criterion.name))
        ranking = search.ranking(criterion)
        for share in _SHARES:
            plan = ranking.plan(int(share * ranking.removable))
            points.append(evaluator.measure(criterion.name, evaluator.candidate(plan)))
            evaluator.builder.progress("measuring curves", len(points), total)
    return points
