"""A budget on latency, bound to one network: what its layers take, and what a cut really takes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from torch import nn

from flexrel.core.batches import Batch
from flexrel.core.graph import PruningGraph
from flexrel.core.latency import Latency, Timing
from flexrel.core.latency_model import LatencyModel
from flexrel.core.measurement import Progress
from flexrel.core.plan import Plan
from flexrel.core.resources import BoundBudget
from flexrel.core.running import fingerprint
from flexrel.criteria import Ranking
from flexrel.io import (
    DENSE,
    DeviceProfile,
    LayerPoint,
    dense_time,
    layer_times,
    network_times,
    timed_file,
)
from flexrel.pruning.bisection import least_removal
from flexrel.pruning.even import profiled_cuts
from flexrel.pruning.width_grid import (
    LayerWidths,
    Times,
    fast_multiples,
    grid_points,
    half_points,
    tables,
)
from flexrel.structure import apply

_MARGIN: Final = 1.01  # times what was measured, that another measurement keeps to the limit too
_CLOSE: Final = 0.95  # of the limit: not worth another measurement
_ROUNDS: Final = 2  # of learning what cuts of the network really save


@dataclass(frozen=True, slots=True, eq=False)
class Clock:
    """Tells how long cuts of one network take: expected without making them, and really.

    Attributes:
        budget: asked for.
        model: what is expected.
        dense: the dense network's file.
        example: a batch that the network is timed on.
        profile: of another device, if that is meant: nothing can be timed then.
    """

    budget: Latency
    model: LatencyModel
    dense: bytes
    example: Batch
    profile: DeviceProfile | None = None

    @property
    def bound(self) -> BoundBudget:
        """The budget, counted by what is expected."""
        return self.budget.bound(self.model)

    @property
    def limit(self) -> float:
        """The milliseconds that the model may expect at most."""
        return self.budget.limit(self.model.dense)

    def timed(self, network: nn.Module, plan: Plan) -> Timing:
        """Return how long a plan's network takes, measured in a process of its own.

        Of another device it is what is expected.
        """
        expected = self.model.milliseconds(plan.graph, plan.masks)
        predicted = expected / self.model.dense
        if (there := self.profile) is not None:
            calls = there.version, there.batch, there.threads
            times = expected, self.model.dense, predicted
            return Timing("onnxruntime", *calls, *times, there.machine)
        return network_times(network, self.dense, self.example, self.budget, predicted)

    def close(self, timing: Timing) -> bool:
        """Return whether what was measured keeps to the limit and leaves hardly any room."""
        limit = self.budget.limit(timing.dense)
        return _CLOSE * limit <= timing.milliseconds <= limit

    def corrected(self, plan: Plan, timing: Timing) -> "Clock":
        """Return the clock that expects of a plan what was measured, and a little more."""
        measured = timing.milliseconds
        if self.budget.share is not None:
            measured = timing.share * self.model.dense
        model = self.model.corrected(plan.graph, plan.masks, _MARGIN * measured)
        return replace(self, model=model)

    def settled(self, timing: Timing) -> "Clock":
        """Return the clock in the milliseconds of a measurement, where a share is asked for.

        Machines are busier at one time than at another; of the dense network both know the time.
        """
        if self.budget.share is None:
            return self
        return replace(self, model=self.model.scaled(timing.dense / self.model.dense))

    def least(self, ranking: Ranking) -> int | None:
        """Return the least number of units to remove to be expected within the limit, if any."""

        def expected(count: int) -> float:
            return self.model.milliseconds(ranking.graph, ranking.plan(count).masks)

        return least_removal(expected, self.limit, ranking.removable)

    def learnt(self, network: nn.Module, ranking: Ranking) -> "Clock":
        """Return the clock that has timed cuts of the network where the limit is.

        Args:
            network: that is cut.
            ranking: in which units go; none is repaired, as values make no difference to time.
        """
        clock = self
        for _ in range(_ROUNDS if self.profile is None else 0):
            count = clock.least(ranking)
            if count == 0:
                break
            plan = ranking.plan(ranking.removable if count is None else count)
            timing = clock.timed(apply(network, plan), plan)
            clock = clock.corrected(plan, timing)
            if clock.close(timing) or count is None:
                break
        return clock


@dataclass(frozen=True, slots=True, eq=False)
class LayerBench:
    """What measures a network's layers for a budget on latency.

    Attributes:
        budget: asked for.
        layers: of the network.
        milliseconds: of the dense network.
        dense: its file.
        example: a batch that it is timed on.
        progress: told of what is measured.
        profile: of another device, if that is meant.
    """

    budget: Latency
    layers: tuple[LayerWidths, ...]
    milliseconds: float
    dense: bytes
    example: Batch
    progress: Progress
    profile: DeviceProfile | None = None

    @staticmethod
    def of(
        budget: Latency,
        network: nn.Module,
        example: Batch,
        layers: tuple[LayerWidths, ...],
        progress: Progress,
    ) -> "LayerBench":
        """Return the bench of a network, which is timed as it came.

        Raises:
            UsageError: the profile of another device that is asked for is of something else.
            PackError: it is damaged.
        """
        if budget.profile:
            profile = DeviceProfile.load(budget.profile)
            profile.check(budget, fingerprint(network))
            took = profile.networks[DENSE]
            return LayerBench(budget, layers, took, b"", example, progress, profile)
        told = f"timing in {budget.runtime}"
        progress(told, 0, 1)
        dense = timed_file(network, example, budget)
        milliseconds = dense_time(dense, example, budget)
        progress(told, 1, 1)
        return LayerBench(budget, layers, milliseconds, dense, example, progress)

    def multiples(self) -> tuple[int, ...]:
        """Return the multiples that widths may be of, the fastest first, then less and less."""
        return fast_multiples(self.layers, self._times(list(half_points(self.layers))))

    def clock(self, multiple: int, graph: PruningGraph) -> Clock:
        """Return the clock for widths that are multiples of a number.

        Args:
            multiple: of widths.
            graph: of the network, whose cuts another device may have timed.
        """
        times = self._times(list(grid_points(self.layers, multiple)))
        model = LatencyModel(self.milliseconds, tables(self.layers, times, multiple))
        for plan, measured in () if self.profile is None else profiled_cuts(graph, self.profile):
            model = model.corrected(plan.graph, plan.masks, measured)
        return Clock(self.budget, model, self.dense, self.example, self.profile)

    def _times(self, points: Sequence[LayerPoint]) -> Times:
        if self.profile is not None:
            return self.profile.times(points)
        told = f"timing {len(set(points)):,} widths of layers"
        self.progress(told, 0, 1)
        times = layer_times(points, self.budget)
        self.progress(told, 1, 1)
        return times
