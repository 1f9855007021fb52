"""What budgets can be met at all: counted in seconds, before anything is repaired or trained."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import torch
from torch import nn

from flexrel.core.batches import RawBatch, RawBatches, collect
from flexrel.core.budgets import PARAMETERS_LEFT, Bytes, MACs, Sparsity, budget_of
from flexrel.core.caches import uncached
from flexrel.core.network import plain_network
from flexrel.core.precision import RequestedPrecision
from flexrel.core.resources import Budget, Resource
from flexrel.criteria import Magnitude
from flexrel.errors import BudgetError
from flexrel.pruning.binding import bound
from flexrel.pruning.data import calibration_data
from flexrel.pruning.limits import Limits
from flexrel.pruning.options import PruneOptions
from flexrel.pruning.possible import countable, extremes_of
from flexrel.pruning.request import Request, requested
from flexrel.pruning.search import BudgetSearch
from flexrel.pruning.sources import PruneTarget, Sources
from flexrel.pruning.stages import AUTO, CHANNELS, ZEROS, fixed_budgets, kind_for
from flexrel.structure import apply

_ALWAYS: Final = (PARAMETERS_LEFT, MACs.resource, Bytes.resource)  # told whether asked for or not
_CRITERION: Final = Magnitude()  # needs nothing measured; what can be had hardly depends on it
_DEFAULTS: Final = PruneOptions()


@dataclass(frozen=True, slots=True)
class Possibility:
    """How much of a resource a network takes, and how little it can.

    Attributes:
        resource: its name.
        dense: how much the network takes as it came.
        closest: how little it can be brought to; of what is needed at least, how much.
        limit: of the budget; None: there is none on it.
        at_least: whether the budget asks for so much at least.
        removed: which share of the units has to go for it; None: it can't be met, or is not asked.
        refused: why it can't be met; "" where it can.
    """

    resource: str
    dense: float
    closest: float
    limit: float | None = None
    at_least: bool = False
    removed: float | None = None
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Feasibility:
    """Which budgets can be met, the least of each resource that can be had, and which binds.

    Attributes:
        amounts: one for each budget, and for what else is counted.
        form: "module" or "exported": what had to be cut.
    """

    amounts: tuple[Possibility, ...]
    form: str

    @property
    def possible(self) -> bool:
        """Whether all budgets can be met."""
        return not any(one.refused for one in self.amounts)

    @property
    def binds(self) -> str | None:
        """The resource for whose budget most has to go; None if nothing has to."""
        asked = [one for one in self.amounts if one.removed]
        return max(asked, key=lambda one: one.removed or 0.0).resource if asked else None

    def as_json(self) -> dict[str, Any]:
        """Return it as one JSON object."""
        amounts = [asdict(one) for one in self.amounts]
        return {
            "possible": self.possible,
            "binds": self.binds,
            "form": self.form,
            "amounts": amounts,
        }


@torch.inference_mode(mode=False)
def dry_run(
    model: nn.Module,
    *,
    calibration: RawBatches,
    budgets: Sequence[Budget | str] | Budget | str = (),
    granularity: str = "channel",
    values: RequestedPrecision = "float32",
    keep: Sequence[str] = (),
    options: PruneOptions = _DEFAULTS,
) -> Feasibility:
    """Return which budgets `prune` could meet, and how little of each resource can be had.

    Nothing is repaired, trained or evaluated. So a budget on bytes is told of the network as it is
    cut: a repair changes its file by a little.

    Args:
        model: as in `prune`, and never changed; the others likewise.
        calibration: of which the first batch is enough.
        budgets: none tells what can be had.
        granularity: of what would go; with "auto" each resource is told for what would bring it
            down, channels or zeros.
        values: precision of the packed file; "auto" stands for that by which least can be had.
        keep: names of layers to leave alone.
        options: the rarer ones.

    Raises:
        UsageError: the request or the data are wrong.
        ModelError: the network can't be analysed.
    """
    asked = {"values": values, "keep": keep, "options": options}
    if granularity == AUTO:
        return _by_kind(model, budgets, collect(calibration), asked)
    request = _requested(budgets, granularity, asked)
    network = uncached(plain_network(model).network)
    data = calibration_data(network, calibration, fits=False)
    sources = Sources(network, data, request)
    source = sources.first()
    found, error = _counted(source, request)
    if error is not None:
        try:
            found, _ = _counted(sources.instead(source, error), request)
        except BudgetError:  # no more can be cut of its program
            return found
    return found


def _requested(
    budgets: Sequence[Budget | str] | Budget | str, granularity: str, asked: Mapping[str, Any]
) -> Request:
    """Return the request, which has no budget if none is given."""
    request = requested(
        evaluate=None,
        target=None,
        budgets=budgets or (Sparsity(0),),  # nothing has to go
        criterion=_CRITERION,
        granularity=granularity,
        recover="none",
        seed=0,
        **asked,
    )
    return request if budgets else replace(request, budgets=())


def _by_kind(
    model: nn.Module,
    budgets: Sequence[Budget | str] | Budget | str,
    batches: Sequence[RawBatch],
    asked: Mapping[str, Any],
) -> Feasibility:
    """Return what channels and what zeros make possible, each of the resources that are theirs.

    Where both are asked for, zeros come to what channels leave.
    """
    given = (budgets,) if isinstance(budgets, str | Budget) else budgets
    read = tuple(map(budget_of, given))
    channels, zeros = (
        tuple(one for one in read if kind_for(one.resource) == kind) for kind in (CHANNELS, ZEROS)
    )
    first = dry_run(model, calibration=batches, budgets=channels, granularity=CHANNELS, **asked)
    network, dense = model, dict[str, float]()
    if channels and zeros:
        network, amounts = _without_channels(model, batches, channels, zeros, asked)
        zeros = fixed_budgets(zeros, amounts)
        dense = {resource.name: amount for resource, amount in amounts}
    asked = {**asked, "options": replace(asked["options"], multiple_of=1)}  # zeros leave widths
    second = dry_run(network, calibration=batches, budgets=zeros, granularity=ZEROS, **asked)
    found: list[Possibility] = []
    for told, own, kind in ((second, zeros, ZEROS), (first, channels, CHANNELS)):
        always = [one for one in _ALWAYS if kind_for(one) == kind]
        names = {one.name for one in (*(one.resource for one in own), *always)}
        found += [one for one in told.amounts if one.resource in names]
    found = [replace(one, dense=dense.get(one.resource, one.dense)) for one in found]
    found.sort(key=lambda one: one.limit is None)
    return Feasibility(tuple(found), first.form)


def _without_channels(
    model: nn.Module,
    batches: Sequence[RawBatch],
    channels: Sequence[Budget],
    zeros: Sequence[Budget],
    asked: Mapping[str, Any],
) -> tuple[nn.Module, list[tuple[Resource, float]]]:
    """Return the network cut to budgets on channels, and what the dense one takes of others.

    Latency, whose measuring takes long, cuts nothing here.
    """
    network = uncached(plain_network(model).network)
    request = _requested(channels, CHANNELS, asked)
    data = calibration_data(network, batches, fits=False)
    target = Sources(network, data, request).first()
    request = countable(request, target)
    extremes = extremes_of(target, request)
    amounts = [(b.resource, b.resource.count(extremes.dense)) for b in zeros]
    return apply(target.network, extremes.plan(request.budgets)), amounts


def _counted(source: PruneTarget, request: Request) -> tuple[Feasibility, BudgetError | None]:
    """Return what is possible, and the last budget's error that is not."""
    request = bound(request, source).request
    extremes = extremes_of(source, request)
    dense, ranking = extremes.dense, extremes.ranking
    asked = [(b.resource, b.limit(b.resource.count(dense))) for b in request.budgets]
    names = [resource.name for resource, _ in asked]
    others = [(resource, None) for resource in _ALWAYS if resource.name not in names]
    failed: BudgetError | None = None
    found: list[Possibility] = []
    for resource, limit in (*asked, *others):
        one = Possibility(resource.name, resource.count(dense), extremes.closest(resource), limit)
        one = replace(one, at_least=resource.at_least)
        if limit is not None:
            alone, evaluator = _limits((resource, limit)), extremes.evaluator(resource)
            search = BudgetSearch(evaluator, extremes.signals.rank, alone, request.short)
            try:
                count = search.least(_CRITERION)
                one = replace(one, removed=ranking.plan(count).removed / evaluator.graph.units)
            except BudgetError as error:
                failed, one = error, replace(one, refused=str(error))
        found.append(one)
    return Feasibility(tuple(found), "module" if source.program is None else "exported"), failed


def _limits(*amounts: tuple[Resource, float]) -> Limits:
    return Limits((), amounts, Bytes.resource)
