"""What operations that run along axes say of them: norms, attention, reductions, pooling."""

from math import prod

from flexrel.structure.dependencies import Axis, DependencyBuilder
from flexrel.structure.move_rules import give_up
from flexrel.structure.trace import Operation, Ref


def _taken_together(d: DependencyBuilder, op: Operation, x: Ref, does: str) -> str:
    """Return why an axis can't be cut that an operation works over, all entries together."""
    if d.is_weight(x):  # as NFNets do
        return f"the weights along it are standardised together on the way, by {op.told}"
    return f"{op.told} {does} over it"


def batch_norm(d: DependencyBuilder, op: Operation) -> None:
    """Scale channel by channel, over samples and places; in training over both of them."""
    x = op.args["input"]
    axes = list(d.axes(x))
    if op.args.get("training"):  # of a weight that is standardised, too
        for axis in (axes[0], *axes[2:]):
            d.bar(axis, _taken_together(d, op, x, "normalises"))
    for name in ("weight", "bias", "running_mean", "running_var"):
        if op.args.get(name) is not None:
            axes[1] = d.join(axes[1], d.axes(op.args[name])[0])
    d.sized(op, [axes[1]])
    d.set(op.outputs[0], axes)


def layer_norm(d: DependencyBuilder, op: Operation) -> None:
    """Normalise over the last axes, of which none can be cut then."""
    x = op.args["input"]
    shape = op.args["normalized_shape"]
    reason = _taken_together(d, op, x, "normalises")
    for axis in d.axes(x)[len(x.shape) - len(shape) :]:
        d.bar(axis, reason)
    for name in ("weight", "bias"):
        if op.args.get(name) is not None:
            d.bar_all([op.args[name]], reason)
    d.set(op.outputs[0], list(d.axes(x)))


def group_norm(d: DependencyBuilder, op: Operation) -> None:
    """Normalise groups of channels, each by itself: whole groups can go."""
    x, groups = op.args["input"], op.args["group"]
    axes = list(d.axes(x))
    parts = d.halves(axes[1], groups)
    reason = _taken_together(d, op, x, "normalises")
    for axis in axes[1:] if parts is None else (parts[1], *axes[2:]):
        d.bar(axis, reason)
    for name in ("weight", "bias"):
        if op.args.get(name) is not None:
            d.join(axes[1], d.axes(op.args[name])[0])
    d.set(op.outputs[0], axes)
    if parts is not None:
        for ref in op.outputs[1:]:  # means and scales
            d.set(ref, [axes[0], parts[0]])
        d.sized(op, [parts[0]])


def attention(d: DependencyBuilder, op: Operation) -> None:
    """Follow heads; the scale is made of the head's width, so that stays."""
    query, key, value = (op.args[name] for name in ("query", "key", "value"))
    out = op.outputs[0]
    samples, heads, length, width = d.axes(query)
    keys = key.shape[2]
    d.multiply(prod(query.shape) * keys, samples, heads, length)
    d.multiply(prod(out.shape) * keys, samples, heads, length, d.axes(value)[3])
    for ref in (key, value):
        d.join(samples, d.axes(ref)[0])
    for axis in (width, d.axes(key)[3]):
        d.bar(axis, "attention's scale is made of its length")
    for axis in (d.axes(key)[2], d.axes(value)[2]):
        d.bar(axis, "attention sums over it")
    shared = d.join(d.axes(key)[1], d.axes(value)[1])
    if key.shape[1] == query.shape[1]:
        heads = d.join(heads, shared)
    else:
        parts = d.halves(heads, key.shape[1])
        if parts is None:
            give_up(d, op)
            return
        d.join(parts[0], shared)
        heads = (*parts[0], *parts[1])
    d.head(heads)
    for mask in op.inputs[3:]:
        for axis, made in zip(reversed(d.axes(mask)), (None, None, heads, samples), strict=False):
            if made is not None and axis and prod(map(len, axis)) == prod(map(len, made)):
                d.join(axis, made)
    d.set(out, [samples, heads, length, d.axes(value)[3]])
    for ref in op.outputs[1:]:  # sums, and an accelerator's seeds, which are along neither
        along = [samples, heads] if ref.shape[:2] == out.shape[:2] else []
        rest = ref.shape[len(along) :]
        d.set(ref, [*along, *(d.fresh(n, "attention sums over it") for n in rest)])


def along(d: DependencyBuilder, op: Operation) -> None:
    """Work along one axis, entry by entry of the others."""
    x = op.inputs[0]
    dims = op.args.get("dim", op.args.get("dims", -1))
    for dim in [dims] if isinstance(dims, int) else dims:
        if x.shape:
            d.bar(d.axes(x)[dim], f"{op.told} works along it")
    for ref in op.outputs:
        pairs = zip(d.axes(x), x.shape, ref.shape, strict=True)
        d.set(ref, [axis if old == new else d.fresh(new) for axis, old, new in pairs])


def reduce(d: DependencyBuilder, op: Operation) -> None:
    """Make one value of all along some axes."""
    x = op.inputs[0]
    rank = len(x.shape)
    dims = op.args.get("dim")
    dims = [dims] if isinstance(dims, int) else dims or range(rank)
    gone = {dim % rank for dim in dims} if rank else set()
    axes: list[Axis] = []
    for at, axis in enumerate(d.axes(x)):
        if at in gone:
            d.bar(axis, _taken_together(d, op, x, "sums"))
            axes += [()] if op.args.get("keepdim") else []
        else:
            axes.append(axis)
    for ref in op.outputs:
        d.set(ref, list(axes))


def spatial(d: DependencyBuilder, op: Operation) -> None:
    """Keep samples and channels; the last axes change, as in pooling and resizing."""
    x = op.inputs[0]
    count = next((n for n in (1, 2, 3) if f"{n}d" in op.name), 2)
    kept = len(x.shape) - count
    reason = f"{op.told} slides over it"
    for axis in d.axes(x)[kept:]:
        d.bar(axis, reason)
    for ref in op.outputs:
        made = [d.fresh(size, reason) for size in ref.shape[kept:]]
        d.set(ref, [*d.axes(x)[:kept], *made])


def windows(d: DependencyBuilder, op: Operation) -> None:
    """Lay out the windows of one axis, with a new axis for what is in each."""
    x, (out,) = op.inputs[0], op.outputs
    dim = op.args["dimension"] % len(x.shape)
    reason = f"{op.told} slides over it"
    d.bar(d.axes(x)[dim], reason)
    axes = list(d.axes(x))
    axes[dim] = d.fresh(out.shape[dim], reason)
    d.set(out, [*axes, d.fresh(out.shape[-1], reason)])
