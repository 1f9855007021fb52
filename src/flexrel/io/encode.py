"""Networks to packed files."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, fx, nn

import flexrel_edge
from flexrel.core.batches import RawBatch
from flexrel.core.precision import (
    VALUES,
    Values,
    check_values,
    stored,
)
from flexrel.core.running import fingerprint
from flexrel.errors import UsageError
from flexrel.io.onnx import onnx_graph
from flexrel.io.state import state_of, stored_as_is, written
from flexrel.structure import cut_changes, passed_over
from flexrel_edge.format import NO_METADATA
from flexrel_edge.records import PCODEC


def encode(
    model: nn.Module,
    values: Values = "float32",
    graph: RawBatch | None = None,
    metadata: Mapping[str, str] = NO_METADATA,
    codec: str = PCODEC,
    input_names: Sequence[str] = (),
    *,
    observe: bool = False,
) -> bytes:
    """Return the packed file's bytes: the state of the model, losslessly, or rounded first.

    What a cut changed and the state does not tell goes along: numbers that modules size axes by,
    such as `num_heads` and `groups`, and buffers that are not persistent.

    Args:
        model: whose parameters and persistent buffers are packed; tied ones once.
        values: "float32" packs every tensor as it is; "float16", "bfloat16", "int8" and "int4"
            round what has more bits, the latter two to whole numbers times a scale for each output.
        graph: a batch of inputs; the network's ONNX graph goes along.
        metadata: texts to keep with them; what is written here goes before.
        codec: of the tensors' bytes.
        input_names: of the graph, in the order of the inputs; none: those of `forward`.
        observe: whether the graph can tell what layers take in, for `flexrel-edge observe`.

    Raises:
        UsageError: an unknown precision, a value that it can't hold, state that is no tensor, or a
            graph without the extra "export".
        ModelError: the model has no ONNX graph.
    """
    check_values(values, VALUES)
    tensors, tied = names_of(model)
    arrays = {
        name: stored_as_is(stored(name, tensor.detach().cpu().contiguous(), values))
        for name, tensor in tensors.items()
    }
    ours = {"fingerprint": fingerprint(model), **cut_notes(model, tied)}
    if graph is not None:
        ours |= onnx_graph(model, graph, tensors, input_names, observe=observe).metadata(tensors)
    return flexrel_edge.encode(arrays, metadata={**metadata, **ours}, codec=codec)


def cut_notes(model: nn.Module, tied: Mapping[str, str]) -> dict[str, str]:
    """Return what a cut changed and tensors do not tell, for `restore_`, as texts.

    Args:
        model: that is saved.
        tied: of tensors that are saved under another name, that name.
    """
    notes: dict[str, str] = {}
    if tied:
        notes["tied"] = json.dumps(tied)
    if numbers := cut_changes(model)[0]:
        notes["attributes"] = written(numbers)
    if over := passed_over(model):
        notes["passed_over"] = json.dumps(over)
    if isinstance(model, fx.GraphModule):
        notes["form"] = "exported"
    return notes


def names_of(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors that are packed, by name, and of tied ones each other name's first.

    Raises:
        UsageError: the state has something that is no tensor.
    """
    first: dict[tuple[Any, ...], str] = {}
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    for name, tensor in state_of(model, cut_changes(model)[1]).items():
        if not isinstance(tensor, Tensor):
            raise UsageError(f"{name} is a {type(tensor).__name__}; only tensors can be packed")
        where = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if tensor.numel() and where in first:
            tied[name] = first[where]
        else:
            first[where] = name
            tensors[name] = tensor
    return tensors, tied
