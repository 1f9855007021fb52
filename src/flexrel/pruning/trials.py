"""Plans of one network made and measured: what the spine asks again and again while it searches."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

from torch import nn

from flexrel.core import cost
from flexrel.core.budgets import Budget
from flexrel.core.cost import Resource
from flexrel.core.evaluate import Evaluate, checked
from flexrel.core.graph import Masks, PruningGraph
from flexrel.core.measurement import Measurement, RecoveryStep, Saliency
from flexrel.core.plan import Plan
from flexrel.criteria import Criterion, Normalization, Ranking, UnitRanking, rank_units, scores_of
from flexrel.errors import BudgetError, UsageError
from flexrel.pruning.bisection import least_removal
from flexrel.pruning.builder import NetworkBuilder, Recover
from flexrel.relevance import RelevanceStats
from flexrel.structure import named_tensors

_BYTES_TOLERANCE = 0.002  # a byte budget is met from below, to within this share of it
_ROUNDING = 1e-12  # 1 - 0.9 is a little above 0.1
_FILLS = 100  # units tried that may stay within the budgets after all
_ROOM = 0.01  # of a budget left over: not worth filling
_BYTES_AIMS = 5  # tries to bring a repaired network's file within a budget
_BYTES_STEPS = 1000  # of the units, where bytes rose as units went


Limit = tuple[
    Callable[[PruningGraph, Masks], int], float
]  # what counts a cost, and the most allowed


@dataclass(slots=True)
class Trials:
    """One network, its graph and statistics, and how it is judged."""

    making: NetworkBuilder
    graph: PruningGraph
    statistics: RelevanceStats | None
    allocation: Normalization
    evaluate: Evaluate | None
    multiple_of: int = 1  # that widths are rounded up to
    damages: Saliency | None = None
    resource: Resource = "parameters"  # that is short; of zeros always parameters
    _last: tuple[Criterion, Ranking] | None = None  # orders are large; the last is often asked for
    _grown: float = 1.0  # times as many bytes as not repaired: the last network that was

    def removal(self, criterion: Criterion) -> Ranking:
        """Return the order in which the criterion lets units go, or layers take N:M."""
        if self._last is None or self._last[0] is not criterion:
            tensors = named_tensors(self.making.model)
            evidence = (tensors, self.statistics, self.damages, self.resource)
            scores = scores_of(criterion, self.graph, *evidence)
            removal = rank_units(self.graph, self.allocation(scores), self.multiple_of)
            self._last = (criterion, removal)
        return self._last[1]

    def dense(self) -> Measurement:
        """Measure the network as it came."""
        self.making.progress("measuring dense", 0, 1)
        measurement = Measurement(
            criterion="dense",
            removed=0.0,
            parameters=cost.parameters(self.graph),
            macs=cost.macs(self.graph),
            bytes=self.making.size(self.making.model),
            accuracy=checked(self.evaluate, self.making.model) if self.evaluate else None,
            divergence=0.0,
        )
        self.making.progress("measuring dense", 1, 1)
        return measurement

    def measure(self, criterion: Criterion, plan: Plan) -> tuple[nn.Module, Measurement]:
        """Return the plan's network and what it costs and does."""
        network = self.making.network(plan)
        return network, self._measured(criterion, plan, network)

    def _measured(self, criterion: Criterion, plan: Plan, network: nn.Module) -> Measurement:
        self.making.progress(f"measuring {criterion.name}", 0, 1)
        measurement = Measurement(
            criterion=criterion.name,
            removed=cost.sparsity(self.graph, plan.masks),
            parameters=cost.parameters(self.graph, plan.masks),
            macs=cost.macs(self.graph, plan.masks),
            bytes=self.making.size(network),
            accuracy=checked(self.evaluate, network) if self.evaluate else None,
            divergence=self.making.divergence(network),
        )
        self.making.progress(f"measuring {criterion.name}", 1, 1)
        return measurement

    def finished(
        self,
        criterion: Criterion,
        plan: Plan,
        training: Recover | None,
        most_bytes: float,
    ) -> tuple[nn.Module, Measurement, tuple[RecoveryStep, ...]]:
        """Return the plan's network, trained if that is asked for, and what was done to it.

        Args:
            criterion: that made the plan.
            plan: that was chosen.
            training: goes on from the repaired network.
            most_bytes: what training may not make the file exceed.
        """
        network, measured = self.measure(criterion, plan)
        if self.making.repair is None:
            return network, measured, ()
        steps = self.making.made(plan).steps
        if training is None:
            return network, measured, steps
        trained = self.making.trained(plan, training)
        if isinstance(trained, RecoveryStep):
            return network, measured, (*steps, trained)
        found = self._measured(criterion, plan, trained.rounded)
        if found.bytes > most_bytes:
            step = trained.steps[1]
            note = f"undone: its file has {found.bytes:,} bytes, above {most_bytes:,.0f}"
            return network, measured, (*steps, replace(step, kept=False, notes=(*step.notes, note)))
        return trained.rounded, found, trained.steps

    def accuracy(self, plan: Plan) -> float:
        """Return what `evaluate` says of the plan's network."""
        if self.evaluate is None:
            raise UsageError("a target on accuracy needs evaluate=, a function model -> [0, 1]")
        return checked(self.evaluate, self.making.network(plan))

    def bytes(self, plan: Plan) -> int:
        """Return the size of the plan's packed file."""
        return self.making.size(self.making.network(plan))

    def units_for(
        self,
        criterion: Criterion,
        budgets: Sequence[Budget],
        dense: Measurement,
        *,
        all_layers: bool = False,
    ) -> int:
        """Return the least number of units to remove so that every budget is met.

        For N:M it is the number of layers that have it: all that can, if `all_layers`.

        Raises:
            BudgetError: one can't be; says the closest that can.
        """
        count = max((self._units_for(criterion, b, dense) for b in budgets), default=0)
        if all_layers and self.graph.pattern.unit == "n:m":
            count = self.removal(criterion).removable
        removal = self.removal(criterion)
        while not self.within(removal.plan(count), budgets, dense):  # bytes may rise a little
            if count == removal.removable:
                limit = min(b.limit(dense.bytes) for b in budgets if b.resource == "bytes")
                raise BudgetError("bytes", limit, self.bytes(removal.plan(count)))
            count = min(count + 1 + removal.removable // _BYTES_STEPS, removal.removable)
        return count

    def filled(
        self, criterion: Criterion, count: int, budgets: Sequence[Budget], dense: Measurement
    ) -> Plan:
        """Return the plan that removes `count` units, less those that fit the budgets after all.

        With a budget on anything but multiply-adds and parameters, and for zeros, it is the plan
        that removes `count`.
        """
        limits: list[Limit] = []
        for budget in budgets:
            if budget.resource not in ("MACs", "parameters"):
                return self.removal(criterion).plan(count)
            of, whole = cost.macs, dense.macs
            if budget.resource == "parameters":
                of, whole = cost.parameters, dense.parameters
            limits.append((of, budget.limit(whole)))
        return self._filled(self.removal(criterion), count, limits)

    def _filled(self, removal: Ranking, count: int, limits: Sequence[Limit]) -> Plan:
        """Return the plan, less units that fit within the limits after all.

        Units differ in cost, so that the last one to go may leave much room: heads and groups of
        channels do. Of those removed the best come back first.
        """
        plan = removal.plan(count)
        zeros = self.graph.pattern.zeros
        if zeros or self.multiple_of > 1 or not isinstance(removal, UnitRanking):
            return plan

        def room(plan: Plan) -> float:
            shares = (1 - of(self.graph, plan.masks) / max(limit, 1) for of, limit in limits)
            return min(shares, default=0.0)

        for tried, (group, unit) in enumerate(removal.best_removed(count)):
            if tried == _FILLS or room(plan) < _ROOM:
                break
            mask = plan.masks[group].clone()
            mask[unit] = True
            fuller = Plan(self.graph, {**plan.masks, group: mask})
            if room(fuller) >= 0:
                plan = fuller
        return plan

    def within(self, plan: Plan, budgets: Sequence[Budget], dense: Measurement) -> bool:
        """Return whether the plan's packed file keeps to every budget on bytes.

        The other resources only fall as units go; bytes, which depend on what the encoder
        makes of the values, mostly do.
        """
        limits = [b.limit(dense.bytes) for b in budgets if b.resource == "bytes"]
        return not limits or self.bytes(plan) <= min(limits)

    def _units_for(self, criterion: Criterion, budget: Budget, dense: Measurement) -> int:
        removal = self.removal(criterion)
        pattern = self.graph.pattern
        advice = "Every layer keeps its best unit."
        if pattern.unit == "n:m":
            advice = f"That is {self.graph.granularity} on all {removal.removable} layers."
        if budget.resource == "sparsity":
            wanted = budget.limit(1.0)
            if self.multiple_of > 1 or pattern.unit == "n:m":
                if self.multiple_of > 1:
                    advice = f"Every layer keeps a multiple of {self.multiple_of}."
                return self._units_for_sparsity(removal, wanted, advice)
            count = math.ceil(wanted * self.graph.units)
            if (count - 1) / self.graph.units >= wanted:  # 0.07 * 100 is above 7
                count -= 1
            if count > removal.removable:
                most = removal.removable / self.graph.units
                raise BudgetError("sparsity", wanted, most, advice)
            return count
        dense_cost = {"parameters": dense.parameters, "MACs": dense.macs, "bytes": dense.bytes}
        limit = budget.limit(dense_cost[budget.resource])
        if budget.resource == "bytes":
            return self._units_for_bytes(removal, limit, advice)
        of = partial(self._cost, removal, budget.resource)
        least = least_removal(of, limit, removal.removable)
        if least is None:
            if budget.resource == "MACs" and pattern.zeros:
                advice = "Zeros save no multiply-adds; use granularity='channel'."
            raise BudgetError(budget.resource, limit, of(removal.removable), advice)
        return least

    def _units_for_bytes(self, removal: Ranking, limit: float, advice: str) -> int:
        """Return the least number of units without which the file is small enough.

        A repair takes much longer than packing, and its values may take more bytes. So sizes are
        searched without it, for what a repaired network's file is expected to have; where it has
        more, or leaves room, the next expectation is learnt from it. Other criteria go on there.
        """
        whole = cache(partial(self._size, removal))
        met: int | None = None
        for _ in range(_BYTES_AIMS):
            aim = limit
            if self._grown != 1:
                aim *= (1 - _BYTES_TOLERANCE / 2) / self._grown
            count = least_removal(whole, aim, removal.removable, _BYTES_TOLERANCE)
            if count is None or count == met:
                break
            size = self.bytes(removal.plan(count))
            self._grown = size / whole(count)
            if size <= limit:
                met = count
            if met is not None and size >= (1 - _ROOM) * limit:
                break
        if met is not None:
            return met
        smallest = self.bytes(removal.plan(removal.removable))
        if smallest > limit:
            if self.graph.pattern.unit == "channel":
                advice += " Granularity 'element' makes smaller files."
            raise BudgetError("bytes", limit, smallest, advice)
        return removal.removable

    def _size(self, removal: Ranking, count: int) -> int:
        """Return the size of the file of the network without `count` units, not repaired."""
        self.making.progress("packing", count, removal.removable)
        return self.making.size(self.making.unrepaired(removal.plan(count)))

    def _units_for_sparsity(self, removal: Ranking, wanted: float, advice: str) -> int:
        """Return the least number to ask for where that is not how many units go."""

        def kept(count: int) -> float:
            return 1 - cost.sparsity(self.graph, removal.plan(count).masks)

        count = least_removal(kept, 1 - wanted + _ROUNDING, removal.removable)
        if count is None:
            most = cost.sparsity(self.graph, removal.plan(removal.removable).masks)
            raise BudgetError("sparsity", wanted, most, advice)
        return count

    def _cost(self, removal: Ranking, resource: str, count: int) -> int:
        if resource == "parameters" and self.graph.granularity == "element":
            return cost.parameters(self.graph) - count  # a plan of millions costs a second
        plan = removal.plan(count)
        return (cost.macs if resource == "MACs" else cost.parameters)(self.graph, plan.masks)

    def choose(
        self, candidates: Sequence[Criterion], plan_of: Callable[[Criterion], Plan | None]
    ) -> Criterion:
        """Return the candidate whose plan's network diverges least on the samples that judge.

        Args:
            candidates: to choose from; a tie goes to the earlier.
            plan_of: makes a candidate's plan, all of one cost; None where there is none.
        """

        def divergence(index: int) -> float:
            plan = plan_of(candidates[index])
            self.making.progress("choosing a criterion", index + 1, len(candidates))
            return (
                float("inf") if plan is None else self.making.divergence(self.making.network(plan))
            )

        return candidates[min(range(len(candidates)), key=divergence)]

    def as_costly(self, like: Plan, criterion: Criterion) -> Plan | None:
        """Return the criterion's plan that costs no more than another, if there is one.

        The cost is in the resource that is short.
        """
        of = cost.macs if self.resource == "MACs" else cost.parameters
        limit = of(self.graph, like.masks)
        removal = self.removal(criterion)
        counted = partial(self._cost, removal, self.resource)
        count = least_removal(counted, limit, removal.removable)
        return None if count is None else self._filled(removal, count, [(of, limit)])
