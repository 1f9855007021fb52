"""From a plan to its network and what that costs and does."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import nn

from flexrel.core import cost
from flexrel.core.evaluate import Evaluate, checked
from flexrel.core.graph import Masks, PruningGraph
from flexrel.core.measurement import Measurement
from flexrel.core.plan import Plan
from flexrel.core.precision import Values
from flexrel.errors import UsageError
from flexrel.pruning.builder import NetworkBuilder, PrunedNetwork


@dataclass(frozen=True, eq=False)
class PlanCandidate:
    """A plan, and its network made as far as a resource looks at it (`Candidate`)."""

    make_plan: Callable[[], Plan]
    make_network: Callable[[Plan], PrunedNetwork]
    graph: PruningGraph
    known_removed: int | None = None  # units that the plan removes, if that is known without it

    @cached_property
    def plan(self) -> Plan:
        """What goes and what stays."""
        return self.make_plan()

    @cached_property
    def made(self) -> PrunedNetwork:
        """What the plan makes of the network."""
        return self.make_network(self.plan)

    @property
    def masks(self) -> Masks:
        """Which units stay."""
        return self.plan.masks

    @property
    def removed(self) -> int:
        """How many units are gone."""
        return self.plan.removed if self.known_removed is None else self.known_removed

    @property
    def network(self) -> nn.Module:
        """The network, with the values that its packed file holds."""
        return self.made.rounded

    @property
    def packed(self) -> bytes:
        """Its packed file."""
        return self.made.packed


class Evaluator:
    """Makes and measures networks of plans of one graph; the last one is kept.

    A repair takes long, and the same plan is asked for again: for its bytes, its accuracy, its
    divergence, and in the end to be returned.
    """

    def __init__(
        self, builder: NetworkBuilder, graph: PruningGraph, evaluate: Evaluate | None
    ) -> None:
        """Take what makes networks, what can be pruned of them, and what tells their accuracy."""
        self.builder, self.graph = builder, graph
        self._evaluate = evaluate
        self._last: tuple[Plan, PrunedNetwork] | None = None
        model = builder.model
        self.dense = PlanCandidate(
            lambda: Plan(
                graph, {g.name: torch.ones(g.shape, dtype=torch.bool) for g in graph.groups}
            ),
            lambda _: PrunedNetwork(model, model, builder.values),
            graph,
            known_removed=0,
        )

    def at(self, values: Values) -> "Evaluator":
        """Return the evaluator of networks whose packed files have values of a precision."""
        if values == self.builder.values:
            return self
        return Evaluator(replace(self.builder, values=values), self.graph, self._evaluate)

    def candidate(self, plan: Plan) -> PlanCandidate:
        """Return a plan as resources look at it."""
        return PlanCandidate(lambda: plan, self.made, self.graph)

    def made(self, plan: Plan) -> PrunedNetwork:
        """Return a plan's network, repaired where that helps."""
        if self._last is None or not _same(self._last[0], plan):
            self._last = plan, self.builder.build(plan)
        return self._last[1]

    def accuracy(self, network: nn.Module) -> float:
        """Return what `evaluate` says of a network."""
        if self._evaluate is None:
            raise UsageError("a target on accuracy needs evaluate=, a function model -> [0, 1]")
        return checked(self._evaluate, network)

    def measure(
        self, name: str, plan: Plan | None, made: PrunedNetwork | None = None
    ) -> Measurement:
        """Return what a plan's network costs and does.

        Args:
            name: of the criterion, or "dense".
            plan: None: of the network as it came.
            made: the plan's network, if it is not the one that `made` returns.
        """
        progress = self.builder.progress
        progress(f"measuring {name}", 0, 1)
        if made is None:
            made = self.dense.made if plan is None else self.made(plan)
        masks = None if plan is None else plan.masks
        measured = Measurement(
            criterion=name,
            removed=0.0 if masks is None else cost.sparsity(self.graph, masks),
            parameters=cost.parameters(self.graph, masks),
            macs=cost.macs(self.graph, masks),
            bytes=len(made.packed),
            accuracy=self.accuracy(made.rounded) if self._evaluate else None,
            divergence=0.0 if plan is None else self.builder.divergence(made.rounded),
        )
        progress(f"measuring {name}", 1, 1)
        return measured


def _same(one: Plan, other: Plan) -> bool:
    if one is other:
        return True
    return all(bool((one.masks[name] == mask).all()) for name, mask in other.masks.items())
