"""What the report shows, gathered in words and numbers; the template only lays it out."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from flexrel.core.granularity import Pattern
from flexrel.core.plan import named
from flexrel.io.asked import AskedRow, asked_rows
from flexrel.io.changed_rows import ChangedPart, changed_part
from flexrel.io.figures import count, figure, granularities, percent, size
from flexrel.io.frontier import Frontier, Measured, frontier, measured_networks, shown_words
from flexrel.io.layer_lines import LayerBars, LayerLine, layer_bars, layer_lines
from flexrel.io.scatter import Scatter, scatter


@dataclass(frozen=True, slots=True)
class NetworkRow:
    """One of the networks that were measured for the same request, in words."""

    name: str
    accuracy: str
    parameters: str
    macs: str
    bytes: str
    chosen: bool


@dataclass(frozen=True, slots=True)
class ReportPage:
    """All that a page shows.

    Attributes:
        title: what became of the network, in a line.
        lead: how, a sentence each.
        promise: how much accuracy is lost at most; "" if nothing is promised.
        warnings: what to look into, a line each.
        asked: what was asked and what it came to.
        frontier: accuracy against bytes; None if no accuracy is known.
        measured: the networks in it, also those out of sight.
        networks: those that were measured for the same request; none without a comparison.
        repair: what repair and training did: step, divergence before, after, whether it was kept.
        notes: of these, a line each.
        unrepaired: accuracy before the repair, in a sentence; "" if it is not known.
        layers: each layer, and what is no layer's.
        bars: the layers as bars.
        left: what is left alone and no layer with weights, and why.
        scatters: relevance against magnitude, a layer each.
        changed: answers that changed; None if they are not known.
        run: how to run the file: with what, and the lines to type.
        facts: where it came from: what, and that.
    """

    title: str
    lead: tuple[str, ...]
    promise: str
    warnings: tuple[str, ...]
    asked: tuple[AskedRow, ...]
    frontier: Frontier | None
    measured: tuple[Measured, ...]
    units: str
    networks: tuple[NetworkRow, ...]
    repair: tuple[tuple[str, str, str, str], ...]
    notes: tuple[str, ...]
    unrepaired: str
    layers: tuple[LayerLine, ...]
    bars: LayerBars
    left: tuple[tuple[str, str], ...]
    scatters: tuple[Scatter, ...]
    changed: ChangedPart | None
    run: tuple[tuple[str, str], ...]
    facts: tuple[tuple[str, str], ...]


def page_of(result: Mapping[str, Any], plan: Mapping[str, Any]) -> ReportPage:
    """Return what the report shows of a result.

    Args:
        result: content of `result.json`.
        plan: content of `plan.json`.
    """
    done, layers = result["achieved"], layer_lines(result["layers"])
    measured = measured_networks(result)
    units = Pattern.of(result["granularity"]).units
    shown = {one["name"] for one in result["layers"]}
    before, promise = done["accuracy_unrepaired"], result["promise"]
    return ReportPage(
        title=_title(done),
        lead=tuple(_lead(result)),
        promise=promise["told"] if promise else "",
        warnings=tuple(result["warnings"]),
        asked=asked_rows(result),
        frontier=frontier(measured, done["accuracy_dense"], result["requested"], units)
        if measured
        else None,
        measured=measured,
        units=units,
        networks=tuple(_networks(result)) if result["rivals"] else (),
        repair=tuple(map(_step, result["recovery"])),
        notes=tuple(note for step in result["recovery"] for note in step["notes"]),
        unrepaired=""
        if before is None
        else f"Accuracy was {percent(before)} when the network was cut, before its repair; it is "
        f"{percent(done['accuracy'])} after it, and was {percent(done['accuracy_dense'])} dense.",
        layers=layers,
        bars=layer_bars(result["layers"], layers),
        left=tuple(
            (named(one["name"]), one["reason"])
            for one in plan["protected"]
            if one["name"] not in shown
        ),
        scatters=tuple(map(scatter, result["scores"])),
        changed=changed_part(result),
        run=tuple(_run(result)),
        facts=tuple(_facts(result)),
    )


def _title(done: Mapping[str, Any]) -> str:
    sizes = f"{size(done['bytes_dense'])} → {size(done['bytes'])}"
    if done["accuracy"] is None:
        return sizes
    return f"{sizes}, {percent(done['accuracy_dense'])} → {percent(done['accuracy'])}"


def _lead(result: Mapping[str, Any]) -> Iterator[str]:
    done = result["achieved"]
    yield f"Pruned by {granularities(result)} with criterion {result['criterion']}."
    kept = [step["step"] for step in result["recovery"] if step["kept"]]
    if kept:
        yield f"Weights that stay were recovered by {', then '.join(kept)}."
    else:
        yield "Weights that stay are as they were."
    if done["samples"]:
        error = done["accuracy_standard_error"]
        searched = result["requested"]["accuracy"] is not None
        yield (
            f"Accuracy on {count(done['samples'])} samples, one standard error {percent(error)}"
            f"{'; the search for the size used them too' if searched else ''}."
        )
    if result["form"] == "module":
        yield "The network is the module itself, with less in it."
        return
    samples = result["options"]["samples_a_call"]
    takes = f"; a call takes {samples} samples, no more or less" if samples else ""
    yield f"The network is an exported program, model.pt2, for evaluation{takes}."


def _networks(result: Mapping[str, Any]) -> Iterator[NetworkRow]:
    done = result["achieved"]
    dense = {name: done[f"{name}_dense"] for name in ("accuracy", "parameters", "macs", "bytes")}
    own = {**done, "criterion": result["criterion"]}
    for one in ({**dense, "criterion": "dense"}, *result["rivals"], own):
        yield NetworkRow(
            one["criterion"],
            percent(one["accuracy"]),
            count(one["parameters"]),
            count(one["macs"]),
            count(one["bytes"]),
            one is own,
        )


def _step(step: Mapping[str, Any]) -> tuple[str, str, str, str]:
    distances = figure(step["divergence_before"]), figure(step["divergence_after"])
    return (step["step"], *distances, "yes" if step["kept"] else "no, undone")


_TORCH: Final = """\
model = flexrel.load("model.flexrel", into=model)  # of the class that was pruned
outputs = model.eval()(inputs)"""
_PROGRAM: Final = """\
model = torch.export.load("model.pt2").module()
outputs = model(inputs)"""
_ONNX: Final = """\
session = onnxruntime.InferenceSession("model.onnx")
outputs = session.run(None, {session.get_inputs()[0].name: inputs})"""
_EDGE: Final = "flexrel-edge run model.flexrel --input inputs.npy --output outputs.npz"
_NOT_EXPORTED: Final = f"# once it was pruned with --export graph\n{_EDGE}"


def _run(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield with what a network can be run, and how that is written."""
    exports = result["exports"]
    yield "torch", _PROGRAM if result["form"] == "exported" else _TORCH
    if "onnx" in exports:
        yield "onnxruntime", _ONNX
    if {"graph", "observe"} & {*exports}:
        yield "onnxruntime, without torch", _EDGE
    if not {"onnx", "graph", "observe"} & {*exports}:
        yield "onnxruntime, without torch", _NOT_EXPORTED
    yield "numpy, weights alone", 'weights = flexrel_edge.read("model.flexrel")'


def _facts(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield where a result came from: what, and that."""
    origin, options = result["origin"], result["options"]
    if origin is not None:
        yield "command", shown_words(origin["command"])
        yield "network", origin["model"]
    given = f"{count(options['calibration_samples'])} samples"
    yield "calibration data", ", ".join(filter(None, [origin and origin["calibration"], given]))
    samples = result["achieved"]["samples"]
    judged = [
        (origin and origin["evaluation"]) or "",
        f"{count(samples)} samples searched with" if samples else "",
    ]
    yield "evaluation data", ", ".join(filter(None, judged)) or "none told"
    yield "checksum of model.flexrel", result["model"]
    yield "seed", str(result["seed"])
    for name, value in options.items():
        if name != "scored_by" and value is not False and value not in (None, [], ""):
            yield name.replace("_", " "), _readable(value)
    yield "versions", ", ".join(f"{name} {told}" for name, told in result["versions"].items())
    yield "system", result["system"]


def _readable(value: object) -> str:
    """Return an option as a person writes it."""
    if value is True:
        return "yes"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)
