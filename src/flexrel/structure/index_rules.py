"""What operations that look entries up by number, or put them there, say of axes."""

from typing import Any

from flexrel.structure.dependencies import DependencyBuilder
from flexrel.structure.move_rules import give_up
from flexrel.structure.trace import Operation


def index(d: DependencyBuilder, op: Operation) -> None:
    """Look entries up by number: what is looked up in keeps all of them."""
    x, (out,) = op.args["self"], op.outputs
    indices: list[Any] = op.args["indices"]
    looked = [at for at, i in enumerate(indices) if i is not None]
    first = looked[0]
    ranks = [len(indices[at].shape) for at in looked]
    adjacent = looked == list(range(first, first + len(looked)))
    if not adjacent or len(set(ranks)) > 1:
        give_up(d, op)
        return
    reason = f"{op.told} looks it up by number"
    axes = list(d.axes(x))
    for at in looked:
        d.bar(axes[at], reason)
    made = [d.fresh(n, reason) for n in out.shape[first : first + ranks[0]]]
    d.set(out, [*axes[:first], *made, *axes[first + len(looked) :]])


def bag(d: DependencyBuilder, op: Operation) -> None:
    """Add up rows of a table, which is a product with how often each is in the bag."""
    d.multiplied(op.args["weight"])
    give_up(d, op)


def look_up(d: DependencyBuilder, op: Operation) -> None:
    """Take rows of a table: the features of the rows go on, all rows stay."""
    table, indices, (out,) = op.args["weight"], op.args["indices"], op.outputs
    d.bar(d.axes(table)[0], f"{op.told} looks it up by number")
    d.role(d.axes(table)[1], "producer")
    d.set(out, [*d.axes(indices), d.axes(table)[1]])


def select(d: DependencyBuilder, op: Operation) -> None:
    """Take entries of one axis by number."""
    x, (out,) = op.args["self"], op.outputs
    dim = op.args["dim"] % len(x.shape)
    reason = f"{op.told} looks it up by number"
    axes = list(d.axes(x))
    d.bar(axes[dim], reason)
    axes[dim] = d.fresh(out.shape[dim], reason)
    d.set(out, axes)


def gather(d: DependencyBuilder, op: Operation) -> None:
    """Take entries along one axis by numbers, one for each entry that is made."""
    x, numbers = op.args["self"], op.args["index"]
    _along(d, op, [x, numbers], numbers)


def add_by_number(d: DependencyBuilder, op: Operation) -> None:
    """Add entries to those of one axis that have the numbers given, as messages along edges."""
    x, numbers = op.args["self"], op.args["index"]
    source = op.args.get("source", op.args.get("src"))
    same = len(numbers.shape) == len(x.shape) > 1  # a number for each entry, or for each slice
    _along(d, op, [x, source, *([numbers] if same else [])], x)
    if not same:
        d.bar_all([numbers], f"{op.told} puts it there by number")


def _along(d: DependencyBuilder, op: Operation, refs: list[Any], made: Any) -> None:  # noqa: ANN401
    """Join all axes of the tensors but one, along which numbers tell places; `made` has them."""
    dim = op.args["dim"] % len(made.shape)
    if any(
        len(ref.shape) != len(made.shape)
        or any(
            a != b for at, (a, b) in enumerate(zip(ref.shape, made.shape, strict=True)) if at != dim
        )
        for ref in refs
    ):
        give_up(d, op)
        return
    axes = list(d.axes(made))
    for ref in refs:
        for at, axis in enumerate(d.axes(ref)):
            if at == dim:
                d.bar(axis, f"{op.told} tells places along it by number")
            elif axis and axis is not axes[at]:
                axes[at] = d.join(axes[at], axis)
    d.set(op.outputs[0], axes)
