"""A plan's network: cut, repaired where that helps, trained if asked, and rounded."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from flexrel.core.batches import RawBatch
from flexrel.core.evaluate import Divergence
from flexrel.core.measurement import Progress, RecoveryStep
from flexrel.core.plan import Plan
from flexrel.core.precision import LARGEST, Values
from flexrel.core.running import duplicate
from flexrel.io import encode
from flexrel.repair import RepairResult, round_
from flexrel.structure import apply

Recover = Callable[..., RepairResult]  # a Recovery that has its calibration data already


@dataclass(frozen=True, slots=True, eq=False)
class PrunedNetwork:
    """What became of a network that was cut."""

    exact: nn.Module  # in full precision
    rounded: nn.Module  # as its packed file will hold it
    steps: tuple[RecoveryStep, ...]


@dataclass(slots=True)
class NetworkBuilder:
    """Makes the networks of one dense network's plans."""

    model: nn.Module
    values: Values
    divergence: Divergence
    progress: Progress
    repair: Recover | None = None  # of every network
    fitted: Sequence[RawBatch] = ()  # calibration data to round on; without, to the nearest
    _last: tuple[bytes, PrunedNetwork] | None = (
        None  # a repair takes long, and is often asked for again
    )

    def network(self, plan: Plan) -> nn.Module:
        """Return a plan's network, repaired, with the values that its packed file will hold."""
        if self.repair is None:  # then it is quickly made
            return self.unrepaired(plan)
        return duplicate(self.made(plan).rounded)

    def unrepaired(self, plan: Plan) -> nn.Module:
        """Return a plan's network cut and rounded, each value by itself, and no more."""
        network = apply(self.model, plan)
        round_(network, self.values)
        return network

    def made(self, plan: Plan) -> PrunedNetwork:
        """Return a plan's network, repaired where that helps, and what it took."""
        digest = hashlib.sha256(b"".join(mask.numpy().tobytes() for mask in plan.masks.values()))
        key = digest.digest()
        if self._last is None or self._last[0] != key:
            network, steps = apply(self.model, plan), list[RecoveryStep]()
            if self.repair is not None:
                network, step = self._improved(network, self.repair, plan)
                steps.append(step)
            self._last = key, self._rounded(network, *steps)
        return self._last[1]

    def trained(self, plan: Plan, training: Recover) -> PrunedNetwork | RecoveryStep:
        """Return a plan's network trained further; what was tried if that brought nothing."""
        made = self.made(plan)
        network, step = self._improved(made.exact, training, plan)
        if not step.kept:
            return step
        return self._rounded(network, *made.steps[:1], step)

    def size(self, network: nn.Module) -> int:
        """Return how many bytes the network's packed file has."""
        return len(encode(network, self.values))

    def _rounded(self, network: nn.Module, *steps: RecoveryStep) -> PrunedNetwork:
        """Return the network as its file will hold it, and what rounding did where it is coarse."""
        rounded = duplicate(network)
        round_(rounded, self.values, self.fitted, self.progress)
        if steps and self.values in LARGEST:
            last = steps[-1]
            before = last.after if last.kept else last.before
            name, after = f"rounding to {self.values}", self.divergence(rounded)
            steps = (*steps, RecoveryStep(name, before, after, kept=True))
        return PrunedNetwork(network, rounded, steps)

    def _improved(
        self, network: nn.Module, recover: Recover, plan: Plan
    ) -> tuple[nn.Module, RecoveryStep]:
        """Return the network recovered, or as it is if that is closer to the dense one."""
        made = recover(pruned=network, dense=self.model, plan=plan, progress=self.progress)
        before, after = self.divergence(network), self.divergence(made.model)
        kept = made.training.best > 0 if made.training else after <= before
        step = RecoveryStep(made.name, before, after, kept, made.notes)
        return (made.model if kept else network), step
