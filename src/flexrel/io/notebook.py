"""A result as it shows itself: a few lines, a page for notebooks, a frame, a picture."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any, Final

from flexrel.core.evaluate import ACCURACY
from flexrel.core.extras import extra_module
from flexrel.core.plan import LayerRow
from flexrel.io.figures import amount, count, figure, granularities, percent

_EXTRA: Final = "notebook"
_LONG: Final = 100  # characters of a note in the few lines
_DENSE, _NOW = "#bbbbbb", "#0072b2"  # told apart whatever eyes one has
_WIDTH, _HEIGHT = 640, 90  # of the chart, in pixels
_INCHES: Final = 0.22  # of the picture, a layer


@dataclass(frozen=True, slots=True)
class ComparedAmount:
    """One amount of the dense network and of the pruned one, in words.

    Attributes:
        name: of what.
        dense: of the network as it came.
        now: of the pruned one.
        share: of dense that is left; "" where it says nothing.
    """

    name: str
    dense: str
    now: str
    share: str = ""


def compared(result: Mapping[str, Any]) -> list[ComparedAmount]:
    """Return how the dense network and the pruned one do, and what they take.

    Args:
        result: content of `result.json`.
    """
    done = result["achieved"]
    found = []
    if done["accuracy"] is not None:
        both = percent(done["accuracy_dense"]), percent(done["accuracy"])
        found.append(ComparedAmount(ACCURACY, *both))
    for name, value in done["metrics"].items():
        if name != ACCURACY:
            found.append(ComparedAmount(name, figure(done["metrics_dense"][name]), figure(value)))
    told = {"macs": "MACs", "latency_ms": "latency in ms"}
    dense_of = {"latency_ms": "latency_dense_ms"}
    known = ("parameters", "macs", "bytes", "latency_ms")
    others = [name for name in done if f"{name}_dense" in done and name not in _TOLD | {*known}]
    for name in (*known, *others):
        dense, now = done[dense_of.get(name, f"{name}_dense")], done[name]
        if dense is not None:
            share = percent(now / dense) if dense else ""
            found.append(ComparedAmount(told.get(name, name), amount(dense), amount(now), share))
    return found


_TOLD: Final = frozenset({"accuracy", "metrics", "weights_removed"})  # in other words


def as_text(result: Mapping[str, Any], asked: Sequence[str], layers: Sequence[LayerRow]) -> str:
    """Return a result in some ten lines.

    Args:
        result: content of `result.json`.
        asked: each limit, in words.
        layers: what the plan does to each.
    """
    lines = [
        ("asked", ", ".join(asked) or "nothing"),
        *(
            (one.name, f"{one.dense} -> {one.now}{one.share and f' ({one.share} of dense)'}")
            for one in compared(result)
        ),
        *([] if result["achieved"]["metrics"] else [(ACCURACY, "not measured: pass evaluate=")]),
        ("weights gone", percent(result["achieved"]["weights_removed"])),
        ("layers", _told_layers(layers)),
    ]
    if notes := result["warnings"]:
        lines.append(("warnings", f"{len(notes)}: {notes[0][:_LONG]}{_more(notes)}"))
    wide = max(len(name) for name, _ in lines)
    return "\n".join([_title(result), *(f"  {name:{wide}}  {text}" for name, text in lines)])


def _title(result: Mapping[str, Any]) -> str:
    return f"flexrel.Result: pruned by {result['criterion']}, {granularities(result)}"


def _more(notes: Sequence[str]) -> str:
    return " ..." if len(notes) > 1 or len(notes[0]) > _LONG else ""


def _told_layers(layers: Sequence[LayerRow]) -> str:
    smaller = sum(row.parameters < row.parameters_dense for row in layers)
    alone = sum(bool(row.reason) for row in layers)
    return f"{smaller} of {len(layers)} are smaller, {alone} left alone"


def as_html(result: Mapping[str, Any], asked: Sequence[str], layers: Sequence[LayerRow]) -> str:
    """Return a result as notebooks show it: a piece of HTML that needs nothing else.

    Args:
        result: content of `result.json`.
        asked: each limit, in words.
        layers: what the plan does to each.
    """
    amounts = [(one.name, one.dense, one.now, one.share) for one in compared(result)]
    rows = [
        (
            row.name,
            f"{row.width_dense:,} → {row.width:,}",
            f"{row.parameters_dense:,} → {row.parameters:,}",
            f"{row.macs_dense:,} → {row.macs:,}",
            count(row.bytes),
            row.reason,
        )
        for row in layers
    ]
    heads = ("layer", "width", "parameters", "MACs", "bytes", "left alone because")
    notes = "".join(f"<li>{escape(note)}</li>" for note in result["warnings"])
    return (
        f"<div><strong>{escape(_title(result))}</strong>"
        f"<p>Asked: {escape(', '.join(asked) or 'nothing')}</p>"
        f"{_table(('', 'dense', 'now', 'of dense'), amounts)}"
        f"{_chart(layers)}"
        f"<details><summary>{len(rows)} layers</summary>{_table(heads, rows)}</details>"
        f"{notes and f'<p>Warnings:</p><ul>{notes}</ul>'}</div>"
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in row)}</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _chart(layers: Sequence[LayerRow]) -> str:
    """Return a bar a layer, as high as the share of its parameters that is left."""
    shown = drawn(layers)
    step = _WIDTH / max(len(shown), 1)
    wide = max(step * 0.8, 0.5)
    bars = []
    for at, row in enumerate(shown):
        high = _HEIGHT * row.parameters / max(row.parameters_dense, 1)
        tip = f"{row.name}: {row.parameters:,} of {row.parameters_dense:,} parameters"
        place = f'x="{at * step:.1f}" width="{wide:.1f}"'
        bars.append(
            f"<g><title>{escape(tip)}</title>"
            f'<rect {place} y="0" height="{_HEIGHT}" fill="{_DENSE}" fill-opacity="0.4"/>'
            f'<rect {place} y="{_HEIGHT - high:.1f}" height="{high:.1f}" fill="{_NOW}"/></g>'
        )
    told = f"Share of parameters left in each of {len(shown)} layers, in the network's order"
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" '
        f'style="max-width:100%" role="img" aria-label="{told}">{"".join(bars)}</svg>'
        f"<p>{told}; grey: dense.</p>"
    )


def drawn(layers: Sequence[LayerRow]) -> list[LayerRow]:
    """Return the layers that multiply, which charts show; all, if none does."""
    return [row for row in layers if row.macs_dense] or list(layers)


def as_frame(layers: Sequence[LayerRow]) -> Any:  # noqa: ANN401 - a pandas.DataFrame
    """Return the layers as a `pandas.DataFrame`, one a row, with the fields of `LayerRow`.

    Raises:
        UsageError: pandas is not installed.
    """
    pandas = extra_module("pandas", _EXTRA, "a frame of layers")
    return pandas.DataFrame([asdict(row) for row in layers])


def as_axes(layers: Sequence[LayerRow], axes: Any = None) -> Any:  # noqa: ANN401 - matplotlib's
    """Return `matplotlib.axes.Axes` with the parameters of each layer, dense and now.

    Args:
        layers: to draw, the first on top.
        axes: to draw on; None: new ones, as high as the layers need.

    Raises:
        UsageError: matplotlib is not installed.
    """
    pyplot = extra_module("matplotlib.pyplot", _EXTRA, "a plot of layers")
    shown = drawn(layers)
    if axes is None:
        axes = pyplot.subplots(figsize=(7, 1 + _INCHES * len(shown)), layout="constrained")[1]
    names = [row.name for row in shown]
    axes.barh(names, [row.parameters_dense for row in shown], color=_DENSE, label="dense")
    axes.barh(names, [row.parameters for row in shown], color=_NOW, label="now")
    axes.invert_yaxis()
    axes.set_xlabel("parameters")
    axes.legend()
    return axes
