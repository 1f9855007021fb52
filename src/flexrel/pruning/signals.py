"""What is measured of a network for the criteria, and the rankings that these make of it."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from flexrel.core.graph import PruningGraph
from flexrel.core.measurement import Saliency
from flexrel.core.running import fingerprint
from flexrel.criteria import (
    ALLOCATIONS,
    SALIENCY,
    Criterion,
    Ranking,
    attribution_of,
    measure_saliency,
    rank_units,
    scores_of,
    without_unmeasured,
)
from flexrel.errors import UsageError
from flexrel.pruning.data import CalibrationData
from flexrel.pruning.request import Request
from flexrel.pruning.sources import PruneTarget
from flexrel.relevance import Attribution, RelevanceStats, calibrate, rule_of
from flexrel.structure import named_tensors

Relevances = Mapping[Attribution, RelevanceStats]


def measured_relevance(model: nn.Module, request: Request, data: CalibrationData) -> Relevances:
    """Return the relevance that the criteria of a request need: measured, or given with it.

    Raises:
        UsageError: what is given is of another network.
    """
    wanted = dict.fromkeys(filter(None, map(attribution_of, request.criteria)))
    options = request.options
    if options.stats is not None:
        for one in wanted:
            _check_stats(options.stats, one, model)
        return dict.fromkeys(wanted, options.stats)
    return {
        one: calibrate(model, data.fitted, one.rule, one.output, options.progress) for one in wanted
    }


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
        graph: what of it can be scored: without what could not be measured, which it protects.
        relevances: by what was asked for.
        saliency: if a criterion needs it.
        request: says how units are compared.
    """

    target: PruneTarget
    graph: PruningGraph
    relevances: Relevances
    saliency: Saliency | None
    request: Request

    def rank(self, criterion: Criterion) -> Ranking:
        """Return the order in which the criterion lets units go, or layers take N:M."""
        attribution = attribution_of(criterion)
        stats = None if attribution is None else self.relevances.get(attribution)
        unit_costs = self.request.short.unit_costs
        costs = unit_costs(self.graph) if unit_costs else None
        tensors = named_tensors(self.target.network)
        scores = scores_of(criterion, self.graph, tensors, stats, self.saliency, costs)
        options = self.request.options
        return rank_units(self.graph, ALLOCATIONS[options.allocation](scores), options.multiple_of)


def measured_signals(
    target: PruneTarget, request: Request, data: CalibrationData, relevances: Relevances
) -> NetworkSignals:
    """Return what the criteria of a request need of a network, besides its weights."""
    graph = target.graph
    for stats in relevances.values():
        graph = without_unmeasured(graph, stats)
    saliency = None
    if any(SALIENCY in criterion.needs for criterion in request.criteria):
        progress = request.options.progress
        saliency, unknown = measure_saliency(
            target.network, graph, data.fitted, progress, seed=request.seed
        )
        groups = [group for group in graph.groups if group.name in saliency]
        graph = graph.only(groups, unknown)
    return NetworkSignals(target, graph, relevances, saliency, request)
