"""Plans of one network made and measured: what the spine asks again and again while it searches."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from math import ceil

from torch import Tensor, nn

from flexrel import cost
from flexrel.allocate import Allocation, Removal
from flexrel.apply import apply
from flexrel.budgets import Budget
from flexrel.criteria import Criterion, scores_of
from flexrel.errors import BudgetError, UsageError
from flexrel.evaluate import Divergence, Evaluate, checked
from flexrel.pack import Values, encode
from flexrel.records import Measurement, Plan, Progress, Structure
from flexrel.search import least_removal
from flexrel.statistics import Statistics

_BYTES_TOLERANCE = 0.002  # a byte budget is met from below, to within this share of it


@dataclass(slots=True)
class Trials:
    """One network, its structure and statistics, and how it is judged."""

    model: nn.Module
    structure: Structure
    statistics: Statistics | None
    allocation: Allocation
    values: Values
    evaluate: Evaluate | None
    divergence: Divergence
    _removals: dict[str, Removal] = field(default_factory=dict)

    def removal(self, criterion: Criterion) -> Removal:
        """Return the order in which the criterion lets units go; made once a criterion."""
        key = repr(criterion)
        if key not in self._removals:
            named = (*self.model.named_parameters(), *self.model.named_buffers())
            tensors: dict[str, Tensor] = dict(named)
            scores = scores_of(criterion, self.structure, tensors, self.statistics)
            self._removals = {key: Removal(self.structure, self.allocation(scores))}
        return self._removals[key]

    def dense(self) -> Measurement:
        """Measure the network as it came."""
        return Measurement(
            criterion="dense",
            removed=0.0,
            parameters=cost.parameters(self.structure),
            macs=cost.macs(self.structure),
            bytes=len(encode(self.model, self.values)),
            accuracy=checked(self.evaluate, self.model) if self.evaluate else None,
            divergence=0.0,
        )

    def measure(self, criterion: Criterion, plan: Plan) -> tuple[nn.Module, Measurement]:
        """Return the plan's network and what it costs and does."""
        network = apply(self.model, plan)
        return network, Measurement(
            criterion=criterion.name,
            removed=cost.sparsity(self.structure, plan),
            parameters=cost.parameters(self.structure, plan),
            macs=cost.macs(self.structure, plan),
            bytes=len(encode(network, self.values)),
            accuracy=checked(self.evaluate, network) if self.evaluate else None,
            divergence=self.divergence(network),
        )

    def accuracy(self, plan: Plan) -> float:
        """Return what `evaluate` says of the plan's network."""
        if self.evaluate is None:
            raise UsageError("a target on accuracy needs evaluate=, a function model -> [0, 1]")
        return checked(self.evaluate, apply(self.model, plan))

    def bytes(self, plan: Plan) -> int:
        """Return the size of the plan's packed file."""
        return len(encode(apply(self.model, plan), self.values))

    def units_for(self, criterion: Criterion, budgets: Sequence[Budget], dense: Measurement) -> int:
        """Return the least number of units to remove so that every budget is met.

        Raises:
            BudgetError: one can't be; says the closest that can.
        """
        return max((self._units_for(criterion, b, dense) for b in budgets), default=0)

    def _units_for(self, criterion: Criterion, budget: Budget, dense: Measurement) -> int:
        removal = self.removal(criterion)
        kind = self.structure.granularity
        if budget.resource == "sparsity":
            wanted = budget.limit(1.0)
            count = ceil(wanted * self.structure.units)
            if (count - 1) / self.structure.units >= wanted:  # 0.07 * 100 is above 7
                count -= 1
            if count > removal.removable:
                most = removal.removable / self.structure.units
                raise BudgetError("sparsity", wanted, most, "Every layer keeps its best unit.")
            return count
        dense_cost = {"parameters": dense.parameters, "MACs": dense.macs, "bytes": dense.bytes}
        limit = budget.limit(dense_cost[budget.resource])
        of = partial(self._cost, removal, budget.resource)
        tolerance = _BYTES_TOLERANCE if budget.resource == "bytes" else 0.0
        least = least_removal(of, limit, removal.removable, tolerance)
        if least is None:
            advice = "Every layer keeps its best unit."
            if budget.resource == "MACs" and kind == "element":
                advice = "Zeros save no multiply-adds; use granularity='channel'."
            elif budget.resource == "bytes" and kind == "channel":
                advice += " Granularity 'element' makes smaller files."
            raise BudgetError(budget.resource, limit, of(removal.removable), advice)
        return least

    def _cost(self, removal: Removal, resource: str, count: int) -> int:
        if resource == "parameters" and self.structure.granularity == "element":
            return cost.parameters(self.structure) - count  # a plan of millions costs a second
        plan = removal.plan(count)
        if resource == "bytes":
            return self.bytes(plan)
        return (cost.macs if resource == "MACs" else cost.parameters)(self.structure, plan)

    def choose(self, candidates: Sequence[Criterion], like: Plan, progress: Progress) -> Criterion:
        """Return the candidate whose network diverges least on calibration data at equal cost.

        Args:
            candidates: to choose from; a tie goes to the earlier.
            like: its multiply-adds (channels) or parameters (elements) are the cost that every
                candidate must not exceed.
            progress: told after each candidate.
        """
        kind = self.structure.granularity
        resource = "MACs" if kind == "channel" else "parameters"
        limit = (cost.macs if kind == "channel" else cost.parameters)(self.structure, like)

        def divergence(index: int) -> float:
            removal = self.removal(candidates[index])
            of = partial(self._cost, removal, resource)
            count = least_removal(of, limit, removal.removable)
            progress("choosing a criterion", index + 1, len(candidates))
            if count is None:
                return float("inf")
            return self.divergence(apply(self.model, removal.plan(count)))

        return candidates[min(range(len(candidates)), key=divergence)]
