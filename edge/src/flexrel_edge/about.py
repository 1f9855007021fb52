"""What a packed file says of its network to a person: inputs, accuracy, what went, the graph."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from flexrel_edge.errors import PackError
from flexrel_edge.format import Contents, Reader, joined
from flexrel_edge.graph import EVIDENCE, GRAPH_TEXTS, INPUTS, LABELS, LOADED, graph_in
from flexrel_edge.index import encode_index
from flexrel_edge.source import InMemory

_LONG: Final = 200  # characters of a text, of which more would fill the terminal
_SHOWN: Final = 10  # entries of a list
_DIGITS: Final = 18  # of a whole number
_AMOUNTS: Final = {"macs": "MACs", "parameters": "parameters"}


def annotated(data: bytes, notes: Mapping[str, str | None]) -> bytes:
    """Return a packed file, not signed, with other texts in its metadata.

    Args:
        data: the whole file.
        notes: by key; one that is there already is replaced, or by None left out.

    Raises:
        PackError: the file is damaged, its tensors' own bytes apart.
    """
    reader = Reader(InMemory(data))
    texts = {**reader.contents.metadata, **notes}
    metadata = {key: text for key, text in texts.items() if text is not None}
    index = encode_index(reader.contents.tensors, metadata)
    return joined(index, [data[reader.header.start + reader.header.index :]])


def about(contents: Contents) -> list[tuple[str, str]]:
    """Return what a file says of its network, line by line: of what, and what.

    A text that is not as `flexrel` writes it is told as it is. All is printable.
    """
    metadata = contents.metadata
    lines: list[tuple[str, str]] = []
    for key, tell in (
        (INPUTS, _inputs),
        ("preprocessing", _preparation),
        (LABELS, _labels),
        (EVIDENCE, _evidence),
    ):
        if key in metadata:
            try:
                lines += tell(json.loads(metadata[key], parse_int=_whole))
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                lines.append((key, metadata[key]))
    told = {INPUTS, "preprocessing", LABELS, EVIDENCE} | LOADED | GRAPH_TEXTS
    lines += [(key, text) for key, text in metadata.items() if key not in told]
    lines.append(("graph", _graph(contents)))
    if metadata.get("form") == "exported":
        lines.append(("form", "an exported program; model.pt2 beside it has its code"))
    return [(_short(printable(name)), _short(printable(text))) for name, text in lines]


def printable(text: str) -> str:
    """Keep what a file says from moving the cursor or breaking the line."""
    return text if text.isprintable() else ascii(text)


def _short(text: str) -> str:
    return text if len(text) <= _LONG else f"{text[:_LONG]}... ({len(text):,} characters)"


def _whole(text: str) -> int:
    if len(text) > _DIGITS:
        raise ValueError("a number that is no amount")
    return int(text)


def _listed(parts: Sequence[str]) -> str:
    more = len(parts) - _SHOWN
    return ", ".join(parts[:_SHOWN]) + (f" and {more:,} more" if more > 0 else "")


def _inputs(found: Any) -> list[tuple[str, str]]:  # noqa: ANN401
    lines = []
    for one in found:
        sizes = ("samples" if size is None else f"{size:d}" for size in one["shape"])
        lines.append(("input", f"{one['name']} {one['dtype']}[{', '.join(sizes)}]"))
    return lines


def _preparation(found: Any) -> list[tuple[str, str]]:  # noqa: ANN401
    told = (f"{name} {_plain(value)}" for name, value in found.items() if value is not None)
    return [("prepared", ", ".join(told))]


def _plain(value: Any) -> str:  # noqa: ANN401
    if isinstance(value, list):
        return " ".join(f"{number:.4g}" for number in value)
    return str(value)


def _labels(found: Any) -> list[tuple[str, str]]:  # noqa: ANN401
    if not isinstance(found, list):
        raise TypeError("no list of labels")
    return [("labels", f"{len(found):,}: {_listed([str(one) for one in found])}")]


def _evidence(found: Any) -> list[tuple[str, str]]:  # noqa: ANN401
    lines = []
    if "accuracy" in found:
        before, now = found["accuracy"]
        samples = f", on {found['samples']:,} samples" if "samples" in found else ""
        lines.append(("accuracy", f"{before:.2%} -> {now:.2%}{samples}"))
    for name, (before, now) in found.get("metrics", {}).items():
        lines.append((name, f"{before:.4g} -> {now:.4g}"))
    for key, name in _AMOUNTS.items():
        if key in found:
            before, now = found[key]
            share = f" ({now / before:.2%} of dense)" if before and math.isfinite(now) else ""
            lines.append((name, f"{before:,} -> {now:,}{share}"))
    if "weights_removed" in found:
        lines.append(("weights", f"{found['weights_removed']:.2%} are gone or zero"))
    widths = found.get("widths", {})
    for name, (dense, now) in [*widths.items()][:_SHOWN]:
        lines.append(("narrower", f"{name} {dense:,} -> {now:,}"))
    if len(widths) > _SHOWN:
        lines.append(("narrower", f"and {len(widths) - _SHOWN:,} more layers; --json has all"))
    return lines


def _graph(contents: Contents) -> str:
    """Say whether there is a graph, and how many samples it takes."""
    if not GRAPH_TEXTS & contents.metadata.keys():
        return "none; weights alone, for flexrel.load or flexrel-edge unpack"
    try:
        graph = graph_in(contents)
    except PackError as error:
        return str(error)
    samples = "any number of" if graph.samples is None else f"{graph.samples:,}"
    tells = "; it can tell what layers take in" if graph.taps else ""
    return f"ONNX, of {samples} samples a call{tells}"
