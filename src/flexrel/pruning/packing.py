"""Packing a network whose precision is to be chosen by what it costs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from flexrel.core.batches import RawBatch, RawBatches, collect, fitted_and_judged
from flexrel.core.budgets import AccuracyDrop, target_of
from flexrel.core.caches import cache_note
from flexrel.core.distance import Divergence
from flexrel.core.evaluate import Evaluate, checked, evaluate_of
from flexrel.core.network import plain_network
from flexrel.core.plan import check_alone
from flexrel.core.precision import (
    FINEST_FIRST,
    VALUES,
    RequestedPrecision,
    Values,
    check_values,
)
from flexrel.core.resources import TOLERANCE
from flexrel.core.running import duplicate
from flexrel.core.whole import uncut
from flexrel.errors import BudgetError, PrecisionError, UsageError
from flexrel.io import encode
from flexrel.pruning.evaluation import evaluation_data, floor_of
from flexrel.repair import round_
from flexrel_edge.files import replace_file
from flexrel_edge.format import NO_METADATA
from flexrel_edge.records import PCODEC


@dataclass(frozen=True, slots=True)
class PackReport:
    """A packed file that was written, and what its precision cost.

    Attributes:
        bytes: its length.
        values: precision of its values.
        accuracy: of the network as the file holds it, where `evaluate` was given.
        accuracy_before: of the network as it was.
        divergence: how far the outputs moved on calibration samples that nothing was fitted to:
            as `flexrel.core.distance.Divergence` has it; None without such samples.
        warnings: what was done to the network first, each in a line.
    """

    bytes: int
    values: Values
    accuracy: float | None
    accuracy_before: float | None
    divergence: float | None
    warnings: tuple[str, ...] = ()


def pack(
    model: nn.Module,
    path: str | Path,
    values: RequestedPrecision = "float32",
    *,
    calibration: RawBatches = (),
    evaluate: Evaluate | RawBatches | None = None,
    target: AccuracyDrop | str | None = None,
    graph: RawBatch | None = None,
    metadata: Mapping[str, str] = NO_METADATA,
    codec: str = PCODEC,
) -> PackReport:
    """Write the model to a packed file, whole or not at all; return its size and what it cost.

    Args:
        model: whose parameters and persistent buffers are packed, tied ones once; not changed.
            Taken out of `DataParallel` and `torch.compile`, whose names no file has; masks of
            `torch.nn.utils.prune` are applied to a copy, norms and parametrizations of weights
            folded.
        path: of the file; replaced if it is there.
        values: "float32" packs every tensor as it is; "float16", "bfloat16", "int8" and "int4"
            round what has more bits, the latter two to whole numbers times a scale for each output.
            "auto" takes the fewest bits a value that keep to the target, and can hold every value.
        calibration: batches of inputs, labels not needed. "int8" and "int4" round so that the
            outputs of each layer change least on them; 128, or a quarter, are held out, and tell
            how far the model's outputs moved.
        evaluate: `model -> accuracy` in [0, 1], on other data, or such data with labels.
        target: how much accuracy may be lost.
        graph: a batch of inputs, with which what the network computes is written down too, as an
            ONNX graph: so that `flexrel_edge.session` and `unpack` to `.onnx` need nothing else.
        metadata: texts to keep with the tensors, such as labels, pre-processing and licence.
        codec: "pcodec-1", or "zstd-1" for devices that pcodec has no wheel for; larger files.

    Raises:
        UsageError: an unknown precision, a value that it can't hold, state that is no tensor, the
            path of a result's model, metadata under a name of ours, a graph without the extra
            "export", a target without `evaluate` or that allows any accuracy, an accuracy no better
            than chance, or "auto" without a target.
        ModelError: the model has no ONNX graph; or a tensor of it can't be packed: on the meta
            device, sparse, of a class or dtype of its own, with NaN, in a TorchScript or quantised
            module.
        BudgetError: more accuracy is lost than the target allows; nothing was written.
    """
    target, evaluate = None if target is None else target_of(target), evaluate_of(evaluate)
    if target is not None and evaluate is None:
        raise UsageError("a target on accuracy needs evaluate=, a function model -> [0, 1]")
    if target is None and values == "auto":
        raise UsageError("values 'auto' needs target=, such as AccuracyDrop(0.01)")
    check_values(values, ("auto", *VALUES))
    check_alone(Path(path))
    plain = plain_network(model)
    model = plain.network
    given = uncut(model, collect(calibration))
    batches = given.batches
    fitted, judged = fitted_and_judged(batches, model) if batches else ((), ())
    before = checked(evaluate, model) if evaluate else None
    floor = -math.inf
    if target is not None and before is not None:
        evaluation_data(evaluate, model, target)
        floor = floor_of(before, target)
    for precision in FINEST_FIRST[::-1] if values == "auto" else (values,):
        try:
            rounded = _rounded(model, precision, fitted)
        except PrecisionError:
            if values != "auto":
                raise
            continue
        accuracy = checked(evaluate, rounded) if evaluate else None
        if accuracy is None or accuracy >= floor - TOLERANCE:
            break
    else:
        advice = "Finer values, or 'auto', keep more."
        raise BudgetError("accuracy", floor, accuracy or 0.0, advice, at_least=True)
    data = encode(rounded, precision, graph, metadata, codec)
    replace_file(Path(path), data)
    divergence = Divergence(model, judged)(rounded) if judged else None
    left = [] if graph is None else cache_note(f"the ONNX graph in {path}", model)
    warnings = (*plain.warnings, *given.warnings, *left)
    return PackReport(len(data), precision, accuracy, before, divergence, warnings)


def _rounded(model: nn.Module, values: Values, fitted: Sequence[RawBatch]) -> nn.Module:
    """Return the model with values of a precision: itself if none is rounded."""
    if values == "float32":
        return model
    rounded = duplicate(model)
    round_(rounded, values, fitted)
    return rounded
