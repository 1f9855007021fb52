"""A network as an ONNX graph without its weights, which a packed file has already.

The weights become inputs of the graph before it is simplified, so that nothing can fold, fuse or
transpose them: they stay the tensors of the file, under their names. onnxruntime does all that by
itself when it loads the network.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from flexrel.core.batches import Batch, RawBatch, first_samples, read_batches
from flexrel.core.caches import uncached
from flexrel.core.extras import extra_module
from flexrel.core.running import reason
from flexrel.core.whole import uncut
from flexrel.errors import FlexrelError, ModelError
from flexrel.io.onnx_names import (
    Proto,
    check_input_names,
    free_name,
    inner_graphs,
    input_names,
    name_,
    names_in,
    output_names,
    rename_,
)
from flexrel.io.onnx_taps import taps
from flexrel.io.state import stored_as_is
from flexrel.structure import difference, outputs, quiet, torch_program
from flexrel_edge.graph import DATA_TYPES, Graph, filled
from flexrel_edge.session import session_of

_CHECKED_SAMPLES: Final = 3  # another number than the graph was made with
_AGREE: Final = 1e-2  # the difference that another runtime may make, as a share of the largest
_DTYPES: Final = {number: dtype for dtype, number in DATA_TYPES.items()}


def onnx_graph(
    model: nn.Module,
    example: RawBatch,
    tensors: Mapping[str, Tensor],
    names: Sequence[str] = (),
    *,
    observe: bool = False,
) -> Graph:
    """Return what the model computes in evaluation mode, and which tensors it takes for that.

    Args:
        model: not changed. A cache that it returns for its next call is left out.
        example: a batch of inputs, labels not needed. The graph takes any number of samples if
            torch can tell that the model does, else as many as the example has.
        tensors: of the model, by the names that they will have in the file.
        names: of its inputs, in their order; none: those of `forward`. Outputs have the keys that
            the model returns them by, and the axis of samples is "batch".
        observe: whether it gets taps too, that tell what its layers take in.

    Raises:
        UsageError: the extra "export" is not installed, the example is no batch, or the names are
            not those of as many inputs.
        ModelError: the model can't be exported, or onnxruntime computes something else.
    """
    check_installed()
    model = uncached(model)
    whole = next(read_batches(uncut(model, [example]).batches, model))
    program, _, dynamic = torch_program(model, first_samples(whole), whole)
    given = check_input_names(names, input_names(program), tensors)
    try:
        with quiet():
            proto, weights = _simplified(program, tensors)
            name_(
                proto.graph, given, output_names(program), weights, _needed("onnx").helper.make_node
            )
    except Exception as error:  # of many kinds, for an operation that ONNX lacks among others
        raise ModelError(f"the model can't be exported to ONNX: {_why(error)}") from error
    used = _used(proto.graph)
    weights = {name: dtype for name, dtype in sorted(weights.items()) if name in used}
    samples = None if dynamic else whole.samples
    more = taps(proto, tensors, _needed("onnx").helper) if observe else b""
    graph = Graph(proto.SerializeToString(deterministic=True), weights, samples, more)
    _check(model, graph, tensors, first_samples(whole, _CHECKED_SAMPLES) if dynamic else whole)
    return graph


def check_installed() -> None:
    """Refuse to go on without what ONNX takes."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        _needed(name)


def _needed(name: str) -> Any:  # noqa: ANN401
    with quiet():
        return extra_module(name, "export", "ONNX")


def _simplified(
    program: torch.export.ExportedProgram, tensors: Mapping[str, Tensor]
) -> tuple[Proto, dict[str, str]]:
    """Return the graph without the tensors, and the dtypes that it wants of them."""
    exported: Any = torch.onnx.export(program, dynamo=True, optimize=False, verbose=False)
    _needed("onnx_ir.passes.common").NameFixPass()(exported.model)  # weights are named like values
    proto = exported.model_proto
    inputs, weights = _take_out_(proto, tensors, _needed("onnx").helper.make_tensor_value_info)
    return _bare(_needed("onnxscript.optimizer").optimize(proto), inputs), weights


def _why(error: Exception) -> str:
    """Return the first cause in one line; torch says at length in which step it found it."""
    return reason(error.__cause__ if isinstance(error.__cause__, Exception) else error)


def _take_out_(
    proto: Proto, tensors: Mapping[str, Tensor], info: Callable[..., Proto]
) -> tuple[int, dict[str, str]]:
    """Make inputs of all initializers that are tensors of the file, named as there.

    Returns:
        How many inputs there were before, and the dtype of each that came.
    """
    graph = proto.graph
    inputs = len(graph.input)
    found = [(one, _name_of(one, tensors)) for one in graph.initializer]
    names = {one.name: name for one, name in found if name is not None}
    others = [one for one, name in found if name is None]
    known = names_in(graph) | {one.name for one in others}
    clashing = sorted(known & set(names.values()) - names.keys())
    taken = known | set(names.values())
    for name in clashing:
        names[name] = free_name(name, taken)
        taken.add(names[name])
    rename_(graph, names)
    weights: dict[str, str] = {}
    for one, name in found:
        if name is not None and name not in weights:
            weights[name] = _DTYPES[one.data_type]
            graph.input.append(info(name, one.data_type, list(one.dims)))
    del graph.initializer[:]
    graph.initializer.extend(others)
    return inputs, weights


def _name_of(initializer: Proto, tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of the tensor that the initializer is: its own, or that of its bits."""
    own = [name for name in tensors if name == initializer.name]
    for name in (*own, *tensors):
        tensor, bits = tensors[name], bytes(initializer.raw_data)
        if bits and tensor.shape == tuple(initializer.dims) and _bits(tensor) == bits:
            return name
    return None


def _bits(tensor: Tensor) -> bytes:
    tensor = tensor.detach().cpu().contiguous()
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def _used(graph: Proto) -> set[str]:
    used = {output.name for output in graph.output}
    for node in graph.node:
        used |= set(node.input)
        for inner in inner_graphs(node):
            used |= _used(inner)
    return used


def _bare(proto: Proto, inputs: int) -> Proto:
    """Return the message without what no runtime needs, and with its first inputs alone."""
    del proto.graph.input[inputs:]
    del proto.graph.value_info[:]
    for part in (proto, proto.graph, *proto.graph.node, *proto.graph.input, *proto.graph.output):
        del part.metadata_props[:]
        part.ClearField("doc_string")
    for node in proto.graph.node:
        node.ClearField("name")
    return proto


def _check(model: nn.Module, graph: Graph, tensors: Mapping[str, Tensor], example: Batch) -> None:
    """Refuse a graph that does not compute what the model does."""
    graph = graph.tapped() if graph.taps else graph
    network = b"".join(filled(graph, lambda name: stored_as_is(tensors[name])))
    try:
        running = session_of(network)
        named = [node.name for node in running.get_inputs()]
        feed = dict(zip(named, example.tensors, strict=True))
        arrays = {name: tensor.detach().cpu().numpy() for name, tensor in feed.items()}
        have = [torch.as_tensor(value).double() for value in running.run(None, arrays)]
    except FlexrelError as error:
        raise ModelError(f"the model can't be used as ONNX: {error}") from error
    except Exception as error:
        raise ModelError(f"onnxruntime can't run the model: {reason(error)}") from error
    want = [value.cpu() for value in outputs(model, example)]
    found = difference(want, want, have[: len(want)])
    if isinstance(found, str) or found > _AGREE:
        raise ModelError(
            "onnxruntime computes something else than the model; the difference, as a share of "
            f"the largest output, is {found}"
        )
