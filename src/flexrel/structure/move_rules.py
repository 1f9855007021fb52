"""What operations that move entries about say of axes: views, concatenation, splits, padding."""

from itertools import accumulate
from math import prod

import numpy as np

from flexrel.structure.dependencies import Axis, DependencyBuilder
from flexrel.structure.trace import Operation, Ref

_INSTEAD = {  # part of an operation's name -> what makes it one that can be followed
    "grouped_mm": "model.set_experts_implementation('eager') computes experts one by one",
    "fake_quant": "prune the network before it is prepared for quantisation",
    "_fq_helper": "prune the network before it is prepared for quantisation",
}


def give_up(d: DependencyBuilder, op: Operation, reason: str = "") -> None:
    """Bar all that goes in and comes out, and follow what comes out from there on."""
    instead = next((f"; {told}" for part, told in _INSTEAD.items() if part in op.name), "")
    reason = reason or f"it goes through {op.told}, which can't be followed yet{instead}"
    d.bar_all(op.inputs, reason)
    for ref in op.outputs:
        d.set(ref, [d.fresh(size, reason) for size in ref.shape])


def view(d: DependencyBuilder, op: Operation) -> None:
    """Take axes apart and put them together; what fits no new axis is barred."""
    x, (out,) = op.inputs[0], op.outputs
    if prod(x.shape) != prod(out.shape) or 0 in x.shape:  # read as another type, or empty
        give_up(d, op)
        return
    rest: Axis = tuple(factor for axis in d.axes(x) for factor in axis)
    axes: list[Axis] = []
    for size in out.shape:
        parts = d.halves(rest, size)
        if parts is None:
            give_up(d, op, f"{op.told} makes axes of parts of others")
            return
        axes.append(parts[0])
        rest = parts[1]
    d.set(out, axes)
    d.sized(op)


def permute(d: DependencyBuilder, op: Operation) -> None:
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
    d.set(out, [d.axes(x)[at] for at in order])


def expand(d: DependencyBuilder, op: Operation) -> None:
    """Repeat axes of length 1, and add axes in front."""
    x, (out,) = op.inputs[0], op.outputs
    axes = [()] * (len(out.shape) - len(x.shape)) + d.axes(x)
    d.set(out, [a or d.fresh(size) for a, size in zip(axes, out.shape, strict=True)])
    d.sized(op)


def repeat(d: DependencyBuilder, op: Operation) -> None:
    """Repeat whole axes a fixed number of times."""
    x, (out,) = op.inputs[0], op.outputs
    old = [()] * (len(out.shape) - len(x.shape)) + d.axes(x)
    reason = f"{op.told} repeats it a fixed number of times"
    axes = []
    for axis, size in zip(old, out.shape, strict=True):
        times = size // prod(map(len, axis))
        axes.append((*d.fresh(times, reason), *axis))
    d.set(out, axes)


def concatenate(d: DependencyBuilder, op: Operation) -> None:
    """Put axes one behind the other."""
    (out,) = op.outputs
    refs = [ref for ref in op.inputs if len(ref.shape) == len(out.shape)]  # others are empty
    dim = op.args.get("dim", 0) % len(out.shape)
    axes = []
    for at in range(len(out.shape)):
        given = [d.axes(ref)[at] for ref in refs]
        if at == dim:
            reason = f"{op.told} puts it beside others, alone"
            axes.append(_chained(d, given, [ref.shape[at] for ref in refs], reason))
            continue
        axis = given[0]
        for other in given[1:]:
            axis = d.join(axis, other)
        axes.append(axis)
    d.set(out, axes)


def _chained(d: DependencyBuilder, axes: list[Axis], sizes: list[int], reason: str) -> Axis:
    if sum(sizes) == 1:
        return ()
    pairs = [(axis, size) for axis, size in zip(axes, sizes, strict=True) if size]
    return (np.concatenate([d.flat(axis) if axis else d.fixed(reason) for axis, _ in pairs]),)


def stack(d: DependencyBuilder, op: Operation) -> None:
    """Put tensors side by side along a new axis."""
    (out,) = op.outputs
    refs = op.inputs
    dim = op.args.get("dim", 0) % len(out.shape)
    axes = list(d.axes(refs[0]))
    for ref in refs[1:]:
        axes = [d.join(a, b) for a, b in zip(axes, d.axes(ref), strict=True)]
    axes.insert(dim, d.fresh(len(refs), "it counts tensors that are put together"))
    d.set(out, axes)


def take(d: DependencyBuilder, op: Operation) -> None:
    """Take one index of an axis: which one is written down in the code."""
    x = op.inputs[0]
    dim = op.args.get("dim", 0) % len(x.shape)
    d.bar(d.axes(x)[dim], f"{op.told} takes some of it by number")
    axes = [axis for at, axis in enumerate(d.axes(x)) if at != dim]
    for ref in op.outputs:
        d.set(ref, list(axes))


def pieces(d: DependencyBuilder, op: Operation) -> None:
    """Cut an axis into pieces; equal ones stay equal if the code can't be told otherwise."""
    x = op.inputs[0]
    dim = op.args.get("dim", 0) % len(x.shape)
    ends = list(accumulate(ref.shape[dim] for ref in op.outputs))
    starts = [0, *ends[:-1]]
    _take_ranges(d, op, x, dim, list(zip(starts, ends, op.outputs, strict=True)))


