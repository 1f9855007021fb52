"""The numbers in an exported program's code: which of them fall as units go, and by how much.

A program's graph holds sizes as plain numbers. Each that is rewritten here is the length of a
list of positions: of an axis that an operation makes, of the part of an axis before a slice, of
the groups of a convolution. It falls by the positions whose units go.
"""

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from flexrel.core.graph import ProgramSize, PruningGroup
from flexrel.core.plan import Plan
from flexrel.structure.dependencies import Axis, AxisDependencies, Indices
from flexrel.structure.groups import ResolvedUnits, group_of_units

SizeReading = tuple[str, int | None, Indices]  # argument, place in it, units at what it counts


def program_sizes_of(
    program: fx.GraphModule,
    dependencies: AxisDependencies,
    units: ResolvedUnits,
    groups: Sequence[PruningGroup],
) -> Iterator[ProgramSize]:
    """Yield the numbers of a program that fall as units of the groups go.

    Args:
        program: as `exported_program` makes it.
        dependencies: of the program's trace.
        units: of the dependencies.
        groups: of those units.
    """
    reader = _Reader(dependencies, units, groups)
    for node in program.graph.nodes:
        rule = _SIZE_RULES.get(aten_name(node))
        for argument, place, at in rule(node, reader) if rule else ():
            gone = reader.by_group(at)
            if gone and _read(node, argument, place) is not None:
                yield ProgramSize(node.name, argument, place, len(at), gone)


def resize_program_(program: fx.GraphModule, plan: Plan) -> None:
    """Rewrite the numbers of a program to what the plan leaves of them.

    A number that depends on the batch, as samples x heads does, is scaled as it is computed.
    """
    graph = program.graph
    nodes = {node.name: node for node in graph.nodes}
    for number in plan.graph.program_sizes:
        gone = (each[~plan.masks[g]] for g, each in number.units.items() if g in plan.masks)
        less = sum(int(each.sum()) for each in gone)
        if not less:
            continue
        node = nodes[number.node]
        new: int | fx.Node = number.value - less
        old = _read(node, number.argument, number.place)
        if isinstance(old, fx.Node):
            with graph.inserting_before(node):
                product = graph.call_function(operator.mul, (old, new))
                new = graph.call_function(operator.floordiv, (product, number.value))
        _write(node, number, new)
    program.recompile()


def aten_name(node: fx.Node) -> str:
    """Return the name of a node's ATen operation; "" of another node's."""
    target = node.target
    return target.overloadpacket.__name__ if isinstance(target, torch._ops.OpOverload) else ""  # noqa: SLF001 - no public name


def argument_of(node: fx.Node, name: str) -> Any:  # noqa: ANN401 - of any type
    """Return an argument of a node by its name in the operation's schema; None if not given."""
    if name in node.kwargs:
        return node.kwargs[name]
    at = _index(node, name)
    return node.args[at] if at < len(node.args) else None


def _index(node: fx.Node, name: str) -> int:
    names: list[str] = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr] # noqa: SLF001 - as fx itself
    return names.index(name)


def _read(node: fx.Node, argument: str, place: int | None) -> Any:  # noqa: ANN401 - int or Node
    """Return the number; None where it is not given or leaves the size to torch."""
    value = argument_of(node, argument)
    if place is not None and value is not None:
        value = value[place]
    return None if isinstance(value, int) and value < 0 else value


def _write(node: fx.Node, number: ProgramSize, new: int | fx.Node) -> None:
    value: Any = new
    if number.place is not None:
        value = list(argument_of(node, number.argument))
        value[number.place] = new
    if number.argument in node.kwargs:
        node.update_kwarg(number.argument, value)
    else:
        node.update_arg(_index(node, number.argument), value)


