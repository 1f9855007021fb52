"""From a plan to its network: cut, repaired where that helps, trained if asked, and rounded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Final

from torch import nn

from flexrel.core.batches import RawBatch
from flexrel.core.deadline import NO_DEADLINE, Deadline, OutOfTimeError
from flexrel.core.distance import Divergence
from flexrel.core.events import Judge, unheard
from flexrel.core.measurement import Progress, RecoveryStep
from flexrel.core.plan import Plan
from flexrel.core.precision import LARGEST, Values
from flexrel.core.running import duplicate
from flexrel.io import encode
from flexrel.repair import LATE, ClosedForm, Recovery, round_
from flexrel.structure import apply

_SKETCHED: Final = 4000  # rows of a layer that are fitted where networks are only compared


@dataclass(frozen=True, eq=False)
class PrunedNetwork:
    """What became of a network that was cut.

    Attributes:
        exact: in full precision.
        rounded: with the values that its packed file holds; the same object where none is rounded.
        values: precision of these.
        steps: what repair, training and rounding did.
        divergence: of the rounded network, if it was measured.
        metadata: texts that its packed file keeps.
    """

    exact: nn.Module
    rounded: nn.Module
    values: Values
    steps: tuple[RecoveryStep, ...] = ()
    divergence: float | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def packed(self) -> bytes:
        """The packed file: what is measured is what is saved."""
        return encode(self.rounded, self.values, metadata=self.metadata)


@dataclass(frozen=True, slots=True)
class NetworkBuilder:
    """Makes the networks of one dense network's plans, at one precision.

    Attributes:
        model: the dense network; never changed.
        values: precision of the packed files.
        divergence: judges whether a step helps.
        progress: told while repairs go on.
        repair: of every network; None: none is repaired.
        fitted: calibration data that repairs, and rounding to whole numbers, are fitted to; without
            them each value is rounded by itself.
        few: some of these, for networks that are only compared; or these.
        deadline: after which nothing is repaired.
        metadata: texts that packed files keep.
        judged: is told of candidates.
    """

    model: nn.Module
    values: Values
    divergence: Divergence
    progress: Progress
    repair: ClosedForm | None = None
    fitted: Sequence[RawBatch] = ()
    few: Sequence[RawBatch] = ()
    deadline: Deadline = NO_DEADLINE
    metadata: Mapping[str, str] = field(default_factory=dict)
    judged: Judge = unheard

    def build(self, plan: Plan, *, quick: bool = False) -> PrunedNetwork:
        """Return a plan's network, repaired where that helps; as a sketch is, if `quick`."""
        if self.repair is None or self.deadline.left <= 0:
            return self.rough(plan)
        repair, batches = (self._sketching, self.few) if quick else (self.repair, self.fitted)
        network, step = self._improved(apply(self.model, plan), repair, plan, batches)
        return self._rounded(network, (step,), batches)

    @property
    def sketches(self) -> bool:
        """Whether a sketch is made sooner than the network itself."""
        return self.repair is not None and self.few is not self.fitted

    @property
    def _sketching(self) -> ClosedForm:
        return replace(self.repair or ClosedForm(), rows=_SKETCHED)

    def sketch(self, plan: Plan) -> nn.Module:
        """Return what a plan's network is about like: repaired with few samples and rows."""
        network = apply(self.model, plan)
        if self.repair is not None:
            repair = self._sketching
            network = repair(network, self.model, plan, self.few, self.progress).model
        return self._rounded(network, (), self.few).rounded

    def settled(self, plan: Plan, sketch: nn.Module) -> PrunedNetwork:
        """Return a plan's network as its sketch is, if that is closer than the cut alone."""
        rough = self.rough(plan)
        if self.repair is None:
            return rough
        before, after = self.divergence(rough.rounded), self.divergence(sketch)
        notes = (f"{LATE}: the layers were refitted to few samples and rows",)
        step = RecoveryStep(self.repair.name, before, after, after <= before, notes)
        if not step.kept:
            return replace(rough, steps=(step,), divergence=before)
        return PrunedNetwork(sketch, sketch, self.values, (step,), after)

    def rough(self, plan: Plan) -> PrunedNetwork:
        """Return a plan's network cut and rounded, each value by itself, and no more."""
        return self._rounded(apply(self.model, plan), (), ())

    def trained(
        self, made: PrunedNetwork, plan: Plan, training: Recovery
    ) -> tuple[PrunedNetwork | None, RecoveryStep]:
        """Return a built network trained further, None if that brought nothing; and what it did."""
        network, step = self._improved(made.exact, training, plan, self.fitted)
        return self._rounded(
            network, (*made.steps[:1], step), self.fitted
        ) if step.kept else None, step

    def _rounded(
        self, network: nn.Module, steps: tuple[RecoveryStep, ...], fitted: Sequence[RawBatch]
    ) -> PrunedNetwork:
        before = None
        if steps:
            before = steps[-1].after if steps[-1].kept else steps[-1].before
        if self.values == "float32":
            return PrunedNetwork(network, network, self.values, steps, before, self.metadata)
        rounded, after = duplicate(network), None
        round_(rounded, self.values, fitted, self.progress)
        if before is not None and self.values in LARGEST:
            name, after = f"rounding to {self.values}", self.divergence(rounded)
            steps = (*steps, RecoveryStep(name, before, after, kept=True))
        return PrunedNetwork(network, rounded, self.values, steps, after, self.metadata)

    def _improved(
        self, network: nn.Module, recover: Recovery, plan: Plan, batches: Sequence[RawBatch]
    ) -> tuple[nn.Module, RecoveryStep]:
        """Return the network recovered, or as it is if that is closer to the dense one."""
        before = self.divergence(network)
        try:
            made = recover(network, self.model, plan, batches, self.progress)
        except OutOfTimeError as error:
            return network, RecoveryStep(recover.name, before, before, False, (str(error),))
        after = self.divergence(made.model)
        kept = after <= before and not (made.training and made.training.best == 0)
        step = RecoveryStep(made.name, before, after, kept, made.notes)
        return (made.model if kept else network), step
