"""From a plan to its network and what that costs and does."""

import time
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Final, Literal

import torch
from torch import nn

from flexrel.core import cost
from flexrel.core.distance import Divergence
from flexrel.core.evaluate import ACCURACY, Accuracy, Evaluation, LabelledData, Metrics
from flexrel.core.forms import batches_of
from flexrel.core.graph import PruningGraph
from flexrel.core.measurement import Measurement
from flexrel.core.plan import Plan
from flexrel.core.precision import Values
from flexrel.core.resources import Candidate
from flexrel.core.segmentation import Segmentation
from flexrel.pruning.builder import NetworkBuilder, PrunedNetwork
from flexrel.pruning.data import CalibrationData
from flexrel.pruning.promise import BoundedAccuracy
from flexrel.pruning.request import Request
from flexrel.pruning.signals import NetworkSignals

_FULL: Final = 4  # times as long as a sketch takes a repair in full


@dataclass(frozen=True, slots=True, eq=False)
class _Sketch:
    """About what a plan's network is like, and how many seconds that took."""

    plan: Plan
    network: nn.Module
    seconds: float


class Evaluator:
    """Makes and measures networks of plans of one network; the last, and one to hold, are kept.

    A repair takes long, and the same plan is asked for again: for its bytes, its accuracy, its
    divergence, and in the end to be returned.
    """

    def __init__(
        self, builder: NetworkBuilder, graph: PruningGraph, evaluate: Evaluation | None
    ) -> None:
        """Take what makes networks, what can be pruned of them, and what tells how they do."""
        self.builder, self.graph = builder, graph
        self._evaluate = evaluate
        self._kept: dict[Literal["last", "held"], tuple[Plan, PrunedNetwork]] = {}
        self._sketched: _Sketch | None = None  # the last

    @property
    def samples(self) -> int | None:
        """How many samples accuracy is measured on; None if that is not told."""
        said = self._evaluate and self._evaluate.evaluate
        said = said.accuracy if isinstance(said, BoundedAccuracy) else said
        return said.samples if isinstance(said, Accuracy | Segmentation) else None

    def at(self, values: Values) -> "Evaluator":
        """Return the evaluator of networks whose packed files have values of a precision."""
        if values == self.builder.values:
            return self
        return Evaluator(replace(self.builder, values=values), self.graph, self._evaluate)

    @cached_property
    def dense(self) -> Candidate:
        """The network as it came, as resources look at it."""
        model = self.builder.model
        builder = self.builder
        whole = PrunedNetwork(model, model, builder.values, metadata=builder.metadata)
        masks = {g.name: torch.ones(g.shape, dtype=torch.bool) for g in self.graph.groups}
        plan = Plan(self.graph, masks)
        return Candidate(
            self.graph, self.graph.units, lambda: plan, lambda _: whole, known_removed=0
        )

    def candidate(self, plan: Plan, network: PrunedNetwork | None = None) -> Candidate:
        """Return a plan as resources look at it; its network is not yet made, if none is given."""
        build = self.network_of if network is None else lambda _: network
        return Candidate(plan.graph, self.graph.units, lambda: plan, build)

    def network_of(self, plan: Plan) -> PrunedNetwork:
        """Return a plan's network, repaired where that helps."""
        for known, made in self._kept.values():
            if _same(known, plan):
                return made
        self._kept["last"] = plan, self._made(plan)
        return self._kept["last"][1]

    def _made(self, plan: Plan) -> PrunedNetwork:
        """Return a plan's network; where a repair in full would take too long, as its sketch is."""
        sketch = self._sketched
        if sketch is None or sketch.seconds * _FULL <= self.builder.deadline.left:
            return self.builder.build(plan)
        if _same(sketch.plan, plan):
            return self.builder.settled(plan, sketch.network)
        return self.builder.build(plan, quick=True)

    def hold(self, plan: Plan) -> None:
        """Keep the plan's network, whatever is made next, until another is to be held."""
        self._kept["held"] = plan, self.network_of(plan)

    def divergence(self, plan: Plan) -> float:
        """Return how far outputs of a plan's network are from the dense one's; lower is better."""
        return self._divergence(self.network_of(plan).rounded)

    def sketched_divergence(self, plan: Plan) -> float:
        """Return about that, sooner if that is possible: to compare plans by."""
        if not self.builder.sketches:
            return self.divergence(plan)
        return self.builder.divergence(self._sketch(plan))

    def sketched_metrics(self, plan: Plan) -> Metrics:
        """Return about what `evaluate` says of a plan's network, sooner."""
        return self.metrics(self._sketch(plan))

    def _sketch(self, plan: Plan) -> nn.Module:
        began = time.monotonic()
        network = self.builder.sketch(plan)
        self._sketched = _Sketch(plan, network, time.monotonic() - began)
        return network

    def _divergence(self, network: nn.Module) -> float:
        """Return that of a network, which may be known since it was made."""
        if network is self.builder.model:
            return 0.0
        kept = self._kept.values()
        known = (made.divergence for _, made in kept if made.rounded is network)
        found = next(known, None)
        return self.builder.divergence(network) if found is None else found

    def metrics(self, network: nn.Module) -> Metrics:
        """Return what `evaluate` says of a network, by name; nothing without one.

        Raises:
            UsageError: it says what is no number, or an accuracy that is not in [0, 1].
        """
        return {} if self._evaluate is None else self._evaluate(network)

    def unrepaired(self, plan: Plan) -> float | None:
        """Return the accuracy of a plan's network as it is cut; None if none is told."""
        if self._evaluate is None:
            return None
        return self.metrics(self.builder.rough(plan).rounded).get(ACCURACY)

    def measure(
        self, name: str, candidate: Candidate, metrics: Metrics | None = None
    ) -> Measurement:
        """Return what a network costs and does.

        Args:
            name: its criterion's, or "dense".
            candidate: the network.
            metrics: of it, if they are known already.
        """
        self.builder.progress(f"measuring {name}", 0, 1)
        if metrics is None:
            metrics = self.metrics(candidate.network)
        network, graph, masks = candidate.network, candidate.graph, candidate.plan.masks
        measured = Measurement(
            criterion=name,
            removed=candidate.removed / candidate.units,
            parameters=cost.parameters(graph, masks),
            macs=cost.macs(graph, masks),
            bytes=len(candidate.packed),
            accuracy=metrics.get(ACCURACY),
            weights_removed=cost.weights_removed(network, self.builder.model),
            divergence=self._divergence(network),
            metrics=metrics,
        )
        self.builder.progress(f"measuring {name}", 1, 1)
        return measured


