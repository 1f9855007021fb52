"""Names in an ONNX graph as people read them: inputs by `forward`, outputs by key, axes."""

import re
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from typing import Any, Final

import torch
from torch.export.graph_signature import InputKind, TensorArgument
from torch.utils import _pytree

from flexrel.errors import UsageError

SAMPLES: Final = "batch"  # the axis that any number of samples may be along
_OUTPUT: Final = "output"  # one that has no key
_GRAPHS: Final = (5, 10)  # AttributeProto.GRAPH and GRAPHS
Proto = Any  # of onnx, which is an extra


def input_names(program: torch.export.ExportedProgram) -> list[str]:
    """Return the names of a program's tensor inputs, in their order: those of `forward`."""
    return [
        spec.arg.name
        for spec in program.graph_signature.input_specs
        if spec.kind is InputKind.USER_INPUT and isinstance(spec.arg, TensorArgument)
    ]


def output_names(program: torch.export.ExportedProgram) -> list[str]:
    """Return names of a program's tensor outputs, in their order.

    "output" for one alone, "output_0" in a tuple, the key in a dict, and "key_0" in a tuple there.
    """
    spec = program.call_spec.out_spec
    leaves = [] if spec is None else list(range(spec.num_leaves))
    tree = None if spec is None else _pytree.tree_unflatten(leaves, spec)
    paths, _ = _pytree.tree_flatten_with_path(tree)
    outputs = program.graph_signature.output_specs
    return [
        _told(path)
        for (path, _), output in zip(paths, outputs[-len(paths) :], strict=True)
        if isinstance(output.arg, TensorArgument)
    ]


def _told(path: Sequence[Any]) -> str:
    parts = []
    for key in path:
        known = (getattr(key, name, None) for name in ("key", "name", "idx"))
        parts.append(next((str(part) for part in known if part is not None), str(key)))
    unnamed = not path or hasattr(path[0], "idx")
    return "_".join([_OUTPUT, *parts] if unnamed else parts)


def check_input_names(
    wanted: Sequence[str], found: Sequence[str], weights: Container[str]
) -> Sequence[str]:
    """Return the names that are asked for; those that were found where none are.

    Args:
        wanted: names for the inputs, in their order; none: as they are.
        found: names that they have.
        weights: names that are taken.

    Raises:
        UsageError: they are not as many as the inputs, or not each another's.
    """
    if not wanted:
        return found
    if len(wanted) != len(found):
        raise UsageError(
            f"{len(wanted)} names of inputs ({', '.join(wanted)}) for a network that takes "
            f"{len(found)}: {', '.join(found)}"
        )
    for at, name in enumerate(wanted):
        if not name or name in wanted[:at] or name in weights:
            why = "is a weight's" if name in weights else "is there twice" if name else "is none"
            raise UsageError(f"name {name!r} of an input {why}; give each a name of its own")
    return wanted


def name_(
    graph: Proto,
    inputs: Sequence[str],
    outputs: Sequence[str],
    weights: Collection[str],
    node: Callable[..., Proto],
) -> None:
    """Name a graph's inputs, outputs and axes; what is in its way gets another name.

    Args:
        graph: changed in place.
        inputs: a name for each, in their order.
        outputs: likewise; one that is a weight's or an input's gets underscores.
        weights: names of tensors that the graph reads and are not in it; they stay.
        node: makes a NodeProto, as `onnx.helper.make_node`.
    """
    taken, new = set(weights), dict[str, str]()
    for value, name in zip(graph.input, inputs, strict=True):
        new[value.name] = free_name(name, taken)
        taken.add(new[value.name])
    fixed = {*new, *weights}  # an output that is one of these, or twice, is named by a copy
    copies: list[tuple[Proto, str]] = []
    for value, name in zip(graph.output, outputs, strict=True):
        unused = free_name(name, taken)
        taken.add(unused)
        if value.name in fixed:
            copies.append((value, unused))
        else:
            new[value.name] = unused
            fixed.add(value.name)
    known = names_in(graph) | {one.name for one in graph.initializer}
    for name in sorted((known & taken) - new.keys()):
        new[name] = free_name(name, taken | known)
        taken.add(new[name])
    rename_(graph, new)
    for value, name in copies:
        graph.node.append(node("Identity", [value.name], [name]))
        value.name = name
    _name_axes_(graph)


def _name_axes_(graph: Proto) -> None:
    """Name the axis of samples in all inputs and outputs, where their number is open."""
    values = (*graph.input, *graph.output)
    axes = [axis for value in values for axis in value.type.tensor_type.shape.dim]
    first = (value.type.tensor_type.shape.dim[:1] for value in graph.input)
    symbols = {axis.dim_param for found in first for axis in found if axis.dim_param}
    for axis in axes if symbols else ():
        if axis.dim_param:
            any_of = rf"\b({'|'.join(map(re.escape, sorted(symbols)))})\b"
            axis.dim_param = re.sub(any_of, SAMPLES, axis.dim_param)


def free_name(name: str, taken: Container[str]) -> str:
    """Return the name, with as many underscores as it takes to be no other's."""
    while name in taken:
        name += "_"
    return name


def names_in(graph: Proto) -> set[str]:
    """Return the names of all values in the graph that are made in it or given to it."""
    names = {value.name for value in graph.input}
    for node in graph.node:
        names |= set(node.output)
        for inner in inner_graphs(node):
            names |= names_in(inner) | {one.name for one in inner.initializer}
    return names


def rename_(graph: Proto, names: Mapping[str, str]) -> None:
    """Give values other names, wherever they are made or read."""
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for inner in inner_graphs(node):
            rename_(inner, names)


def inner_graphs(node: Proto) -> Iterable[Proto]:
    """Return the graphs inside a node, as of a branch or a loop."""
    attributes = [a for a in node.attribute if a.type in _GRAPHS]
    return [g for a in attributes for g in ((a.g,) if a.HasField("g") else a.graphs)]
