"""What is measured of a network for the criteria, and the rankings that these make of it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from flexrel.core.deadline import OutOfTimeError
from flexrel.core.graph import Protected, PruningGraph
from flexrel.core.measurement import Progress
from flexrel.core.running import fingerprint
from flexrel.criteria import (
    ALLOCATIONS,
    Criterion,
    Ranking,
    SaliencyTarget,
    attribution_of,
    measure_saliency,
    rank_units,
    saliency_of,
    scores_of,
    without_unmeasured,
)
from flexrel.errors import ModelError, UsageError
from flexrel.pruning.cache import MeasuredSaliency, SignalCache
from flexrel.pruning.data import CalibrationData
from flexrel.pruning.request import Request
from flexrel.pruning.sources import PruneTarget
from flexrel.relevance import Attribution, RelevanceStats, calibrate, rule_of
from flexrel.structure import named_tensors

Saliencies = Mapping[SaliencyTarget, MeasuredSaliency]
Relevances = Mapping[Attribution, RelevanceStats | ModelError]  # the latter: why there is none


def measured_relevance(model: nn.Module, request: Request, data: CalibrationData) -> Relevances:
    """Return the relevance that the criteria of a request need: measured, or given with it.

    Raises:
        UsageError: what is given is of another network.
    """
    wanted = dict.fromkeys(filter(None, map(attribution_of, request.criteria)))
    options = request.options
    if options.history is not None:
        options.history.check(model)
    if (known := options.known_relevance) is not None:
        for one in wanted:
            _check_stats(known, one, model)
        return dict.fromkeys(wanted, known)
    found: dict[Attribution, RelevanceStats | ModelError] = {}
    cache = _cache(request, model, data)
    for one in wanted:

        def measure(progress: Progress, one: Attribution = one) -> RelevanceStats:
            return calibrate(model, data.fitted, one.rule, one.output, progress)

        try:
            kept = cache and cache.relevance(one, measure, request.progress)
            found[one] = kept or measure(request.progress)
        except ModelError as error:  # other criteria may not need it
            found[one] = error
    return found


def _cache(request: Request, model: nn.Module, data: CalibrationData) -> SignalCache | None:
    folder = request.options.cache
    return None if folder is None else SignalCache.of(folder, model, data.fitted)


def first_stats(relevances: Relevances) -> RelevanceStats | None:
    """Return the first relevance that was measured."""
    return next((one for one in relevances.values() if isinstance(one, RelevanceStats)), None)


def _check_stats(stats: RelevanceStats, wanted: Attribution, model: nn.Module) -> None:
    if stats.model not in ("", fingerprint(model)):
        raise UsageError("stats= are of another network; calibrate this very model")
    rule, output = rule_of(wanted.rule).name, wanted.output
    other = output not in ("auto", stats.output) and isinstance(output, str)
    if stats.rule != rule or other:
        raise UsageError(
            f"stats= were made with rule {stats.rule!r} from output {stats.output!r}, but a "
            f"criterion needs rule {rule!r} from output {output!r}"
        )


@dataclass(frozen=True, slots=True, eq=False)
class NetworkSignals:
    """What is known of a network's units.

    Attributes:
        target: the network.
        relevances: by what was asked for.
        saliencies: likewise: those measured, and the groups without, and why.
        request: says how units are compared.
        criteria: of the request's, those that can score something.
        untried: why others can't, a line each.
    """

    target: PruneTarget
    relevances: Relevances
    saliencies: Saliencies
    request: Request
    criteria: tuple[Criterion, ...] = ()
    untried: tuple[str, ...] = ()

    def graph_of(self, criterion: Criterion) -> PruningGraph:
        """Return what the criterion can score; all else is protected, for this criterion alone.

        Raises:
            ModelError: that is nothing.
        """
        graph = self.target.graph
        attribution = attribution_of(criterion)
        if attribution is not None:
            found = self.relevances[attribution]
            if isinstance(found, ModelError):
                raise found
            graph = without_unmeasured(graph, found)
        wanted = saliency_of(criterion)
        if wanted is not None:
            saliency, unknown = self.saliencies[wanted]
            graph = graph.only([g for g in graph.groups if g.name in saliency], unknown)
        return graph

    def rank(self, criterion: Criterion) -> Ranking:
        """Return the order in which the criterion lets units go, or layers take N:M."""
        graph = self.graph_of(criterion)
        attribution = attribution_of(criterion)
        stats = None if attribution is None else self.relevances[attribution]
        stats = stats if isinstance(stats, RelevanceStats) else None
        unit_costs = self.request.short.unit_costs
        costs = unit_costs(graph) if unit_costs else None
        history = self.request.options.history
        tracked = {} if history is None else history.magnitudes
        tensors = {**named_tensors(self.target.network), **tracked}
        wanted = saliency_of(criterion)
        saliency = None if wanted is None else self.saliencies[wanted][0]
        scores = scores_of(criterion, graph, tensors, stats, saliency, costs)
        options, halved = self.request.options, self.request.halved
        scores = ALLOCATIONS[options.allocation](scores)
        return rank_units(graph, scores, options.multiple_of, halved=halved)


def measured_signals(
    target: PruneTarget, request: Request, relevances: Relevances
) -> NetworkSignals:
    """Return what the criteria of a request need of a network, besides its weights.

    Raises:
        ModelError: none of them can score anything.
    """
    saliencies: dict[SaliencyTarget, MeasuredSaliency] = {}
    network, graph, seed = target.network, target.graph, request.seed
    every = dict.fromkeys(filter(None, map(saliency_of, request.criteria)))
    cache = _cache(request, network, target.data) if every else None
    for wanted in every:

        def measure(progress: Progress, to: SaliencyTarget = wanted) -> MeasuredSaliency:
            batches = target.data.fitted
            return measure_saliency(network, graph, batches, progress, output=to.output, seed=seed)

        try:
            kept = cache and cache.saliency(wanted, graph, seed, measure, request.progress)
            saliencies[wanted] = kept or measure(request.progress)
        except (ModelError, OutOfTimeError) as error:  # other criteria may not need it
            unknown = [Protected(group.name, str(error)) for group in target.graph.groups]
            saliencies[wanted] = {}, unknown
    signals = NetworkSignals(target, relevances, saliencies, request)
    return replace(signals, **_scorable(signals))


def _scorable(signals: NetworkSignals) -> dict[str, Any]:
    """Return which criteria can score something, and why others can't.

    Of N:M, which all layers have that can, only those that can score the most layers.
    """
    known: list[tuple[Criterion, int]] = []
    failed: dict[str, ModelError] = {}
    for criterion in signals.request.criteria:
        try:
            known.append((criterion, len(signals.graph_of(criterion).groups)))
        except ModelError as error:
            failed[criterion.name] = error
    if not known:
        raise next(iter(failed.values()))
    if signals.request.quick:
        known = known[:1]
    untried = [f"criterion {name} was not tried: {error}" for name, error in failed.items()]
    if signals.target.graph.pattern.unit == "n:m":
        most = max(count for _, count in known)
        untried += [
            f"criterion {criterion.name} was not tried: it can score {count} of {most} layers"
            for criterion, count in known
            if count < most
        ]
        known = [pair for pair in known if pair[1] == most]
    return {"criteria": tuple(one for one, _ in known), "untried": tuple(untried)}
