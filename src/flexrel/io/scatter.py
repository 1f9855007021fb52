"""The geometry of relevance against magnitude of the units of one layer."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from flexrel.core.plan import named
from flexrel.io.figures import count
from flexrel.io.scales import Box, Scale, Tick, step_of

_WIDTH, _HEIGHT = 420, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 12, 10, 44  # margins
_PAD: Final = 0.05  # of an axis
_NARROW: Final = 30.0  # times the lowest number: below that axes name more than powers of ten
_MOST: Final = 5  # numbers on an axis
_CROSS: Final = 3  # half of its width


@dataclass(frozen=True, slots=True)
class Scatter(Box):
    """All that is drawn in the box.

    Attributes:
        name: of the layer.
        told: what is to be seen, in a line.
        kept: path with a point for each unit that stays, which round ends make a dot of.
        gone: path with a cross for each unit that goes.
    """

    name: str
    told: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    kept: str
    gone: str


def scatter(scores: Mapping[str, Any]) -> Scatter:
    """Return the geometry of a layer's scores, as a record has them; both axes are logarithmic.

    A zero stands at the lowest number above it.
    """
    x, xs = _axis(scores["magnitude"], _LEFT, _WIDTH - _RIGHT)
    y, ys = _axis(scores["relevance"], _HEIGHT - _BOTTOM, _TOP)
    places = [(x.at(a), y.at(b)) for a, b in zip(xs, ys, strict=True)]
    stays = [mark == "1" for mark in scores["kept"]]
    kept = [f"M{a} {b}h0" for (a, b), stay in zip(places, stays, strict=True) if stay]
    wide = 2 * _CROSS
    gone = [
        f"M{a - _CROSS:.1f} {b - _CROSS:.1f}l{wide} {wide}m0-{wide}l-{wide} {wide}"
        for (a, b), stay in zip(places, stays, strict=True)
        if not stay
    ]
    units, shown = scores["units"], len(places)
    sample = "" if shown == units else f"; {count(shown)} of {count(units)} are drawn"
    return Scatter(
        name=named(scores["name"]),
        told=f"{count(len(kept))} {scores['unit']} stay, {count(len(gone))} go{sample}",
        width=_WIDTH,
        height=_HEIGHT,
        left=_LEFT,
        right=_WIDTH - _RIGHT,
        top=_TOP,
        bottom=_HEIGHT - _BOTTOM,
        x_ticks=_ticks(x),
        y_ticks=_ticks(y),
        kept="".join(kept),
        gone="".join(gone),
    )


def _axis(values: Sequence[float], start: float, end: float) -> tuple[Scale, list[float]]:
    """Return an axis of logarithms, and where values lie on it."""
    least = min((value for value in values if value > 0), default=1.0)
    logs = [math.log10(max(value, least)) for value in values]
    low, high = min(logs), max(logs)
    pad = _PAD * (high - low) or 0.5
    return Scale(low - pad, high + pad, start, end), logs


def _ticks(axis: Scale) -> tuple[Tick, ...]:
    """Return round numbers along an axis of logarithms, a few of them."""
    low, high = 10**axis.low, 10**axis.high
    if high < _NARROW * low:
        step = step_of(high - low)
        seen = [step * at for at in range(math.ceil(low / step), math.floor(high / step) + 1)]
    else:
        powers = range(math.ceil(axis.low), math.floor(axis.high) + 1)
        seen = [10.0**power for power in powers]
    every = -(-len(seen) // _MOST) or 1
    return tuple(Tick(axis.at(math.log10(one)), f"{one:.3g}") for one in seen[::every])
