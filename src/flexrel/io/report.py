"""Records in, one HTML page out: no script, no font, no picture from elsewhere."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from flexrel.core.granularity import Pattern

_WIDTH, _HEIGHT = 720, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 150, 16, 46  # margins; the legend stands on the right
_TICKS = 5


def render(result: Mapping[str, Any], plan: Mapping[str, Any]) -> str:
    """Return the report of a result as a self-contained page.

    Args:
        result: content of `result.json`.
        plan: content of `plan.json`.
    """
    pages = Environment(
        loader=PackageLoader("flexrel.io", "."),
        autoescape=select_autoescape(["html", "j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters |= {
        "percent": percent,
        "size": size,
        "count": count,
        "figure": figure,
        "amount": amount,
    }
    curves = [point for point in result["curves"] if point["accuracy"] is not None]
    return pages.get_template("report.html.j2").render(
        result=result,
        plan=plan,
        pattern=Pattern.of(result["granularity"]),
        chart=chart(curves, result["achieved"]) if curves else None,
    )


def percent(share: float | None) -> str:
    """Return a share in [0, 1] as a percentage, "not measured" for None."""
    return "not measured" if share is None else f"{100 * share:.2f} %"


def size(number: float | None) -> str:
    """Return bytes as a person reads them."""
    if number is None:
        return ""
    for unit, factor in (("MB", 10**6), ("kB", 10**3)):
        if number >= factor:
            return f"{number / factor:,.2f} {unit}"
    return f"{number:,.0f} B"


def _round_size(number: float) -> str:
    """Return a round number of bytes without decimals that say nothing: "25 kB"."""
    for unit, factor in (("MB", 10**6), ("kB", 10**3)):
        if number >= factor:
            return f"{number / factor:g} {unit}"
    return f"{number:g}"


def count(number: float | None) -> str:
    """Return a whole number with separators, "" for None."""
    return "" if number is None else f"{number:,.0f}"


def amount(number: float | None) -> str:
    """Return whole numbers with separators, others with four digits, "" for None."""
    if number is None or number == int(number):
        return count(number)
    return figure(number)


def figure(number: float | None) -> str:
    """Return a number with four digits, "infinite" for None."""
    return "infinite" if number is None else f"{number:.4g}"


def chart(points: Sequence[Mapping[str, Any]], achieved: Mapping[str, Any]) -> dict[str, Any]:
    """Return the geometry of accuracy against bytes: lines, ticks, names, the result's mark.

    Args:
        points: measurements of several criteria, each with `criterion`, `bytes`, `accuracy`.
        achieved: the result's `bytes` and `accuracy`.
    """
    most = max(point["bytes"] for point in points)
    accuracies = [point["accuracy"] for point in points]
    low, high = min(accuracies), max(accuracies)
    pad = max(0.02, 0.05 * (high - low))
    low, high = max(0.0, low - pad), min(1.0, high + pad)

    def x(value: float) -> float:
        return round(_LEFT + (_WIDTH - _LEFT - _RIGHT) * value / (float(most) * 1.03), 1)

    def y(value: float) -> float:
        return float(round(_TOP + (_HEIGHT - _TOP - _BOTTOM) * (high - value) / (high - low), 1))

    lines = []
    for index, name in enumerate(dict.fromkeys(point["criterion"] for point in points)):
        own = sorted((p for p in points if p["criterion"] == name), key=lambda p: p["bytes"])
        dots = [{"x": x(p["bytes"]), "y": y(p["accuracy"]), "text": _tip(name, p)} for p in own]
        lines.append({"name": name, "index": index, "dots": dots})
    byte_step = _step(most)
    share_step = _step(high - low)
    byte_ticks = [i * byte_step for i in range(int(most / byte_step) + 1)]
    share_ticks = [
        i * share_step
        for i in range(math.ceil(low / share_step), math.floor(high / share_step) + 1)
    ]
    mark = None
    if achieved["accuracy"] is not None:
        mark = {"x": x(achieved["bytes"]), "y": y(min(max(achieved["accuracy"], low), high))}
    return {
        "width": _WIDTH,
        "height": _HEIGHT,
        "left": _LEFT,
        "right": _WIDTH - _RIGHT,
        "bottom": _HEIGHT - _BOTTOM,
        "lines": lines,
        "x_ticks": [{"at": x(value), "text": _round_size(value)} for value in byte_ticks],
        "y_ticks": [{"at": y(value), "text": f"{100 * value:.4g} %"} for value in share_ticks],
        "mark": mark,
    }


def _tip(name: str, point: Mapping[str, Any]) -> str:
    return f"{name}: {percent(point['accuracy'])} at {size(point['bytes'])}"


def _step(span: float) -> float:
    """Return a round distance between ticks, so that about five fit into the span."""
    rough = span / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * f for f in (1, 2, 2.5, 5, 10) if power * f >= rough)
