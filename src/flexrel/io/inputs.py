"""What a packed file records for people: what the network takes, and how it came out."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from flexrel.core.batches import Batch, RawBatch, read_batches
from flexrel.core.evaluate import ACCURACY
from flexrel.core.forms import argument_names
from flexrel.core.measurement import Measurement
from flexrel.core.plan import LayerRow
from flexrel.errors import UsageError
from flexrel.io.onnx_names import check_input_names
from flexrel_edge.graph import EVIDENCE, INPUTS, LABELS, OURS


def check_metadata(metadata: Mapping[str, str]) -> None:
    """Refuse texts under a name of ours.

    Raises:
        UsageError: names the first.
    """
    if taken := sorted(OURS & metadata.keys()):
        raise UsageError(f"metadata {taken[0]!r} is a name of FlexRel's own; use another")


def check_inputs(names: Sequence[str], model: nn.Module, batches: Sequence[RawBatch]) -> None:
    """Refuse names that are not those of as many inputs, before the work.

    Args:
        names: for the inputs, in their order; none: as they are.
        model: that takes them.
        batches: examples.

    Raises:
        UsageError: they are more or fewer, or two are the same.
    """
    for example in read_batches(batches if names else (), model):
        own = _names_of(model, example)
        check_input_names(names, own, model.state_dict())


def _names_of(model: nn.Module, batch: Batch) -> list[str]:
    own = argument_names(model, len(batch.args))
    return own + [name for name, value in batch.kwargs.items() if isinstance(value, Tensor)]


def inputs_note(
    model: nn.Module, batch: Batch, *, fixed: bool = False, names: Sequence[str] = ()
) -> dict[str, str]:
    """Return the names, dtypes and shapes of a network's inputs, as a text of the metadata.

    Args:
        model: that takes them; its `forward` tells names.
        batch: an example.
        fixed: whether it takes as many samples as the example alone. Else the axis of samples is
            null, any number; the others are the example's.
        names: that the inputs were given; none: those of `forward`.
    """
    free = not (fixed or batch.whole)
    inputs = [
        {
            "name": name,
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "shape": [
                None if free and axis == 0 and size == batch.samples else size
                for axis, size in enumerate(tensor.shape)
            ],
        }
        for name, tensor in zip(names or _names_of(model, batch), batch.tensors, strict=True)
    ]
    return {INPUTS: _compact(inputs)}


def names_note(names: Sequence[str], described: Mapping[str, str]) -> dict[str, str]:
    """Return what classes are called, as a text of the metadata.

    Args:
        names: by the number of the class; none: nothing is noted.
        described: metadata that is there; labels of the caller's own stay.
    """
    return {LABELS: _compact(names)} if names and LABELS not in described else {}


def evidence_note(
    before: Measurement, now: Measurement, samples: int | None, layers: tuple[LayerRow, ...]
) -> dict[str, str]:
    """Return what a network does and takes, before and now, as a text of the metadata.

    Args:
        before: of the dense network.
        now: of the pruned one.
        samples: that accuracy was measured on, if that is known.
        layers: what became of each.
    """
    found: dict[str, Any] = {}
    if now.accuracy is not None:
        found["accuracy"] = [_round(before.accuracy), _round(now.accuracy)]
    if samples is not None:
        found["samples"] = samples
    others = {
        name: [_round(before.metrics[name]), _round(value)]
        for name, value in now.metrics.items()
        if name != ACCURACY
    }
    if others:
        found["metrics"] = others
    found["macs"] = [before.macs, now.macs]
    found["parameters"] = [before.parameters, now.parameters]
    found["weights_removed"] = _round(now.weights_removed)
    widths = {
        row.name: [row.width_dense, row.width]
        for row in layers
        if row.macs_dense and row.width < row.width_dense
    }
    if widths:
        found["widths"] = widths
    return {EVIDENCE: _compact(found)}


def _round(value: float | None) -> float | None:
    """Return six digits of it, which say enough."""
    return None if value is None else float(f"{value:.6g}")


def _compact(content: object) -> str:
    return json.dumps(content, separators=(",", ":"))