def slice_(d: DependencyBuilder, op: Operation) -> None:
    """Take a range of an axis."""
    x, (out,) = op.inputs[0], op.outputs
    dim = op.args.get("dim", 0) % len(x.shape)
    size, step = x.shape[dim], op.args.get("step", 1)
    start, end, _ = slice(op.args.get("start"), op.args.get("end")).indices(size)
    if step == 1:
        _take_ranges(d, op, x, dim, [(start, end, out)])
        return
    reason = f"{op.told} takes every {step}th of it"
    axes = list(d.axes(x))
    d.bar(axes[dim], reason)
    axes[dim] = d.fresh(out.shape[dim], reason)
    d.set(out, axes)


def _take_ranges(
    d: DependencyBuilder, op: Operation, x: Ref, dim: int, ranges: list[tuple[int, int, Ref]]
) -> None:
    axis, size = d.axes(x)[dim], x.shape[dim]
    widths = {end - start for start, end, _ in ranges}
    whole = widths == {size}
    flat = d.flat(axis) if axis and not whole else np.zeros(0, np.int64)
    width = widths.pop()
    even = not widths and width and not whole and size % width == 0
    if even and not d.program and all(start % width == 0 for start, _, _ in ranges):
        rows = flat.reshape(-1, width)
        d.said.joined += [(rows[0], row) for row in rows[1:]]
    for start, end, ref in ranges:
        axes = list(d.axes(x))
        if not whole:
            axes[dim] = (flat[start:end],) if end - start > 1 else ()
            if end - start == 1:
                d.bar((flat[start:end],), f"{op.told} takes one of it")
        d.set(ref, axes)
    if not whole:
        d.sized(op)


def pad(d: DependencyBuilder, op: Operation) -> None:
    """Put constants around an axis: as many as the code says, before and after cuts."""
    x, (out,) = op.inputs[0], op.outputs
    amounts = op.args["pad"]  # last axis first
    axes = list(d.axes(x))
    for at in range(len(amounts) // 2):
        dim = len(axes) - 1 - at
        before, after = amounts[2 * at : 2 * at + 2]
        if not (before or after):
            continue
        if before < 0 or after < 0:
            reason = f"{op.told} cuts off some of it"
            d.bar(axes[dim], reason)
            axes[dim] = d.fresh(out.shape[dim], reason)
            continue
        reason = f"{op.told} puts it there, a fixed number"
        around = [d.fresh(before, reason), axes[dim], d.fresh(after, reason)]
        axes[dim] = _chained(d, around, [before, x.shape[dim], after], reason)
    d.set(out, axes)


def shuffle(d: DependencyBuilder, op: Operation) -> None:
    """Take channels apart into groups and swap these with what is in them."""
    x, (out,) = op.inputs[0], op.outputs
    parts = d.halves(d.axes(x)[1], op.args["groups"])
    if parts is None:
        give_up(d, op)
        return
    d.bar(parts[0], f"{op.told} has a fixed number of groups")
    axes = list(d.axes(x))
    axes[1] = (*parts[1], *parts[0])
    d.set(out, axes)


def gate(d: DependencyBuilder, op: Operation) -> None:
    """Multiply one half of an axis by the other: an entry goes with its partner."""
    x, (out,) = op.inputs[0], op.outputs
    dim = op.args.get("dim", -1) % len(x.shape)
    parts = d.halves(d.axes(x)[dim], 2)
    if parts is None:
        give_up(d, op)
        return
    d.bar(parts[0], f"{op.told} has two halves")
    axes = list(d.axes(x))
    axes[dim] = parts[1]
    d.set(out, axes)


def pixels(d: DependencyBuilder, op: Operation) -> None:
    """Turn channels into pixels, or pixels into channels: a channel keeps its square."""
    x, (out,) = op.inputs[0], op.outputs
    kept = len(x.shape) - 3
    axes = list(d.axes(x)[:kept])
    reason = f"{op.told} slides over it"
    for axis in d.axes(x)[kept + 1 :]:
        d.bar(axis, reason)
    if op.name.endswith("unshuffle"):
        square = op.args["downscale_factor"] ** 2
        axes.append((*d.axes(x)[kept], *d.fresh(square, reason)))
    else:
        parts = d.halves(d.axes(x)[kept], out.shape[kept])
        if parts is None:
            give_up(d, op)
            return
        d.bar(parts[1], reason)
        axes.append(parts[0])
    d.set(out, [*axes, *(d.fresh(n, reason) for n in out.shape[kept + 1 :])])


def unfold(d: DependencyBuilder, op: Operation) -> None:
    """Lay out windows: each channel becomes a stripe of kernel positions."""
    x, (out,) = op.inputs[0], op.outputs
    reason = f"{op.told} slides over it"
    kept = len(x.shape) - 3
    for axis in d.axes(x)[kept + 1 :]:
        d.bar(axis, reason)
    channels = d.axes(x)[kept]
    kernel = out.shape[kept] // x.shape[kept]
    stripes = (*channels, *d.fresh(kernel, reason))
    d.set(out, [*d.axes(x)[:kept], stripes, d.fresh(out.shape[-1], reason)])
