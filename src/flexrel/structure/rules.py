"""What each operation says about the axes of its tensors: one small rule an operation."""

from collections.abc import Callable
from math import prod

from flexrel.structure.couple import Axis, Coupler
from flexrel.structure.trace import Operation, Ref, Trace

Rule = Callable[[Coupler, Operation], None]


def couple(traced: Trace) -> Coupler:
    """Return the coupler of a traced network, with every operation's rule applied."""
    coupler = Coupler(traced)
    for operation in traced.operations:
        RULES.get(operation.name.rstrip("_"), _no_rule)(coupler, operation)
    for ref in traced.outputs:
        coupler.protect(ref, "it is the network's output")
    return coupler


def _no_rule(c: Coupler, op: Operation) -> None:
    _fresh(c, op, f"it goes through {op.name}, which can't be followed yet")


def _fresh(c: Coupler, op: Operation, reason: str) -> None:
    """Give up: protect all that goes in, and follow what comes out from there on."""
    for ref in op.inputs:
        c.protect(ref, reason)
    for ref in op.outputs:
        c.set_axes(ref, [c.fresh(size) for size in ref.shape])
        c.protect(ref, reason)


def _same(c: Coupler, op: Operation) -> None:
    if len(op.inputs) > 1:  # a bound or an exponent that is a tensor
        _elementwise(c, op)
        return
    for ref in op.outputs:
        c.set_axes(ref, list(c.axes(op.inputs[0])))


def _convolution(c: Coupler, op: Operation) -> None:
    x, weight, bias = op.args[:3]
    transposed, groups = op.args[6], op.args[8]
    (out,) = op.outputs
    if transposed or len(x.shape) != len(weight.shape):
        _no_rule(c, op)
        return
    c.count(weight, prod(out.shape) * prod(weight.shape[1:]))
    samples, channel, *spatial = c.axes(x)
    made = [c.fresh(size) for size in out.shape[1:]]
    for axis in (*spatial, *made[1:]):
        c.protect_axis(axis, "a convolution slides over it")
    c.set_axes(out, [samples, *made])
    if groups == x.shape[1] == out.shape[1] > 1:  # depthwise: a channel is read and made at once
        c.axes(out)[1] = channel
        c.own(weight, 0, channel, "follower")
    else:
        c.own(weight, 0, c.axes(out)[1], "producer")
        if groups == 1:
            c.own(weight, 1, channel, "consumer")
        else:
            c.protect_axis(channel, f"it is read by a convolution in {groups} groups")
            c.protect_axis(c.axes(out)[1], f"it is made by a convolution in {groups} groups")
    if bias is not None:
        c.own(bias, 0, c.axes(out)[1], "follower")


def _transpose(c: Coupler, op: Operation) -> None:
    c.transpose(op.outputs[0], op.inputs[0])


def _addmm(c: Coupler, op: Operation) -> None:
    bias, x, matrix = op.args[:3]
    _matrix_product(c, op, x, matrix, bias)


def _mm(c: Coupler, op: Operation) -> None:
    x, matrix = op.args[:2]
    _matrix_product(c, op, x, matrix, None)


def _matrix_product(c: Coupler, op: Operation, x: Ref, matrix: Ref, bias: Ref | None) -> None:
    weight = c.transposed(matrix)
    if weight is None or c.parameter(weight) is None:
        _no_rule(c, op)
        return
    (out,) = op.outputs
    rows, features = c.axes(x)
    c.count(weight, x.shape[0] * prod(weight.shape))
    c.set_axes(out, [rows, c.fresh(out.shape[1])])
    c.own(weight, 1, features, "consumer")
    c.own(weight, 0, c.axes(out)[1], "producer")
    if bias is not None:  # its last axis: addmm takes matrices too
        c.own(bias, len(bias.shape) - 1, c.axes(out)[1], "follower")


def _batch_norm(c: Coupler, op: Operation) -> None:
    x, *vectors = op.args[:5]  # weight, bias, running mean, running variance
    c.set_axes(op.outputs[0], list(c.axes(x)))
    for vector in vectors:
        if isinstance(vector, Ref):
            c.own(vector, 0, c.axes(x)[1], "follower")


def _elementwise(c: Coupler, op: Operation) -> None:
    """Join the operands' axes, broadcast from the right; a parameter follows the activation."""
    (out,) = op.outputs
    joined: list[Axis | None] = [None] * len(out.shape)
    activations = [ref for ref in op.inputs if c.parameter(ref) is None]
    parameters = [ref for ref in op.inputs if c.parameter(ref) is not None]
    for ref in activations:
        for at, axis in _broadcast(c, ref, out):
            first = joined[at]
            if first is None:
                joined[at] = axis
            else:
                verb = f"{op.name} joins it to another layer's output"
                c.share(first, axis, verb, f"{verb} (residual paths are not cut yet)")
    filled = [a or c.fresh(size) for a, size in zip(joined, out.shape, strict=True)]
    for ref in parameters:
        offset = len(out.shape) - len(ref.shape)
        for at, _ in _broadcast(c, ref, out):
            c.own(ref, at - offset, filled[at], "follower")
    c.set_axes(out, filled)


def _broadcast(c: Coupler, ref: Ref, out: Ref) -> list[tuple[int, Axis]]:
    offset = len(out.shape) - len(ref.shape)
    pairs = enumerate(c.axes(ref), start=offset)
    return [(at, axis) for at, axis in pairs if ref.shape[at - offset] == out.shape[at] > 1]


