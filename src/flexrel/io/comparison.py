"""Two results of one network side by side: what they take, how they do, how wide layers are."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Final

from flexrel.core.evaluate import ACCURACY
from flexrel.core.granularity import Pattern
from flexrel.core.layer_costs import REST
from flexrel.errors import UsageError
from flexrel.io.figures import amount, count, figure, percent, points
from flexrel.io.pages import filled

Records = tuple[Mapping[str, Any], Mapping[str, Any]]

_TOLD: Final = {"macs": "multiply-adds", "bytes": "bytes of the file"}
_ALWAYS: Final = ("parameters", "macs", "bytes")
_NOT_COUNTED: Final = ("accuracy", "metrics", "weights_removed")  # that have rows of their own


@dataclass(frozen=True, slots=True)
class SideRow:
    """One thing of both results, in words."""

    name: str
    dense: str  # of the network as it came; "" where it says nothing
    first: str
    second: str

    @property
    def differs(self) -> bool:
        """Whether the two are not alike."""
        return self.first != self.second


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two results of one network.

    Attributes:
        names: what they are called.
        rows: how they were made, how they do, what they take.
        layers: how many outputs each layer has.
        notes: what to think of when one compares them, a line each.
    """

    names: tuple[str, str]
    rows: tuple[SideRow, ...]
    layers: tuple[SideRow, ...]
    notes: tuple[str, ...]


def comparison_of(records: Records, names: tuple[str, str]) -> Comparison:
    """Return two results side by side.

    Args:
        records: contents of their `result.json`.
        names: what they are called.

    Raises:
        UsageError: they are of different networks.
    """
    first, second = records
    if first["network"] != second["network"]:
        sizes = (count(one["achieved"]["parameters_dense"]) for one in records)
        told = (f"{name}'s has {size} parameters" for name, size in zip(names, sizes, strict=True))
        raise UsageError(
            f"{names[0]} and {names[1]} are results of different networks: {', '.join(told)}; "
            "compare results of one and the same"
        )
    rows = (*_made(records), *_quality(records), *_amounts(records))
    return Comparison(names, rows, tuple(_widths(records)), tuple(_notes(records)))


def render_comparison(found: Comparison) -> str:
    """Return a comparison as a self-contained page."""
    return filled("comparison.html.j2", found=found)


def _made(records: Records) -> Iterator[SideRow]:
    for key in ("criterion", "granularity"):
        yield SideRow(key, "", *(str(one[key]) for one in records))
    for key in ("values", "recover"):
        yield SideRow(key, "", *(str(one["options"][key]) for one in records))


def _quality(records: Records) -> Iterator[SideRow]:
    done = [one["achieved"] for one in records]
    dense = [one["accuracy_dense"] for one in done]
    yield SideRow("accuracy", _once(map(percent, dense)), *map(_accuracy, done))
    yield SideRow("samples it was measured on", "", *(count(one["samples"]) or "-" for one in done))
    for name in dict.fromkeys(name for one in done for name in one["metrics"]):
        if name != ACCURACY:
            before = (figure(one["metrics_dense"].get(name)) for one in done)
            now = (figure(one["metrics"][name]) if name in one["metrics"] else "-" for one in done)
            yield SideRow(name, _once(before), *now)


def _accuracy(done: Mapping[str, Any]) -> str:
    error = done["accuracy_standard_error"]
    return percent(done["accuracy"]) + ("" if error is None else f" ± {points(error)}")


def _amounts(records: Records) -> Iterator[SideRow]:
    done = [one["achieved"] for one in records]
    units = dict.fromkeys(Pattern.of(one["granularity"]).units for one in records)
    yield SideRow(f"{' or '.join(units)} gone", "", *(percent(one["sparsity"]) for one in done))
    gone = (percent(one["weights_removed"]) for one in done)
    zeros = percent(done[0]["weights_removed_dense"])
    yield SideRow("all weights, gone or zero", zeros, *gone)
    others = (name.removesuffix("_dense") for one in done for name in one if name[-6:] == "_dense")
    for name in dict.fromkeys((*_ALWAYS, *others)):
        if name in _NOT_COUNTED:
            continue
        dense = (amount(one[f"{name}_dense"]) for one in done if f"{name}_dense" in one)
        yield SideRow(_TOLD.get(name, name), _once(dense), *(_share(one, name) for one in done))
    dense = (figure(one["latency_dense_ms"]) for one in done if one["latency_dense_ms"])
    if any(one["latency_ms"] for one in done):
        yield SideRow("milliseconds a call", _once(dense), *map(_latency, records))


def _share(done: Mapping[str, Any], name: str) -> str:
    if name not in done:
        return "-"
    dense = done[f"{name}_dense"]
    return amount(done[name]) + (f" ({percent(done[name] / dense)})" if dense else "")


def _latency(record: Mapping[str, Any]) -> str:
    timing = record["timing"]
    if timing is None:
        return "-"
    return f"{figure(record['achieved']['latency_ms'])} ({timing['runtime']})"


def _once(values: Iterator[str]) -> str:
    """Return what both have, each if they differ."""
    return " / ".join(dict.fromkeys(values))


def _widths(records: Records) -> Iterator[SideRow]:
    parts = [[layer for layer in one["layers"] if layer["name"] != REST] for one in records]
    for first, second in zip_longest(*parts):
        both = [one for one in (first, second) if one is not None]
        width = count(both[0]["width_dense"])
        told = ("-" if one is None else count(one["width"]) for one in (first, second))
        yield SideRow(both[0]["name"], width, *told)


def _notes(records: Records) -> Iterator[str]:
    done = [one["achieved"] for one in records]
    if done[0]["accuracy_dense"] != done[1]["accuracy_dense"]:
        yield (
            "the dense network's accuracy is not the same in both, so they were measured on other "
            "samples: compare each with its own"
        )
    errors = [one["accuracy_standard_error"] for one in done]
    if None in errors or None in (one["accuracy"] for one in done):
        return
    apart = abs(done[0]["accuracy"] - done[1]["accuracy"])
    either = (errors[0] ** 2 + errors[1] ** 2) ** 0.5
    if apart <= either:
        yield (
            f"the accuracies are {points(apart)} apart, no more than the standard error of that, "
            f"{points(either)}: these numbers don't tell which is better"
        )
