"""The geometry of accuracy against bytes: of a result, and of others where they were measured."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from flexrel.core.evaluate import standard_error
from flexrel.io.figures import percent, points, round_size, size
from flexrel.io.scales import Box, Scale, Tick, step_of

_WIDTH, _HEIGHT = 560, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 74, 14, 14, 46  # margins
_LEAST: Final = 0.01  # of accuracy, that the axis spans around what matters
_BELOW, _ABOVE = 0.35, 0.15  # spans around what matters
_FAR: Final = 2.0  # spans below it, to where the axis goes on if all points are there


@dataclass(frozen=True, slots=True)
class Dot:
    """A network that was measured."""

    x: float
    y: float
    high: float | None  # where the error bar ends; None: the error is not known
    low: float | None
    told: str
    command: str
    chosen: bool  # whether it is the result


@dataclass(frozen=True, slots=True)
class Curve:
    """Networks of one criterion, the smallest first, those too that are out of sight."""

    name: str
    index: int  # of its colour and shape
    line: str  # corners, as `points` of SVG has them
    dots: tuple[Dot, ...]  # in sight


@dataclass(frozen=True, slots=True)
class Mark:
    """A line at what was asked."""

    at: float
    told: str


@dataclass(frozen=True, slots=True)
class Frontier(Box):
    """All that is drawn in the box."""

    curves: tuple[Curve, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    target: Mark | None  # the accuracy asked for
    budget: Mark | None  # the bytes asked for
    hidden: int  # networks that are less accurate than what is in sight


@dataclass(frozen=True, slots=True)
class Measured:
    """A network that was measured, as it stands in a table and in the chart."""

    criterion: str
    bytes: int
    accuracy: float
    error: float | None  # one standard error
    removed: float  # share of units
    command: str = ""
    chosen: bool = False

    def told(self, units: str) -> str:
        """Say it in a line.

        Args:
            units: their name.
        """
        error = "" if self.error is None else f" ± {points(self.error)}"
        own = "this result, " if self.chosen else ""
        removed = f"{percent(self.removed)} of {units} removed" if self.removed else "nothing gone"
        return (
            f"{own}{self.criterion}: accuracy {percent(self.accuracy)}{error}, "
            f"{size(self.bytes)}, {removed}"
        )


def measured_networks(result: Mapping[str, Any]) -> tuple[Measured, ...]:
    """Return the networks of a record whose accuracy is known, by criterion and bytes.

    Of each criterion the dense network stands at its end; the result is among those of its own.
    """
    achieved, samples = result["achieved"], result["achieved"]["samples"]
    deviation = achieved.get("accuracy_deviation")  # records of before have none
    if achieved["accuracy"] is None:
        return ()
    dense = {"removed": 0.0, "accuracy": achieved["accuracy_dense"]}
    dense |= {"bytes": achieved["bytes_dense"], "criterion": result["criterion"]}
    own = {"removed": achieved["sparsity"], "accuracy": achieved["accuracy"]}
    own |= {"bytes": achieved["bytes"], "criterion": result["criterion"]}
    drawn = {point["criterion"] for point in result["curves"]}
    others = [*result["curves"], *result["rivals"]]
    others += [] if result["criterion"] in drawn else [dense]
    found = []
    for point in (*others, own):
        if point["accuracy"] is None:
            continue
        chosen = point is own
        found.append(
            Measured(
                point["criterion"],
                point["bytes"],
                point["accuracy"],
                None if samples is None else standard_error(point["accuracy"], samples, deviation),
                point["removed"],
                "" if chosen or not point["removed"] else _command(result, point),
                chosen,
            )
        )
    names = list(dict.fromkeys(one.criterion for one in found))
    return tuple(sorted(found, key=lambda one: (names.index(one.criterion), one.bytes)))


def _command(result: Mapping[str, Any], point: Mapping[str, Any]) -> str:
    """Return what makes such a network, as it is typed."""
    asked = f"bytes={point['bytes']}"
    if result["origin"] is None:
        return (
            f"flexrel.prune(model, calibration=data, criterion={point['criterion']!r}, "
            f"granularity={result['granularity']!r}, budgets=[{asked!r}])"
        )
    words = [*result["origin"]["again"], "--criterion", point["criterion"], "--budget", asked]
    return shown_words([*words, "--out", f"pruned-{point['bytes']}"])


def shown_words(words: Iterable[str]) -> str:
    """Return the words of a command as they are typed into a shell."""
    return shlex.join(words)


def frontier(
    networks: Sequence[Measured], dense: float, asked: Mapping[str, Any], units: str
) -> Frontier:
    """Return the geometry of accuracy against bytes.

    The axis of accuracy spans the dense network, the result and what was asked; what is far below
    is cut off and counted.

    Args:
        networks: one of them the result.
        dense: accuracy of the dense network.
        asked: the record's requested `accuracy` and `bytes`, None where nothing was.
        units: what is removed, in the plural.
    """
    (chosen,) = (one for one in networks if one.chosen)
    error = chosen.error or 0.0
    ends = max(0.0, chosen.accuracy - error), min(1.0, chosen.accuracy + error)
    matters = [dense, *ends, *filter(None, [asked["accuracy"]])]
    low, high = _span(matters, [one.accuracy for one in networks])
    seen = [one for one in networks if one.accuracy >= low]
    sizes = [one.bytes for one in seen] + [*filter(None, [asked["bytes"]])]
    pad = 0.04 * (max(sizes) - min(sizes)) or 0.1 * max(sizes)
    first, last = max(0.0, min(sizes) - pad), max(sizes) + pad
    x = Scale(first, last, _LEFT, _WIDTH - _RIGHT)
    y = Scale(low, high, _HEIGHT - _BOTTOM, _TOP)
    curves = []
    for index, name in enumerate(dict.fromkeys(one.criterion for one in networks)):
        own = [one for one in networks if one.criterion == name]
        line = " ".join(f"{x.at(one.bytes)},{y.at(one.accuracy)}" for one in own)
        dots = tuple(_dot(one, x, y, units) for one in own if one in seen)
        curves.append(Curve(name, index, line, dots))
    target = budget = None
    if asked["accuracy"] is not None:
        target = Mark(y.at(asked["accuracy"]), f"asked: at least {percent(asked['accuracy'])}")
    if asked["bytes"] is not None:
        budget = Mark(x.at(asked["bytes"]), f"asked: at most {size(asked['bytes'])}")
    return Frontier(
        width=_WIDTH,
        height=_HEIGHT,
        left=_LEFT,
        right=_WIDTH - _RIGHT,
        top=_TOP,
        bottom=_HEIGHT - _BOTTOM,
        curves=tuple(curves),
        x_ticks=x.ticks(step_of(last - first), round_size),
        y_ticks=y.ticks(step_of(high - low), lambda share: f"{100 * share:.4g} %"),
        target=target,
        budget=budget,
        hidden=len(networks) - len(seen),
    )


def _span(matters: Sequence[float], accuracies: Sequence[float]) -> tuple[float, float]:
    """Return where the axis of accuracy begins and ends."""
    low, high = min(matters), max(*matters, *accuracies)
    span = max(high - low, _LEAST)
    least = min(accuracies)
    start = least if least >= low - _FAR * span else low
    return max(0.0, start - _BELOW * span), min(1.0 + 0.1 * span, high + _ABOVE * span)


def _dot(one: Measured, x: Scale, y: Scale, units: str) -> Dot:
    high = low = None
    if one.error is not None:
        high, low = y.at(min(1.0, one.accuracy + one.error)), y.at(one.accuracy - one.error)
    at = x.at(one.bytes), y.at(one.accuracy)
    return Dot(*at, high, low, one.told(units), one.command, one.chosen)
