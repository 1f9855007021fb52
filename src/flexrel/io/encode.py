"""Networks to packed files."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from torch import Tensor, fx, nn

import flexrel_edge
from flexrel.core.batches import RawBatch, fitted_and_judged
from flexrel.core.budgets import AccuracyDrop
from flexrel.core.evaluate import Divergence, Evaluate, checked
from flexrel.core.fingerprint import fingerprint
from flexrel.core.precision import (
    FINEST_FIRST,
    VALUES,
    RequestedPrecision,
    Values,
    check_values,
    stored,
)
from flexrel.core.running import duplicate
from flexrel.errors import BudgetError, PrecisionError, UsageError
from flexrel.io.onnx import onnx_graph, stored_as_is
from flexrel.io.state import state_of, written
from flexrel.repair import round_
from flexrel.structure import changed, passed_over
from flexrel_edge.files import replace_file
from flexrel_edge.format import NO_METADATA
from flexrel_edge.records import PCODEC

OURS: Final = frozenset(
    {
        "attributes",
        "fingerprint",
        "form",
        "onnx",
        "onnx_samples",
        "onnx_weights",
        "passed_over",
        "tied",
    }
)
_ROUNDING: Final = 1e-12  # 0.995 - 0.01 is a little above 0.985


@dataclass(frozen=True, slots=True)
class PackReport:
    """A packed file that was written, and what its precision cost.

    Attributes:
        bytes: its length.
        values: precision of its values.
        accuracy: of the network as the file holds it, where `evaluate` was given.
        accuracy_before: of the network as it was.
        divergence: how far the outputs moved on calibration samples that nothing was fitted to:
            as `flexrel.evaluate.Divergence` has it; None without such samples.
    """

    bytes: int
    values: Values
    accuracy: float | None
    accuracy_before: float | None
    divergence: float | None


def encode(
    model: nn.Module,
    values: Values = "float32",
    graph: RawBatch | None = None,
    metadata: Mapping[str, str] = NO_METADATA,
    codec: str = PCODEC,
) -> bytes:
    """Return the packed file's bytes: the state of the model, losslessly, or rounded first.

    What a cut changed and the state does not tell goes along: numbers that modules size axes by,
    such as `num_heads` and `groups`, and buffers that are not persistent.

    Args:
        model: whose parameters and persistent buffers are packed; tied ones once.
        values: "float32" packs every tensor as it is; "float16", "bfloat16", "int8" and "int4"
            round float32 tensors, the latter two to whole numbers times a scale for each output.
        graph: a batch of inputs, with which what the network computes is written down too, as an
            ONNX graph: so that `flexrel_edge.session` and `unpack` to `.onnx` need nothing else.
        metadata: texts to keep with them, such as labels, pre-processing and licence.
        codec: "pcodec-1", or "zstd-1" for devices that pcodec has no wheel for; larger files.

    Raises:
        UsageError: an unknown precision, a value that it can't hold, state that is no tensor,
            metadata under a name of ours, or a graph without the extra "export".
        ModelError: the model has no ONNX graph.
    """
    check_values(values, VALUES)
    if taken := sorted(OURS & metadata.keys()):
        raise UsageError(f"metadata {taken[0]!r} is a name of FlexRel's own; use another")
    numbers, _ = changed(model)
    tensors, tied = names_of(model)
    arrays = {
        name: stored_as_is(stored(name, tensor.detach().cpu().contiguous(), values))
        for name, tensor in tensors.items()
    }
    ours = {"fingerprint": fingerprint(model)}
    if tied:
        ours["tied"] = json.dumps(tied)
    if numbers:
        ours["attributes"] = written(numbers)
    if over := passed_over(model):
        ours["passed_over"] = json.dumps(over)
    if isinstance(model, fx.GraphModule):
        ours["form"] = "exported"
    if graph is not None:
        ours |= onnx_graph(model, graph, tensors).metadata(tensors)
    return flexrel_edge.encode(arrays, metadata={**metadata, **ours}, codec=codec)


def names_of(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors that are packed, by name, and of tied ones each other name's first.

    Raises:
        UsageError: the state has something that is no tensor.
    """
    first: dict[tuple[Any, ...], str] = {}
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    for name, tensor in state_of(model, changed(model)[1]).items():
        if not isinstance(tensor, Tensor):
            raise UsageError(f"{name} is a {type(tensor).__name__}; only tensors can be packed")
        where = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if tensor.numel() and where in first:
            tied[name] = first[where]
        else:
            first[where] = name
            tensors[name] = tensor
    return tensors, tied


def pack(
    model: nn.Module,
    path: str | Path,
    values: RequestedPrecision = "float32",
    *,
    calibration: Iterable[RawBatch] = (),
    evaluate: Evaluate | None = None,
    target: AccuracyDrop | None = None,
    graph: RawBatch | None = None,
    metadata: Mapping[str, str] = NO_METADATA,
    codec: str = PCODEC,
) -> PackReport:
    """Write the model to a packed file, whole or not at all; return its size and what it cost.

    Args:
        model: as for `encode`; not changed.
        path: of the file; replaced if it is there.
        values: as for `encode`. "auto" takes the fewest bits a value that keep to the target,
            and can hold every value.
        calibration: batches of inputs, labels not needed. "int8" and "int4" round so that the
            outputs of each layer change least on them; 128, or a quarter, are held out, and tell
            how far the model's outputs moved.
        evaluate: `model -> accuracy` in [0, 1], on other data.
        target: how much accuracy may be lost.
        graph: as for `encode`.
        metadata: texts to keep with the tensors.
        codec: as for `encode`.

    Raises:
        UsageError: as for `encode`; a target without `evaluate`, or "auto" without a target.
        BudgetError: more accuracy is lost than the target allows; nothing was written.
    """
    if target is not None and evaluate is None:
        raise UsageError("a target on accuracy needs evaluate=, a function model -> [0, 1]")
    if target is None and values == "auto":
        raise UsageError("values 'auto' needs target=, such as AccuracyDrop(0.01)")
    check_values(values, ("auto", *VALUES))
    batches = list(calibration)
    fitted, judged = fitted_and_judged(batches, model) if batches else ((), ())
    before = checked(evaluate, model) if evaluate else None
    for precision in FINEST_FIRST[::-1] if values == "auto" else (values,):
        rounded = model
        if precision != "float32":
            rounded = duplicate(model)
            try:
                round_(rounded, precision, fitted)
            except PrecisionError:
                if values != "auto":
                    raise
                continue
        accuracy = checked(evaluate, rounded) if evaluate else None
        missed = _missed(before, accuracy, target)
        if missed is None:
            break
    if missed is not None:
        raise missed
    data = encode(rounded, precision, graph, metadata, codec)
    replace_file(Path(path), data)
    divergence = Divergence(model, judged)(rounded) if judged else None
    return PackReport(len(data), precision, accuracy, before, divergence)


def _missed(
    before: float | None, after: float | None, target: AccuracyDrop | None
) -> BudgetError | None:
    if target is None or before is None or after is None:
        return None
    floor = max(before - target.amount, 0.0)
    if after >= floor - _ROUNDING:
        return None
    return BudgetError("accuracy", floor, after, "Finer values, or 'auto', keep more.")
