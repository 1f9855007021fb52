"""What operations that move entries about say of axes: views, concatenation, splits, padding."""

from itertools import accumulate
from math import prod
from typing import Any

import numpy as np

from flexrel.structure.dependencies import Axis, DependencyBuilder
from flexrel.structure.trace import Operation, Ref


def give_up(c: DependencyBuilder, op: Operation, reason: str = "") -> None:
    """Bar all that goes in and comes out, and follow what comes out from there on."""
    reason = reason or f"it goes through {op.name}, which can't be followed yet"
    c.bar_all(op.inputs, reason)
    for ref in op.outputs:
        c.set(ref, [c.fresh(size, reason) for size in ref.shape])


def view(c: DependencyBuilder, op: Operation) -> None:
    """Take axes apart and put them together; what fits no new axis is barred."""
    x, (out,) = op.inputs[0], op.outputs
    if prod(x.shape) != prod(out.shape) or 0 in x.shape:  # read as another type, or empty
        give_up(c, op)
        return
    rest: Axis = tuple(factor for axis in c.axes(x) for factor in axis)
    axes: list[Axis] = []
    for size in out.shape:
        parts = c.halves(rest, size)
        if parts is None:
            give_up(c, op, f"{op.name} makes axes of parts of others")
            return
        axes.append(parts[0])
        rest = parts[1]
    c.set(out, axes)
    c.sized(op)


def permute(c: DependencyBuilder, op: Operation) -> None:
    """Reorder axes."""
    x, (out,) = op.inputs[0], op.outputs
    order = list(range(len(x.shape)))
    if "dims" in op.args:
        order = [dim % len(order) for dim in op.args["dims"]]
    elif "dim0" in op.args:
        one, two = (op.args[key] % len(order) for key in ("dim0", "dim1"))
        order[one], order[two] = order[two], order[one]
    else:
        order.reverse()  # t, numpy_T
    c.set(out, [c.axes(x)[at] for at in order])


def expand(c: DependencyBuilder, op: Operation) -> None:
    """Repeat axes of length 1, and add axes in front."""
    x, (out,) = op.inputs[0], op.outputs
    axes = [()] * (len(out.shape) - len(x.shape)) + c.axes(x)
    c.set(out, [a or c.fresh(size) for a, size in zip(axes, out.shape, strict=True)])
    c.sized(op)


def repeat(c: DependencyBuilder, op: Operation) -> None:
    """Repeat whole axes a fixed number of times."""
    x, (out,) = op.inputs[0], op.outputs
    old = [()] * (len(out.shape) - len(x.shape)) + c.axes(x)
    reason = f"{op.name} repeats it a fixed number of times"
    axes = []
    for axis, size in zip(old, out.shape, strict=True):
        times = size // prod(map(len, axis))
        axes.append((*c.fresh(times, reason), *axis))
    c.set(out, axes)


def concatenate(c: DependencyBuilder, op: Operation) -> None:
    """Put axes one behind the other."""
    (out,) = op.outputs
    refs = [ref for ref in op.inputs if len(ref.shape) == len(out.shape)]  # others are empty
    dim = op.args.get("dim", 0) % len(out.shape)
    axes = []
    for at in range(len(out.shape)):
        given = [c.axes(ref)[at] for ref in refs]
        if at == dim:
            reason = f"{op.name} puts it beside others, alone"
            axes.append(_chained(c, given, [ref.shape[at] for ref in refs], reason))
            continue
        axis = given[0]
        for other in given[1:]:
            axis = c.join(axis, other)
        axes.append(axis)
    c.set(out, axes)


def _chained(c: DependencyBuilder, axes: list[Axis], sizes: list[int], reason: str) -> Axis:
    if sum(sizes) == 1:
        return ()
    pairs = [(axis, size) for axis, size in zip(axes, sizes, strict=True) if size]
    return (np.concatenate([c.flat(axis) if axis else c.one(reason) for axis, _ in pairs]),)


def stack(c: DependencyBuilder, op: Operation) -> None:
    """Put tensors side by side along a new axis."""
    (out,) = op.outputs
    refs = op.inputs
    dim = op.args.get("dim", 0) % len(out.shape)
    axes = list(c.axes(refs[0]))
    for ref in refs[1:]:
        axes = [c.join(a, b) for a, b in zip(axes, c.axes(ref), strict=True)]
    axes.insert(dim, c.fresh(len(refs), "it counts tensors that are put together"))
    c.set(out, axes)


def take(c: DependencyBuilder, op: Operation) -> None:
    """Take one index of an axis: which one is written down in the code."""
    x = op.inputs[0]
    dim = op.args.get("dim", 0) % len(x.shape)
    c.bar(c.axes(x)[dim], f"{op.name} takes some of it by number")
    axes = [axis for at, axis in enumerate(c.axes(x)) if at != dim]
    for ref in op.outputs:
        c.set(ref, list(axes))


