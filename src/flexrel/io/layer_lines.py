"""What each layer of a network lost, as a table and as a row of bars shows it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from flexrel.core.layer_costs import REST
from flexrel.io.figures import change, percent
from flexrel.io.scales import Box

_WIDTH, _HEIGHT = 560, 170
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 4, 18, 24  # margins
_NUMBERED: Final = 24  # layers that have room for their numbers
_GAP: Final = 0.16  # of a bar's room
_REST: Final = "norms, the file's index, and products without weights"


@dataclass(frozen=True, slots=True)
class LayerLine:
    """One layer, in words.

    Attributes:
        number: from 1; 0 of what is no layer's.
        name: of the layer.
        outputs: how many it has: "24 → 14".
        lost: share of its weights that is gone or zero, in words.
        weights: how many.
        macs: multiply-adds.
        bytes: in the packed file.
        reason: why its outputs all stay, or "".
    """

    number: int
    name: str
    outputs: str
    lost: str
    weights: str
    macs: str
    bytes: str
    reason: str

    @property
    def told(self) -> str:
        """It in a line."""
        parts = [f"{self.number}. {self.name}", f"{self.lost} of its weights lost"]
        parts += [f"outputs {self.outputs}"]
        parts += [f"multiply-adds {self.macs}", f"bytes {self.bytes}"]
        parts += [f"outputs stay: {self.reason}"] if self.reason else []
        return "; ".join(parts)


@dataclass(frozen=True, slots=True)
class Bar:
    """A layer as a bar: its room, and from the bottom up what it lost."""

    x: float
    width: float
    lost: float  # height
    stays: bool  # its outputs all stay
    row: LayerLine


@dataclass(frozen=True, slots=True)
class LayerBars(Box):
    """All that is drawn in the box."""

    bars: tuple[Bar, ...]
    numbered: bool


def layer_lines(layers: Sequence[Mapping[str, Any]]) -> tuple[LayerLine, ...]:
    """Return the layers of a record, in the order of the network, and last what is no layer's."""
    return tuple(_line(0 if one["name"] == REST else at, one) for at, one in enumerate(layers, 1))


def _line(number: int, one: Mapping[str, Any]) -> LayerLine:
    alone = not number
    return LayerLine(
        number,
        _REST if alone else one["name"],
        "" if alone else change(one["width_dense"], one["width"]),
        "" if alone else percent(_lost(one)),
        "" if alone else change(one["weights_dense"], one["weights"]),
        change(one["macs_dense"], one["macs"]),
        change(one["bytes_dense"], one["bytes"]),
        one["reason"],
    )


def _lost(one: Mapping[str, Any]) -> float:
    return 1.0 - float(one["weights"] / one["weights_dense"])


def layer_bars(layers: Sequence[Mapping[str, Any]], rows: Sequence[LayerLine]) -> LayerBars:
    """Return the geometry of a bar for each layer.

    Args:
        layers: of the record.
        rows: of these.
    """
    shown = [pair for pair in zip(layers, rows, strict=True) if pair[1].number]
    room = (_WIDTH - _LEFT - _RIGHT) / max(1, len(shown))
    tall = _HEIGHT - _TOP - _BOTTOM
    bars = tuple(
        Bar(
            x=round(_LEFT + at * room + _GAP * room / 2, 2),
            width=round((1 - _GAP) * room, 2),
            lost=round(tall * _lost(one), 1),
            stays=bool(one["reason"]),
            row=row,
        )
        for at, (one, row) in enumerate(shown)
    )
    return LayerBars(
        width=_WIDTH,
        height=_HEIGHT,
        left=_LEFT,
        right=_WIDTH - _RIGHT,
        top=_TOP,
        bottom=_HEIGHT - _BOTTOM,
        bars=bars,
        numbered=len(bars) <= _NUMBERED,
    )