def _pool(c: Coupler, op: Operation) -> None:
    """Keep samples and channels; the last axes are spatial and change."""
    x = op.inputs[0]
    spatial = next(count for count in (1, 2, 3) if f"{count}d" in op.name)
    kept = len(x.shape) - spatial
    for ref in op.outputs:
        made = [c.fresh(size) for size in ref.shape[kept:]]
        for axis in (*c.axes(x)[kept:], *made):
            c.protect_axis(axis, f"{op.name} slides over it")
        c.set_axes(ref, [*c.axes(x)[:kept], *made])


def _reduce(c: Coupler, op: Operation) -> None:
    x = op.inputs[0]
    dims = op.args[1] if len(op.args) > 1 else op.kwargs.get("dim")
    keep = bool(op.args[2]) if len(op.args) > 2 else bool(op.kwargs.get("keepdim", False))  # noqa: PLR2004
    rank = len(x.shape)
    dims = [dims] if isinstance(dims, int) else dims or range(rank)
    gone = {dim % rank for dim in dims}
    axes: list[Axis] = []
    for at, axis in enumerate(c.axes(x)):
        if at in gone:
            c.protect_axis(axis, f"{op.name} sums over it")
            axes += [c.fresh(1)] if keep else []
        else:
            axes.append(axis)
    for ref in op.outputs:
        c.set_axes(ref, list(axes))


def _resized(c: Coupler, op: Operation) -> None:
    """Pass through the axes that keep their length (slices, padding); give up on the others.

    An axis padded on one side and cropped on the other keeps its length, but is shifted.
    """
    x, (out,) = op.inputs[0], op.outputs
    axes: list[Axis] = []
    pads = op.args[1] if op.name == "aten.constant_pad_nd" else ()  # last axis first
    padded = {len(x.shape) - 1 - at // 2 for at, pad in enumerate(pads) if pad}
    for at, (axis, old, new) in enumerate(zip(c.axes(x), x.shape, out.shape, strict=True)):
        same = old == new and at not in padded
        axes.append(axis if same else c.fresh(new))
        if not same:
            reason = f"{op.name} changes how many there are"
            c.protect_axis(axis, reason)
            c.protect_axis(axes[-1], reason)
    c.set_axes(out, axes)


def _view(c: Coupler, op: Operation) -> None:
    """Follow axes that stay, and a first axis of a run that is flattened (a channel's stripe)."""
    x, (out,) = op.inputs[0], op.outputs
    if prod(x.shape) != prod(out.shape) or 0 in x.shape:  # read as another dtype, or empty
        _no_rule(c, op)
        return
    axes = [c.fresh(size) for size in out.shape]
    for olds, news in _runs(x.shape, out.shape):
        old_axes = [c.axes(x)[at] for at in olds]
        if len(news) == 1:
            inner = prod(x.shape[at] for at in olds[1:])
            axes[news[0]] = Axis(old_axes[0].space, old_axes[0].inner * inner)
            followed = old_axes[:1]
        else:
            followed = []
        for axis in old_axes:
            if axis not in followed:
                c.protect_axis(axis, f"{op.name} reshapes it with other axes")
        if not followed:
            for at in news:
                c.protect_axis(axes[at], f"{op.name} makes it from other axes")
    c.set_axes(out, axes)


def _runs(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Split two shapes of equal size into the shortest runs of axes of equal size.

    Axes of length 1 belong to no run.
    """
    runs: list[tuple[list[int], list[int]]] = []
    sides = [[at for at, size in enumerate(shape) if size > 1] for shape in (old, new)]
    while sides[0] and sides[1]:
        olds, news = [sides[0].pop(0)], [sides[1].pop(0)]
        while (a := prod(old[at] for at in olds)) != (b := prod(new[at] for at in news)):
            olds, news = (
                (olds, [*news, sides[1].pop(0)]) if a > b else ([*olds, sides[0].pop(0)], news)
            )
        runs.append((olds, news))
    return runs


_ACTIVATIONS = (
    "relu hardtanh sigmoid tanh silu gelu hardswish hardsigmoid leaky_relu elu mish softplus "
    "threshold clamp clamp_min clamp_max neg abs exp sqrt rsqrt square pow "
    "clone detach alias contiguous lift_fresh _to_copy"
)
_ELEMENTWISE = "add sub mul div maximum minimum"
_POOLINGS = (
    "max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d "
    "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d"
)
_BATCH_NORMS = (
    "native_batch_norm cudnn_batch_norm miopen_batch_norm "
    "_native_batch_norm_legit _native_batch_norm_legit_no_training"
)


def _table() -> dict[str, Rule]:
    groups: list[tuple[str, Rule]] = [
        (_ACTIVATIONS, _same),
        (_ELEMENTWISE, _elementwise),
        (_POOLINGS, _pool),
        (_BATCH_NORMS, _batch_norm),
        ("convolution", _convolution),
        ("t", _transpose),
        ("addmm", _addmm),
        ("mm", _mm),
        ("mean sum amax", _reduce),
        ("slice constant_pad_nd", _resized),
        ("view _unsafe_view reshape _reshape_alias squeeze unsqueeze", _view),
    ]
    return {f"aten.{name}": rule for names, rule in groups for name in names.split()}


RULES = _table()
