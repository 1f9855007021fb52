"""What was asked of a network, what it came to, and how much there is to spare."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from flexrel.core.evaluate import ACCURACY
from flexrel.core.granularity import Pattern
from flexrel.io.figures import amount, figure, percent, points

Verdict = Literal["met", "missed", "unsure", ""]  # the last where nothing was asked

_ROUND: Final = 1e-9  # what floats are off by
_NAMES: Final = {
    "parameters": "parameters",
    "macs": "multiply-adds",
    "bytes": "bytes of the file",
    "link_s": "seconds over the link",
    "memory_bytes": "bytes of activations",
}
_ALWAYS: Final = ("parameters", "macs", "bytes")
_APART: Final = ("accuracy", "sparsity", "latency_ms")  # that have rows of their own


@dataclass(frozen=True, slots=True)
class AskedRow:
    """One resource or metric, in words.

    Attributes:
        name: what it is.
        dense: how much of it the dense network takes.
        asked: what was asked; "" if nothing was.
        achieved: what the pruned network takes.
        share: of what the dense network takes, where that says something.
        slack: how much there is to spare, or is missing, and what to think of it.
        verdict: whether what was asked is met; "unsure" where the samples can't tell.
    """

    name: str
    dense: str
    asked: str
    achieved: str
    share: str = ""
    slack: str = ""
    verdict: Verdict = ""


def asked_rows(result: Mapping[str, Any]) -> tuple[AskedRow, ...]:
    """Return the rows of a record of `result.json`."""
    return (
        *_accuracy(result),
        *_metrics(result),
        *_removed(result),
        *_amounts(result),
        _latency(result),
    )


def _accuracy(result: Mapping[str, Any]) -> Iterator[AskedRow]:
    done, asked = result["achieved"], result["requested"]["accuracy"]
    accuracy, dense, error = done["accuracy"], done["accuracy_dense"], None
    if accuracy is None:
        yield AskedRow("accuracy", percent(None), "", percent(None))
        return
    error = done["accuracy_standard_error"]
    told = percent(accuracy) + ("" if error is None else f" ± {points(error)}")
    if asked is None:
        yield AskedRow("accuracy", percent(dense), "", told)
    else:
        slack, verdict = _spare(accuracy - asked, dense - asked, error)
        yield AskedRow(
            *("accuracy", percent(dense), f"at least {percent(asked)}", told),
            slack=slack,
            verdict=verdict,
        )
    promise = result["promise"]
    if promise and promise["aside"] and promise["drop"] is not None:
        yield AskedRow(
            name="accuracy on samples that nothing was chosen on",
            dense=percent(promise["accuracy_dense"]),
            asked=f"at most {points(promise['asked'])} less",
            achieved=percent(promise["accuracy"]),
            slack=f"at most {points(max(0.0, promise['drop']))} less "
            f"with {promise['confidence']:.0%} confidence",
            verdict="met" if promise["kept"] else "unsure",
        )


def _spare(spare: float, drop: float, error: float | None) -> tuple[str, Verdict]:
    """Return what there is to spare of an accuracy, and whether that is sure enough to be met."""
    if spare < -_ROUND:
        return f"{points(spare)} short", "missed"
    if error is not None and error > drop:
        return (
            f"{points(spare)} to spare on these samples, but one standard error, {points(error)}, "
            f"is more than the drop allowed, {points(drop)}"
        ), "unsure"
    return f"{points(spare)} to spare", "met"


def _metrics(result: Mapping[str, Any]) -> Iterator[AskedRow]:
    done = result["achieved"]
    for name, value in done["metrics"].items():
        if name == ACCURACY:
            continue
        goals = [goal for goal in result["targets"] if goal["metric"] == name]
        bounds = [
            f"at {'most' if goal['lower_is_better'] else 'least'} {figure(goal['limit'])}"
            for goal in goals
        ]
        spares = [
            (goal["limit"] - value) * (1 if goal["lower_is_better"] else -1)
            for goal in goals
            if value is not None
        ]
        slack, verdict = "", ""
        if goals:
            least = min(spares, default=-1.0)
            verdict = "met" if least >= -_ROUND else "missed"
            slack = f"{figure(abs(least))} {'to spare' if verdict == 'met' else 'off'}"
        yield AskedRow(
            *(name, figure(done["metrics_dense"][name]), ", ".join(bounds), figure(value)),
            slack=slack,
            verdict=verdict,  # type: ignore[arg-type]  # a literal
        )


def _removed(result: Mapping[str, Any]) -> Iterator[AskedRow]:
    done, asked = result["achieved"], result["requested"]["sparsity"]
    pattern = Pattern.of(result.get("then") or result["granularity"])
    name = f"{pattern.units} {'zeroed' if pattern.zeros else 'removed'}"
    row = AskedRow(name, percent(0.0), "", percent(done["sparsity"]))
    yield row if asked is None else _limited(row, done["sparsity"], asked, at_least=True)
    zeros, gone = done["weights_removed_dense"], done["weights_removed"]
    yield AskedRow("all weights, gone or zero", percent(zeros), "", percent(gone))


def _amounts(result: Mapping[str, Any]) -> Iterator[AskedRow]:
    done, asked = result["achieved"], result["requested"]
    for key in (*_ALWAYS, *(key for key in asked if key not in (*_ALWAYS, *_APART))):
        dense, now, limit = done[f"{key}_dense"], done[key], asked[key]
        share = percent(now / dense) if dense else ""
        row = AskedRow(_NAMES.get(key, key), amount(dense), "", amount(now), share)
        yield row if limit is None else _limited(row, now, limit, at_least=key in result["floors"])


def _latency(result: Mapping[str, Any]) -> AskedRow:
    done, timing = result["achieved"], result["timing"]
    if timing is None:
        return AskedRow("latency", "", "", percent(None))
    now, dense, limit = done["latency_ms"], done["latency_dense_ms"], result["requested"]
    threads = f"{timing['threads']} thread{'' if timing['threads'] == 1 else 's'}"
    where = f", expected on {timing['machine']}" if timing.get("machine") else ""
    row = AskedRow(
        f"latency, ms ({timing['runtime']} {timing['version']}, batch {timing['batch']}, "
        f"{threads}{where})",
        *(figure(dense), "", figure(now), percent(now / dense)),
    )
    return _limited(row, now, limit["latency_ms"], at_least=False)


def _limited(row: AskedRow, now: float, limit: float, *, at_least: bool) -> AskedRow:
    """Return a row with a limit, and how far it is from there."""
    spare = now - limit if at_least else limit - now
    met = spare >= -_ROUND * abs(limit)
    share = row.achieved.endswith("%")
    told = percent(limit) if share else (figure(limit) if limit % 1 else amount(limit))
    off = points(spare) if share else f"{amount(abs(spare))}"
    part = f", {percent(abs(spare) / limit)} of it" if limit and not share else ""
    return AskedRow(
        row.name,
        row.dense,
        f"at {'least' if at_least else 'most'} {told}",
        row.achieved,
        row.share,
        f"{off} {'to spare' if met else 'too many' if not at_least else 'short'}{part}",
        "met" if met else "missed",
    )