def _same(one: Plan, other: Plan) -> bool:
    masks = other.masks.items()
    alike = one.masks.keys() == other.masks.keys()
    return one is other or (
        alike and all(torch.equal(one.masks[name], mask) for name, mask in masks)
    )


def divergence_of(model: nn.Module, data: CalibrationData, request: Request) -> Divergence:
    """Return how far networks are from the model, on the samples that judge.

    What its outputs are, labels say: of calibration, or else those that accuracy is measured by.
    """
    evaluate = request.evaluate
    labelled = batches_of(evaluate.batches) if isinstance(evaluate, LabelledData) else ()
    return Divergence(model, data.judged, request.options.outputs, tuple(islice(labelled, 1)))


def evaluator_of(signals: NetworkSignals, divergence: Divergence) -> Evaluator:
    """Return what makes and measures the networks of a request, at the finest precision asked."""
    request, target = signals.request, signals.target
    builder = NetworkBuilder(
        model=target.network,
        values="float32" if request.values == "auto" else request.values,
        divergence=divergence,
        progress=request.progress,
        repair=request.repair,
        fitted=target.data.fitted,
        deadline=request.deadline,
        few=target.data.fitted if request.options.effort == "thorough" else target.data.few,
        metadata=request.options.metadata,
        judged=request.judged,
    )
    return Evaluator(builder, target.graph, request.evaluation)
