"""Granularity "auto": channels where time or work counts, then zeros where bytes count.

Channels save multiply-adds, activations and time, and zeros do not; at one accuracy zeros make
the smaller files (`docs/method.md` has the numbers).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import nn

from flexrel.core import cost
from flexrel.core.batches import RawBatches, collect
from flexrel.core.caches import uncached
from flexrel.core.deadline import seconds_in
from flexrel.core.graph import PruningGraph
from flexrel.core.layer_costs import WholeNetwork, layer_costs
from flexrel.core.network import plain_network
from flexrel.core.plan import Plan
from flexrel.core.precision import Values
from flexrel.core.resources import Budget, Candidate, Resource
from flexrel.errors import UsageError
from flexrel.pruning.arguments import are_candidates, candidates
from flexrel.pruning.builder import PrunedNetwork
from flexrel.pruning.data import calibration_data
from flexrel.pruning.limits import Limits
from flexrel.pruning.possible import check_both
from flexrel.pruning.recorded import recorded
from flexrel.pruning.request import Request
from flexrel.pruning.result import Result
from flexrel.pruning.sources import Sources

AUTO: Final = "auto"
CHANNELS: Final = "channel"
ZEROS: Final = "element"
_CHANNELS_SHARE: Final = 0.5  # of the time there is


# Carries out a request of one granularity; a network besides is what outputs and metrics are
# compared with, instead of the one that is cut.
OneStage = Callable[[nn.Module, RawBatches, Request, nn.Module | None], Result]


@dataclass(frozen=True, slots=True)
class _Fixed:
    """A budget whose limit is known, whatever network it is put on."""

    resource: Resource
    amount: float

    def limit(self, dense: float) -> float:  # noqa: ARG002 - it was told of another
        """Return the limit."""
        return self.amount


def fixed_budgets(
    budgets: Sequence[Budget], amounts: Sequence[tuple[Resource, float]]
) -> tuple[Budget, ...]:
    """Return budgets whose limits are those of a network that takes these amounts."""
    pairs = zip(budgets, amounts, strict=True)
    return tuple(_Fixed(resource, budget.limit(dense)) for budget, (resource, dense) in pairs)


def kind_for(resource: Resource) -> str:
    """Return the granularity that brings a resource down: "channel", or "element" for zeros."""
    return ZEROS if resource.at_least or not resource.steady else CHANNELS


def stages_of(request: Request) -> tuple[Request, ...]:
    """Return what "auto" comes to: a request for channels, one for zeros, or one after the other.

    Zeros are for bytes, time on a link and sparsity, of budgets and of what is to be least;
    channels for what is counted on a plan: multiply-adds, parameters, activations, latency.

    Args:
        request: as it would be for channels.

    Raises:
        UsageError: a target would have to be divided between the two, or a program to be cut twice.
    """
    zeros = tuple(one for one in request.budgets if kind_for(one.resource) == ZEROS)
    channels = tuple(one for one in request.budgets if kind_for(one.resource) == CHANNELS)
    small = bool(request.targets) and kind_for(request.minimised) == ZEROS
    if request.targets and not small and zeros:
        raise UsageError(
            f"granularity 'auto' can't divide a target between {request.minimised.name}, which is "
            f"to be least by channels, and {zeros[0].resource.name} by zeros; name a granularity"
        )
    if not zeros and not small:
        return (request,)
    if not channels:
        return (_with_zeros(request),)
    if request.options.form == "exported":
        raise UsageError(
            "granularity 'auto' does not go on from channels to zeros in an exported program; use "
            "form 'module', or name a granularity"
        )
    options = replace(request.options, form="module", assured=False)
    first = replace(
        request, budgets=channels, targets=(), training=None, values="float32", options=options
    )
    second = _with_zeros(request)
    alone = replace(second.options, form="module", stats=None, history=None)  # of another network
    return first, replace(second, budgets=zeros, options=alone)


def carried_out(
    one_stage: OneStage, model: nn.Module, calibration: RawBatches, stages: Sequence[Request]
) -> Result:
    """Return the result of stages, each of which goes on from the network of the one before it.

    Targets, and shares of what the dense network takes, are of the network as it came.
    """
    if len(stages) == 1:
        return one_stage(model, calibration, stages[0], None)
    channels, zeros = stages
    limit, began = zeros.options.time_limit, time.monotonic()
    if limit is not None:
        channels = _within(channels, _CHANNELS_SHARE * seconds_in(limit))
    batches = collect(calibration)
    dense = uncached(plain_network(model).network)
    data = calibration_data(dense, batches, fits=channels.fits)
    target = Sources(dense, data, channels).first()
    whole = _whole(dense, target.graph, "float32" if zeros.values == "auto" else zeros.values)
    amounts = [(b.resource, b.resource.count(whole)) for b in zeros.budgets]
    zeros = replace(zeros, budgets=fixed_budgets(zeros.budgets, amounts))
    if zeros.budgets:
        check_both(target, channels, zeros)
    first = one_stage(model, batches, channels, None)
    if limit is not None:
        zeros = _within(zeros, max(seconds_in(limit) - (time.monotonic() - began), 1e-3))
    second = one_stage(first.model, batches, zeros, dense)
    both = _joined(first, second, WholeNetwork(dense, whole.packed))
    budgets = (*channels.budgets, *stages[1].budgets)
    both = recorded(replace(both, request=replace(both.request, budgets=budgets)), whole)
    shares = {r.key: (amount, second.amounts[r.key][1]) for r, amount in amounts if r.at_least}
    return replace(both, amounts={**both.amounts, **shares})


def _joined(first: Result, second: Result, dense: WholeNetwork) -> Result:
    """Return the result of two stages, of which the second went on from the first's network."""
    plan = replace(first.plan, then=second.plan)
    pruned = WholeNetwork(second.model, second.packed)
    layers = layer_costs(plan.graph, plan.masks, dense, pruned)
    gone = cost.weights_removed(second.model, dense.network)
    return replace(
        second,
        plan=plan,
        dense=replace(first.dense, metrics=second.dense.metrics, accuracy=second.dense.accuracy),
        achieved=replace(second.achieved, weights_removed=gone),
        recovery=(*first.recovery, *second.recovery),
        warnings=tuple(dict.fromkeys((*first.warnings, *second.warnings))),
        limits=Limits(
            second.limits.goals,
            (*first.limits.amounts, *second.limits.amounts),
            second.limits.minimised,
        ),
        timing=first.timing,
        stats=first.stats,
        evidence=replace(second.evidence, scores=first.evidence.scores, layers=layers),
    )


def _with_zeros(request: Request) -> Request:
    criteria = request.criteria
    if request.quick or are_candidates(criteria, request.granularity, request.recover):
        criteria = candidates(ZEROS, request.recover)
    options = replace(request.options, multiple_of=1)
    return replace(request, granularity=ZEROS, criteria=criteria, options=options)


def _within(request: Request, seconds: float) -> Request:
    return replace(request, options=replace(request.options, time_limit=seconds))


def _whole(dense: nn.Module, graph: PruningGraph, values: Values) -> Candidate:
    """Return the dense network as resources look at it."""
    kept = {group.name: torch.ones(group.shape, dtype=torch.bool) for group in graph.groups}
    made = PrunedNetwork(dense, dense, values)
    return Candidate(graph, graph.units, lambda: Plan(graph, kept), lambda _: made, 0)