class _Reader:
    """Knows which unit, if any, goes with each position of each axis of a graph's values."""

    def __init__(
        self, dependencies: AxisDependencies, units: ResolvedUnits, groups: Sequence[PruningGroup]
    ) -> None:
        self._nodes, self._of = dependencies.nodes, units.of
        self._owner = group_of_units(dependencies, units, groups)
        self._sizes = {group.name: group.units for group in groups}

    def axes(self, node: fx.Node, output: int = 0) -> list[Indices]:
        """Return the units at each axis of what a node makes; -1 where a position stays."""
        made = self._nodes.get(node.name, [])
        return [self._positions(axis) for axis in made[output]] if output < len(made) else []

    def _positions(self, axis: Axis) -> Indices:
        shape = tuple(map(len, axis))
        found = np.full(shape, -1)
        for at, factor in enumerate(axis):  # one of them at most is cut
            told = [1] * len(shape)
            told[at] = -1
            units = np.array([u if u in self._owner else -1 for u in self._of[factor].tolist()])
            found = np.maximum(found, units.reshape(told))
        return found.ravel()

    def by_group(self, positions: Indices) -> Mapping[str, torch.Tensor]:
        """Return how many of the positions go with each unit of each group."""
        found: dict[str, torch.Tensor] = {}
        for unit in positions[positions >= 0].tolist():
            group, at = self._owner[unit]
            each = found.setdefault(group, torch.zeros(self._sizes[group], dtype=torch.int64))
            each[at] += 1
        return found


# --- one rule a kind of operation ---------------------------------------------------------------


SizeRule = Callable[[fx.Node, _Reader], Iterator[SizeReading]]


def _sizes(argument: str) -> SizeRule:
    """Read a list of the lengths of all axes that are made."""

    def rule(node: fx.Node, reader: _Reader) -> Iterator[SizeReading]:
        for at, positions in enumerate(reader.axes(node)):
            yield argument, at, positions

    return rule


def _unflatten(node: fx.Node, reader: _Reader) -> Iterator[SizeReading]:
    axes = reader.axes(node)
    count = len(argument_of(node, "sizes"))
    dim = argument_of(node, "dim") % (len(axes) - count + 1) if axes else 0
    for at, positions in enumerate(axes[dim : dim + count]):
        yield "sizes", at, positions


def _split(node: fx.Node, reader: _Reader) -> Iterator[SizeReading]:
    for at in range(len(argument_of(node, "split_sizes"))):
        if axes := reader.axes(node, at):
            yield "split_sizes", at, axes[argument_of(node, "dim") or 0]


def _slice(node: fx.Node, reader: _Reader) -> Iterator[SizeReading]:
    axes = reader.axes(argument_of(node, "self"))
    if not axes:
        return
    whole = axes[argument_of(node, "dim") or 0]
    for argument in ("start", "end"):
        limit = argument_of(node, argument)
        if isinstance(limit, int) and 0 <= limit <= len(whole):
            yield argument, None, whole[:limit]


def _narrow(node: fx.Node, reader: _Reader) -> Iterator[SizeReading]:
    axes, made = reader.axes(argument_of(node, "input")), reader.axes(node)
    start, dim = argument_of(node, "start"), argument_of(node, "dim")
    if axes and made and isinstance(start, int):
        yield "start", None, axes[dim][:start]
        yield "length", None, made[dim]


def _groups(argument: str) -> SizeRule:
    """Read a number of groups of channels; a group goes if all in it are of one unit."""

    def rule(node: fx.Node, reader: _Reader) -> Iterator[SizeReading]:
        groups = argument_of(node, argument) or 1
        axes = reader.axes(argument_of(node, "input"))
        if axes and groups > 1:
            rows = axes[1].reshape(groups, -1)
            yield argument, None, np.where((rows == rows[:, :1]).all(1), rows[:, 0], -1)

    return rule


_CONVOLUTIONS = (
    "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution"
)


SIZED_BY_LIST = (
    "zeros ones full empty new_zeros new_ones new_full new_empty"  # by a list of lengths
)


def _table() -> dict[str, SizeRule]:
    groups: list[tuple[str, SizeRule]] = [
        (f"view _unsafe_view expand {SIZED_BY_LIST}", _sizes("size")),
        ("reshape", _sizes("shape")),
        ("unflatten", _unflatten),
        ("split_with_sizes", _split),
        ("slice", _slice),
        ("narrow", _narrow),
        (_CONVOLUTIONS, _groups("groups")),
        ("group_norm", _groups("num_groups")),
    ]
    return {name: rule for names, rule in groups for name in names.split()}


_SIZE_RULES = _table()
