"""How long a cut network is expected to take: a table of times a layer, and what all took.

A layer's time is interpolated between widths that were measured. Of networks as a whole the dense
one was measured, and of what the tables promise to save, how much a cut one really saved: layers
alone are not the network, whose runtime joins some and spends time between them.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Final

import torch
from jaxtyping import Bool
from torch import Tensor

from flexrel.core.cost import Cost, macs, shapes_left, unit_macs
from flexrel.core.graph import Masks, PruningGraph

_NANOSECONDS: Final = 10**6  # of a millisecond
_LEAST: Final = 0.1  # of what a unit's multiply-adds take on the average: noise may hide it


@dataclass(frozen=True, slots=True)
class LayerKind:
    """All that a layer's time depends on but its widths.

    Attributes:
        kernel: size of a convolution's along each axis; () for a linear layer.
        stride: along each axis.
        padding: before and after, likewise.
        dilation: likewise.
        size: of one sample's input: of its spatial axes, or those that a linear layer runs over.
        groups: of a convolution.
        transposed: whether it is a transposed convolution.
        output_padding: of one, along each axis.
    """

    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    dilation: tuple[int, ...] = ()
    size: tuple[int, ...] = ()
    groups: int = 1
    transposed: bool = False
    output_padding: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class LayerWork:
    """A call of a layer.

    Attributes:
        weight: the parameter.
        kind: all that its time depends on but its widths.
        turned: whether the weight is `[inputs, outputs]`, as that of a transposed convolution is.
    """

    weight: str
    kind: LayerKind
    turned: bool = False

    def widths(self, shape: Sequence[int]) -> tuple[int, int]:
        """Return outputs and inputs of a weight of this shape, as the weight has them."""
        return (shape[1], shape[0]) if self.turned else (shape[0], shape[1])


@dataclass(frozen=True, slots=True)
class WidthTable:
    """A layer's time at a grid of widths; between them it is interpolated.

    Attributes:
        outputs: that were measured, rising.
        inputs: likewise.
        times: in milliseconds, one row for each of the outputs. They never fall along either.
    """

    outputs: tuple[int, ...]
    inputs: tuple[int, ...]
    times: tuple[tuple[float, ...], ...]

    @staticmethod
    def of(
        outputs: tuple[int, ...], inputs: tuple[int, ...], times: Sequence[Sequence[float]]
    ) -> "WidthTable":
        """Return the table of measured times; one that is less than a narrower one's is that."""
        rows = [list(accumulate(row, max)) for row in times]
        columns = [list(accumulate(column, max)) for column in zip(*rows, strict=True)]
        return WidthTable(outputs, inputs, tuple(zip(*columns, strict=True)))

    def at(self, outputs: int, inputs: int) -> float:
        """Return the time at any widths; of less than the least that was measured, that one's."""
        low, high, share = _between(self.outputs, outputs)
        left, right, part = _between(self.inputs, inputs)
        above, below = self.times[low], self.times[high]
        first = (1 - part) * above[left] + part * above[right]
        second = (1 - part) * below[left] + part * below[right]
        return (1 - share) * first + share * second


def _between(known: Sequence[int], width: int) -> tuple[int, int, float]:
    """Return the places of the neighbours of a width, and where between them it lies."""
    high = min(max(bisect_right(known, width), 1), len(known) - 1)
    if high < 1:
        return 0, 0, 0.0
    low = high - 1
    share = (width - known[low]) / (known[high] - known[low])
    return low, high, min(max(share, 0.0), 1.0)


@dataclass(frozen=True, slots=True)
class LatencyModel:
    """What a call of a network takes, by the widths of its layers.

    Attributes:
        dense: milliseconds of the dense network, as a whole.
        layers: each call of a layer, with its table.
        cuts: of each cut network that was measured, how many milliseconds less its layers take by
            the tables, and how many it takes as a whole.
    """

    dense: float
    layers: tuple[tuple[LayerWork, WidthTable], ...]
    cuts: tuple[tuple[float, float], ...] = ()

    def milliseconds(self, graph: PruningGraph, masks: Masks) -> float:
        """Return the time of a call of the network that the masks leave."""
        return self._by_saving(self._saved(graph, masks))

    def corrected(self, graph: PruningGraph, masks: Masks, measured: float) -> "LatencyModel":
        """Return the model that knows what one cut network was measured to take."""
        saved = self._saved(graph, masks)
        return replace(self, cuts=(*self.cuts, (saved, measured))) if saved > 0 else self

    def scaled(self, factor: float) -> "LatencyModel":
        """Return the model of a machine on which whole networks take so many times as long."""
        cuts = tuple((saved, factor * time) for saved, time in self.cuts)
        return replace(self, dense=factor * self.dense, cuts=cuts)

    def _saved(self, graph: PruningGraph, masks: Masks) -> float:
        return self._alone - self._in_layers(graph, masks)

    @property
    def _alone(self) -> float:
        """The milliseconds of all layers of the dense network, each by itself."""
        return sum(table.times[-1][-1] for _, table in self.layers)

    def _by_saving(self, saved: float) -> float:
        """Return the whole network's time where its layers take so much less.

        It lies on lines between the cuts that were measured; none is expected to take less than
        one that saves more. Beyond the last, and before any was measured, the whole shrinks as it
        did until then, or as its layers do.
        """
        known = sorted(self.cuts)
        most = list(accumulate((time for _, time in reversed(known)), max))[::-1]
        places = [0.0, *(place for place, _ in known)]
        times = [self.dense, *(min(time, self.dense) for time in most)]
        if saved >= places[-1]:
            gain = (
                (self.dense - times[-1]) / places[-1]
                if known
                else self.dense / (self._alone or 1.0)
            )
            return self.dense - gain * saved
        at = bisect_right(places, saved)
        share = (saved - places[at - 1]) / (places[at] - places[at - 1])
        return times[at - 1] + share * (times[at] - times[at - 1])

    def unit_costs(self, graph: PruningGraph) -> dict[str, Cost]:
        """Return the nanoseconds that go with one unit of each group: the mean of half of them.

        Of blocks, which differ, it is one number a unit.
        """
        whole = {g.name: torch.ones(g.units, dtype=torch.bool) for g in graph.groups}
        dense = self._alone
        rate = _LEAST * dense / max(macs(graph), 1)  # milliseconds a multiply-add, at the least
        least = {name: rate * torch.as_tensor(cost) for name, cost in unit_macs(graph).items()}

        def saved(name: str, keep: Bool[Tensor, "units"]) -> float:
            left = self._in_layers(graph, {**whole, name: keep})
            return (dense - left) / max(int((~keep).sum()), 1)

        found: dict[str, Cost] = {}
        for group in graph.groups:
            places = torch.arange(group.units)
            kept = [places != at for at in places] if group.blocks else [places >= group.units // 2]
            times = torch.tensor([saved(group.name, keep) for keep in kept])
            costs = _NANOSECONDS * times.clamp_min(least[group.name])
            found[group.name] = costs if group.blocks else float(costs)
        return found

    def _in_layers(self, graph: PruningGraph, masks: Masks) -> float:
        """Return the milliseconds of all layers, each by itself."""
        shapes = shapes_left(graph, masks)
        return sum(
            table.at(*work.widths(shapes[work.weight]))
            for work, table in self.layers
            if work.weight in shapes
        )