def split(c: DependencyBuilder, op: Operation) -> None:
    """Cut an axis into pieces; equal ones stay equal if the code can't be told otherwise."""
    x = op.inputs[0]
    dim = op.args.get("dim", 0) % len(x.shape)
    ends = list(accumulate(ref.shape[dim] for ref in op.outputs))
    starts = [0, *ends[:-1]]
    _pieces(c, op, x, dim, list(zip(starts, ends, op.outputs, strict=True)))


def slice_(c: DependencyBuilder, op: Operation) -> None:
    """Take a range of an axis."""
    x, (out,) = op.inputs[0], op.outputs
    dim = op.args.get("dim", 0) % len(x.shape)
    size, step = x.shape[dim], op.args.get("step", 1)
    start, end, _ = slice(op.args.get("start"), op.args.get("end")).indices(size)
    if step == 1:
        _pieces(c, op, x, dim, [(start, end, out)])
        return
    reason = f"{op.name} takes every {step}th of it"
    axes = list(c.axes(x))
    c.bar(axes[dim], reason)
    axes[dim] = c.fresh(out.shape[dim], reason)
    c.set(out, axes)


def _pieces(
    c: DependencyBuilder, op: Operation, x: Ref, dim: int, pieces: list[tuple[int, int, Ref]]
) -> None:
    axis, size = c.axes(x)[dim], x.shape[dim]
    widths = {end - start for start, end, _ in pieces}
    whole = widths == {size}
    flat = c.flat(axis) if axis and not whole else np.zeros(0, np.int64)
    width = widths.pop()
    even = not widths and width and not whole and size % width == 0
    if even and not c.program and all(start % width == 0 for start, _, _ in pieces):
        rows = flat.reshape(-1, width)
        c.said.joined += [(rows[0], row) for row in rows[1:]]
    for start, end, ref in pieces:
        axes = list(c.axes(x))
        if not whole:
            axes[dim] = (flat[start:end],) if end - start > 1 else ()
            if end - start == 1:
                c.bar((flat[start:end],), f"{op.name} takes one of it")
        c.set(ref, axes)
    if not whole:
        c.sized(op)


