"""Which widths of a network's layers are measured, and what multiples of widths are fast."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import floor, gcd
from typing import Final

from flexrel.core.graph import PruningGraph
from flexrel.core.latency_model import LayerWork, WidthTable
from flexrel.criteria import fitting_multiple
from flexrel.io import LayerPoint

MULTIPLES: Final = (1, 4, 8, 16)  # of which widths may be
_SHARES: Final = (1 / 8, 3 / 8, 5 / 8)  # of a width, that are measured beside the whole
Times = Mapping[LayerPoint, float]  # milliseconds


@dataclass(frozen=True, slots=True)
class LayerWidths:
    """A call of a layer.

    Attributes:
        work: the call.
        outputs: of its weight, as the weight has them.
        inputs: likewise.
        shrinks: which of the two may shrink.
        halved: whether multiples are halved for widths of less than two, as in `UnitRanking`.
    """

    work: LayerWork
    outputs: int
    inputs: int
    shrinks: tuple[bool, bool]
    halved: bool = True

    @property
    def group(self) -> int:
        """Of a grouped convolution, how many of what shrinks one of its groups has; else 1."""
        whole = self.inputs if self.work.turned else self.outputs
        return max(whole // self.work.kind.groups, 1) if self.work.kind.groups > 1 else 1

    def point(self, outputs: int, inputs: int) -> LayerPoint:
        """Return the layer at some widths; a grouped convolution has as many groups less."""
        kind = self.work.kind
        whole = inputs if self.work.turned else outputs
        groups = whole // self.group if kind.groups > 1 else 1
        return LayerPoint(kind, max(groups, 1), outputs, inputs)

    def grid(self, multiple: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the outputs and the inputs to be measured, the whole ones last."""
        return self._axis(self.outputs, multiple, 0), self._axis(self.inputs, multiple, 1)

    def _axis(self, width: int, multiple: int, axis: int) -> tuple[int, ...]:
        if not self.shrinks[axis]:
            return (width,)
        step = self._step(multiple, width)
        found = {near(share * width, step) for share in _SHARES}
        return (*sorted(one for one in found if one < width), width)

    def half(self, multiple: int) -> tuple[int, int]:
        """Return outputs and inputs, each about halved where it may shrink."""
        widths = zip((self.outputs, self.inputs), self.shrinks, strict=True)
        outputs, inputs = (
            min(near(width / 2, self._step(multiple, width)), width) if shrinks else width
            for width, shrinks in widths
        )
        return outputs, inputs

    def _step(self, multiple: int, width: int) -> int:
        if self.halved:
            multiple = fitting_multiple(multiple, width)
        return multiple * self.group // gcd(multiple, self.group)


def near(width: float, multiple: int) -> int:
    """Return the odd multiple next to a width, of two the wider: no multiple of twice as much."""
    return (2 * max(floor(width / multiple / 2), 0) + 1) * multiple


def layer_widths(
    works: Sequence[LayerWork], graph: PruningGraph, *, halved: bool = True
) -> tuple[LayerWidths, ...]:
    """Return the widths of each call of a layer, and which of them units of the groups make."""
    cut = {(member.tensor, member.axis) for group in graph.groups for member in group.members}

    def widths(work: LayerWork) -> LayerWidths:
        outputs, inputs = work.widths(graph.shapes[work.weight])
        made, read = (1, 0) if work.turned else (0, 1)
        shrinks = ((work.weight, made) in cut, (work.weight, read) in cut)
        if work.kind.groups > 1:  # whole groups go, which one axis of the weight counts
            shrinks = (shrinks[0] and not work.turned, shrinks[1] and work.turned)
        return LayerWidths(work, outputs, inputs, shrinks, halved)

    return tuple(widths(work) for work in works)


def half_points(layers: Sequence[LayerWidths]) -> Iterator[LayerPoint]:
    """Yield what tells which multiples are fast: all layers whole, and about halved to each."""
    for one in layers:
        yield one.point(one.outputs, one.inputs)
        for multiple in MULTIPLES:
            yield one.point(*one.half(multiple))


def fast_multiples(layers: Sequence[LayerWidths], times: Times) -> tuple[int, ...]:
    """Return the multiple that saves most time by the multiply-add, of `half_points`, then less.

    Of multiples that save about the same the least comes first: it leaves most choice.
    """
    gains: dict[int, float] = {}
    for multiple in MULTIPLES:
        saved = ideal = 0.0
        for one in layers:
            outputs, inputs = one.half(multiple)
            whole = times[one.point(one.outputs, one.inputs)]
            saved += whole - times[one.point(outputs, inputs)]
            ideal += whole * (1 - outputs * inputs / (one.outputs * one.inputs))
        if ideal > 0:
            gains[multiple] = round(saved / ideal, 1)
    best = min(gains, key=lambda multiple: (-gains[multiple], multiple), default=1)
    return tuple(multiple for multiple in reversed(MULTIPLES) if multiple <= best)


def grid_points(layers: Sequence[LayerWidths], multiple: int) -> Iterator[LayerPoint]:
    """Yield each layer at each of its widths that are measured."""
    for one in layers:
        outputs, inputs = one.grid(multiple)
        yield from (one.point(out, into) for out in outputs for into in inputs)


def tables(
    layers: Sequence[LayerWidths], times: Times, multiple: int
) -> tuple[tuple[LayerWork, WidthTable], ...]:
    """Return the table of each call of a layer, of `grid_points`."""
    found = []
    for one in layers:
        outputs, inputs = one.grid(multiple)
        rows = [[times[one.point(out, into)] for into in inputs] for out in outputs]
        found.append((one.work, WidthTable.of(outputs, inputs, rows)))
    return tuple(found)
