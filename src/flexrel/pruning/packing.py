"""Packing a network whose precision is to be chosen by what it costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from flexrel.core.batches import RawBatch, RawBatches, collect, read_batches
from flexrel.core.caches import cache_note
from flexrel.core.distance import Divergence
from flexrel.core.division import fitted_and_judged
from flexrel.core.evaluate import ACCURACY, Evaluate, Evaluation, Metrics, evaluate_of
from flexrel.core.network import plain_network
from flexrel.core.plan import check_alone
from flexrel.core.precision import (
    FINEST_FIRST,
    VALUES,
    RequestedPrecision,
    Values,
    check_values,
)
from flexrel.core.running import duplicate
from flexrel.core.targets import Target, missed, targets_of, unnamed
from flexrel.core.whole import uncut
from flexrel.core.zeros import lost_zeros
from flexrel.errors import BudgetError, FlexrelError, PrecisionError, UsageError
from flexrel.io import check_metadata, check_named, encode, inputs_note
from flexrel.pruning.evaluation import evaluation_data
from flexrel.pruning.request import check_evaluated
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
        accuracy: of the network as the file holds it, where `evaluate` tells it.
        accuracy_before: of the network as it was.
        divergence: how far the outputs moved on calibration samples that nothing was fitted to:
            as `flexrel.core.distance.Divergence` has it; None without such samples.
        warnings: what was done to the network first, each in a line.
        metrics: all that `evaluate` told of the network as the file holds it, by name.
        metrics_before: of the network as it was.
    """

    bytes: int
    values: Values
    accuracy: float | None
    accuracy_before: float | None
    divergence: float | None
    warnings: tuple[str, ...] = ()
    metrics: Metrics = field(default_factory=dict, hash=False)
    metrics_before: Metrics = field(default_factory=dict, hash=False)


def pack(
    model: nn.Module,
    path: str | Path,
    values: RequestedPrecision = "float32",
    *,
    calibration: RawBatches = (),
    evaluate: Evaluate | RawBatches | None = None,
    target: Target | str | Sequence[Target | str] | None = None,
    graph: RawBatch | None = None,
    metadata: Mapping[str, str] = NO_METADATA,
    codec: str = PCODEC,
    input_names: Sequence[str] = (),
    observe: bool = False,
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
        evaluate: `model -> accuracy` in [0, 1], or a mapping of names to numbers, on other data;
            or such data with labels.
        target: how much accuracy may be lost, or the worst any metric may come to, as in `prune`.
        graph: a batch of inputs, with which what the network computes is written down too, as an
            ONNX graph: so that `flexrel_edge.session` and `unpack` to `.onnx` need nothing else.
        metadata: texts to keep with the tensors, such as labels, pre-processing and licence.
        codec: "pcodec-1", or "zstd-1" for devices that pcodec has no wheel for; larger files.
        input_names: of the graph, in the order of the inputs; none: those of `forward`.
        observe: whether the graph can also tell what the network's layers take in, for
            `flexrel-edge observe`; some hundred bytes, and nothing for a session that isn't asked.

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
    targets, evaluate = targets_of(target), evaluate_of(evaluate)
    check_evaluated(targets, evaluate)
    if not targets and values == "auto":
        raise UsageError("values 'auto' needs target=, such as AccuracyDrop(0.01)")
    check_values(values, ("auto", *VALUES))
    check_alone(Path(path))
    check_metadata(metadata)
    check_named(input_names, () if graph is None else ("graph",))
    if observe and graph is None:
        raise UsageError("observe=True is of the ONNX graph; pass graph=, a batch of inputs, too")
    plain = plain_network(model)
    model = plain.network
    given = uncut(model, collect(calibration))
    batches = given.batches
    fitted, judged = fitted_and_judged(batches, model) if batches else ((), ())
    dense = evaluation_data(evaluate, model, targets)
    failed: list[FlexrelError] = []
    for precision in FINEST_FIRST[::-1] if values == "auto" else (values,):
        try:
            rounded = _rounded(model, precision, fitted)
        except PrecisionError as error:
            if values != "auto":
                raise
            failed.append(error)
            continue
        metrics = Evaluation(evaluate, unnamed(targets))(rounded) if evaluate else {}
        goal = missed(dense.goals, metrics)
        if goal is None:
            break
        advice, at_least = "Finer values, or 'auto', keep more.", not goal.lower_is_better
        closest = metrics[goal.metric]
        failed.append(BudgetError(goal.metric, goal.limit, closest, advice, at_least))
    else:
        raise failed[-1]
    example = graph if graph is not None else next(iter(batches), None)
    known = (
        {}
        if example is None
        else inputs_note(model, *read_batches([example], model), names=input_names)
    )
    data = encode(
        rounded, precision, graph, {**metadata, **known}, codec, input_names, observe=observe
    )
    replace_file(Path(path), data)
    divergence = Divergence(model, judged)(rounded) if judged else None
    left = [] if graph is None else cache_note(f"the ONNX graph in {path}", model)
    return PackReport(
        bytes=len(data),
        values=precision,
        accuracy=metrics.get(ACCURACY),
        accuracy_before=dense.metrics.get(ACCURACY),
        divergence=divergence,
        warnings=(*plain.warnings, *lost_zeros(model), *given.warnings, *left),
        metrics=metrics,
        metrics_before=dense.metrics,
    )


def _rounded(model: nn.Module, values: Values, fitted: Sequence[RawBatch]) -> nn.Module:
    """Return the model with values of a precision: itself if none is rounded."""
    if values == "float32":
        return model
    rounded = duplicate(model)
    round_(rounded, values, fitted)
    return rounded