def pad(c: DependencyBuilder, op: Operation) -> None:
    """Put constants around an axis: as many as the code says, before and after cuts."""
    x, (out,) = op.inputs[0], op.outputs
    amounts = op.args["pad"]  # last axis first
    axes = list(c.axes(x))
    for at in range(len(amounts) // 2):
        dim = len(axes) - 1 - at
        before, after = amounts[2 * at : 2 * at + 2]
        if not (before or after):
            continue
        if before < 0 or after < 0:
            reason = f"{op.name} cuts off some of it"
            c.bar(axes[dim], reason)
            axes[dim] = c.fresh(out.shape[dim], reason)
            continue
        reason = f"{op.name} puts it there, a fixed number"
        around = [c.fresh(before, reason), axes[dim], c.fresh(after, reason)]
        axes[dim] = _chained(c, around, [before, x.shape[dim], after], reason)
    c.set(out, axes)


def index(c: DependencyBuilder, op: Operation) -> None:
    """Look entries up by number: what is looked up in keeps all of them."""
    x, (out,) = op.args["self"], op.outputs
    indices: list[Any] = op.args["indices"]
    looked = [at for at, i in enumerate(indices) if i is not None]
    first = looked[0]
    ranks = [len(indices[at].shape) for at in looked]
    adjacent = looked == list(range(first, first + len(looked)))
    if not adjacent or len(set(ranks)) > 1:
        give_up(c, op)
        return
    reason = f"{op.name} looks it up by number"
    axes = list(c.axes(x))
    for at in looked:
        c.bar(axes[at], reason)
    made = [c.fresh(n, reason) for n in out.shape[first : first + ranks[0]]]
    c.set(out, [*axes[:first], *made, *axes[first + len(looked) :]])


def along(c: DependencyBuilder, op: Operation) -> None:
    """Work along one axis, entry by entry of the others."""
    x = op.inputs[0]
    dims = op.args.get("dim", op.args.get("dims", -1))
    for dim in [dims] if isinstance(dims, int) else dims:
        if x.shape:
            c.bar(c.axes(x)[dim], f"{op.name} works along it")
    for ref in op.outputs:
        pairs = zip(c.axes(x), x.shape, ref.shape, strict=True)
        c.set(ref, [axis if old == new else c.fresh(new) for axis, old, new in pairs])


def reduce(c: DependencyBuilder, op: Operation) -> None:
    """Make one value of all along some axes."""
    x = op.inputs[0]
    rank = len(x.shape)
    dims = op.args.get("dim")
    dims = [dims] if isinstance(dims, int) else dims or range(rank)
    gone = {dim % rank for dim in dims} if rank else set()
    axes: list[Axis] = []
    for at, axis in enumerate(c.axes(x)):
        if at in gone:
            c.bar(axis, f"{op.name} sums over it")
            axes += [()] if op.args.get("keepdim") else []
        else:
            axes.append(axis)
    for ref in op.outputs:
        c.set(ref, list(axes))


def spatial(c: DependencyBuilder, op: Operation) -> None:
    """Keep samples and channels; the last axes change, as in pooling and resizing."""
    x = op.inputs[0]
    count = next((n for n in (1, 2, 3) if f"{n}d" in op.name), 2)
    kept = len(x.shape) - count
    reason = f"{op.name} slides over it"
    for axis in c.axes(x)[kept:]:
        c.bar(axis, reason)
    for ref in op.outputs:
        made = [c.fresh(size, reason) for size in ref.shape[kept:]]
        c.set(ref, [*c.axes(x)[:kept], *made])


def shuffle(c: DependencyBuilder, op: Operation) -> None:
    """Take channels apart into groups and swap these with what is in them."""
    x, (out,) = op.inputs[0], op.outputs
    parts = c.halves(c.axes(x)[1], op.args["groups"])
    if parts is None:
        give_up(c, op)
        return
    c.bar(parts[0], f"{op.name} has a fixed number of groups")
    axes = list(c.axes(x))
    axes[1] = (*parts[1], *parts[0])
    c.set(out, axes)


def gate(c: DependencyBuilder, op: Operation) -> None:
    """Multiply one half of an axis by the other: an entry goes with its partner."""
    x, (out,) = op.inputs[0], op.outputs
    dim = op.args.get("dim", -1) % len(x.shape)
    parts = c.halves(c.axes(x)[dim], 2)
    if parts is None:
        give_up(c, op)
        return
    c.bar(parts[0], f"{op.name} has two halves")
    axes = list(c.axes(x))
    axes[dim] = parts[1]
    c.set(out, axes)


def pixels(c: DependencyBuilder, op: Operation) -> None:
    """Turn channels into pixels, or pixels into channels: a channel keeps its square."""
    x, (out,) = op.inputs[0], op.outputs
    kept = len(x.shape) - 3
    axes = list(c.axes(x)[:kept])
    reason = f"{op.name} slides over it"
    for axis in c.axes(x)[kept + 1 :]:
        c.bar(axis, reason)
    if op.name.endswith("unshuffle"):
        square = op.args["downscale_factor"] ** 2
        axes.append((*c.axes(x)[kept], *c.fresh(square, reason)))
    else:
        parts = c.halves(c.axes(x)[kept], out.shape[kept])
        if parts is None:
            give_up(c, op)
            return
        c.bar(parts[1], reason)
        axes.append(parts[0])
    c.set(out, [*axes, *(c.fresh(n, reason) for n in out.shape[kept + 1 :])])


def unfold(c: DependencyBuilder, op: Operation) -> None:
    """Lay out windows: each channel becomes a stripe of kernel positions."""
    x, (out,) = op.inputs[0], op.outputs
    reason = f"{op.name} slides over it"
    kept = len(x.shape) - 3
    for axis in c.axes(x)[kept + 1 :]:
        c.bar(axis, reason)
    channels = c.axes(x)[kept]
    kernel = out.shape[kept] // x.shape[kept]
    stripes = (*channels, *c.fresh(kernel, reason))
    c.set(out, [*c.axes(x)[:kept], stripes, c.fresh(out.shape[-1], reason)])


def windows(c: DependencyBuilder, op: Operation) -> None:
    """Lay out the windows of one axis, with a new axis for what is in each."""
    x, (out,) = op.inputs[0], op.outputs
    dim = op.args["dimension"] % len(x.shape)
    reason = f"{op.name} slides over it"
    c.bar(c.axes(x)[dim], reason)
    axes = list(c.axes(x))
    axes[dim] = c.fresh(out.shape[dim], reason)
    c.set(out, [*axes, c.fresh(out.shape[-1], reason)])


def look_up(c: DependencyBuilder, op: Operation) -> None:
    """Take rows of a table: the features of the rows go on, all rows stay."""
    table, indices, (out,) = op.args["weight"], op.args["indices"], op.outputs
    c.bar(c.axes(table)[0], f"{op.name} looks it up by number")
    c.role(c.axes(table)[1], "producer")
    c.set(out, [*c.axes(indices), c.axes(table)[1]])
