"""A network as a program of its own, for where its class holds fixed numbers.

`torch.export` writes down what the network does as a graph that needs none of its code. Its
numbers, unlike those in a class, can be rewritten, so that more of it can be cut.
"""

import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn

from flexrel.core.batches import Batch
from flexrel.core.running import reason, undisturbed
from flexrel.errors import ModelError
from flexrel.structure.program_sizes import argument_of, aten_name
from flexrel.structure.trace import slow_path
from flexrel.structure.verify import difference, outputs

_UNKNOWN = re.compile(r"Found <class '(.+?)'> in (\w+), which is not a known type")
_ENOUGH = 2  # samples; torch takes an axis of one for one that is never longer


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """What a network does on an example, in evaluation mode.

    Attributes:
        graph: shares its parameters with the network, under the same names.
        example: that it was exported on.
        dynamic: whether it runs on any number of samples, else on as many as the example has.
    """

    graph: fx.GraphModule
    example: Batch
    dynamic: bool


def exported_program(model: nn.Module, example: Batch, whole: Batch | None = None) -> Program:
    """Return the model as a program, for any number of samples if torch can tell that it is.

    Args:
        model: not changed.
        example: one or two samples, or a batch that stays whole.
        whole: a batch as it will be used, for a model that is fixed to its number of samples;
            without it the example.

    Raises:
        ModelError: the model can't be exported, or computes something else then.
    """
    exported, example, dynamic = torch_program(model, example, whole)
    graph = _plain(exported.module(), model)
    want, have = outputs(model, example), outputs(graph, example)
    found = difference(want, want, have)
    if isinstance(found, str) or found > _AGREE:
        raise ModelError(f"the model can't be exported: the program's outputs differ, {found}")
    return Program(graph, example, dynamic)


def torch_program(
    model: nn.Module, example: Batch, whole: Batch | None = None
) -> tuple[torch.export.ExportedProgram, Batch, bool]:
    """Return the model as torch's own program, what it was exported on, and if it is dynamic.

    Args:
        model: as for `exported_program`.
        example: likewise.
        whole: likewise.

    Raises:
        ModelError: the model can't be exported.
    """
    if example.whole:
        return _export(model, example, dynamic=False), example, False
    try:
        example = _doubled(example)
        return _export(model, example, dynamic=True), example, True
    except ModelError:
        example = whole or example
        return _export(model, example, dynamic=False), example, False


_AGREE = 1e-4  # the difference that export may make, as a share of the largest output


def program_bytes(program: Program, network: nn.Module) -> bytes:
    """Return a cut of the program as the content of a `.pt2` file.

    Raises:
        ModelError: it can't be exported any more.
    """
    file = io.BytesIO()
    with quiet():
        torch.export.save(_export(network, program.example, dynamic=program.dynamic), file)
    return file.getvalue()


def _export(model: nn.Module, example: Batch, *, dynamic: bool) -> torch.export.ExportedProgram:
    shapes = torch.export.ShapesCollection()
    example = _over(example, torch.clone)  # export leaves marks on tensors
    for tensor in example.tensors if dynamic else ():
        if tensor.ndim and len(tensor) == example.samples:
            shapes[tensor] = {0: torch.export.Dim.DYNAMIC}
    given = shapes.dynamic_shapes(model, example.args, dict(example.kwargs)) if dynamic else None
    try:
        with undisturbed(model), slow_path(), torch.enable_grad(), quiet():
            return torch.export.export(
                model, example.args, dict(example.kwargs), dynamic_shapes=given, strict=False
            )
    except Exception as error:  # of the user's code, and many of torch's own
        raise ModelError(f"the model can't be exported: {_why(error)}") from error


def _why(error: Exception) -> str:
    """Return an error of export in one line, with the line of code that it came from."""
    if unknown := _UNKNOWN.search(str(error)):
        kind, where = unknown[1].rpartition(".")[2], unknown[2]
        return (
            f"its {where} is, or holds, an object of class {kind}, and no more than tensors in "
            "tuples, lists and dicts can be; a model that returns a cache takes use_cache=False"
        )
    lines = [line.strip() for line in str(error).splitlines()]
    at = [line for line in lines if line.startswith('File "') and "/torch/" not in line]
    return f"{reason(error)} ({at[-1]})" if at else reason(error)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what torch says while it exports, warnings of its own and whole graphs, to itself."""
    before = logging.root.manager.disable
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


def _doubled(example: Batch) -> Batch:
    if example.samples >= _ENOUGH:
        return example

    def twice(value: Tensor) -> Tensor:
        whole = value.ndim > 0 and len(value) == example.samples
        return torch.cat([value, value]) if whole else value

    return _over(example, twice)


def _over(example: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """Return the inputs alone, with each tensor changed."""
    inputs = replace(example, labels=None, weights=None)
    return inputs.mapped(lambda value: change(value) if isinstance(value, Tensor) else value)


def _plain(module: fx.GraphModule, model: nn.Module) -> fx.GraphModule:
    """Return the exported module without its checks of inputs, and with the model's own names.

    A tied parameter has its first name, as in `named_parameters()`.
    """
    graph = module.graph
    named = [*model.named_parameters(), *model.named_buffers()]
    first = {id(tensor): name for name, tensor in reversed(named)}
    values = {}
    for node in list(graph.nodes):
        if node.op == "get_attr":
            value = _attribute(module, str(node.target))
            node.target = first.get(id(value), node.target)
            values[str(node.target)] = value
        elif node.target == "_guards_fn" or aten_name(node) == "_assert_tensor_metadata":
            graph.erase_node(node)
        elif node.op == "call_module":
            values[str(node.target)] = module.get_submodule(str(node.target))
        elif aten_name(node) in ("split", "chunk", "tensor_split"):
            _name_sizes_(node)
        elif aten_name(node) == "slice":
            _name_ends_(node)
    plain = fx.GraphModule(values, graph)
    plain.train(model.training)
    return plain


def _attribute(module: nn.Module, name: str) -> object:
    path, _, attribute = name.rpartition(".")
    return getattr(module.get_submodule(path), attribute)


def _name_sizes_(node: fx.Node) -> None:
    """Say the size of each piece of a split, so that each can be rewritten by itself."""
    dim = argument_of(node, "dim") or 0
    sizes = [piece.shape[dim] for piece in node.meta["val"]]
    if all(isinstance(size, int) for size in sizes):
        node.target = torch.ops.aten.split_with_sizes.default
        node.args, node.kwargs = (argument_of(node, "self"), sizes, dim), {}


def _name_ends_(node: fx.Node) -> None:
    """Say where a slice starts and ends, counted from the front."""
    size = argument_of(node, "self").meta["val"].shape[argument_of(node, "dim") or 0]
    start, end = argument_of(node, "start"), argument_of(node, "end")
    numbers = all(isinstance(limit, int | None) for limit in (start, end, size))
    if numbers and (start or end is not None):
        start, end, step = slice(start, end, argument_of(node, "step")).indices(size)
        node.args = (argument_of(node, "self"), argument_of(node, "dim") or 0, start, end, step)
        node.kwargs = {}
