"""What each operation says about the axes of its tensors: one small rule an operation."""

from collections.abc import Callable
from math import prod

from flexrel.structure import moves
from flexrel.structure.dependencies import Axis, AxisDependencies, DependencyBuilder
from flexrel.structure.moves import give_up
from flexrel.structure.numbers import MADE
from flexrel.structure.trace import Operation, Ref, Trace

Rule = Callable[[DependencyBuilder, Operation], None]


def couple(traced: Trace) -> AxisDependencies:
    """Return what the rules of all operations of a traced network say."""
    coupler = DependencyBuilder(traced)
    for operation in traced.operations:
        rule = RULES.get(operation.name.rstrip("_"))
        if rule is None:
            rule = _pointwise if operation.pointwise else give_up
        try:
            rule(coupler, operation)
        except (LookupError, ValueError, TypeError):
            give_up(coupler, operation, f"{operation.name} is called in a way that has no rule yet")
        coupler.made_of_weights(operation)
        coupler.said.spent.append((len(coupler.said.uses), len(coupler.said.work)))
    coupler.bar_all(traced.outputs, "it is the network's output")
    for name, refs in traced.nodes.items():
        coupler.said.nodes[name] = [coupler.axes(ref) for ref in refs]
    return coupler.said


def _pointwise(c: DependencyBuilder, op: Operation) -> None:
    """Join the operands' axes, broadcast from the right."""
    for out in op.outputs:
        axes: list[Axis] = [()] * len(out.shape)
        for ref in op.inputs:
            offset = len(out.shape) - len(ref.shape)
            for at, axis in enumerate(c.axes(ref), start=offset):
                if axis and ref.shape[at - offset] == out.shape[at]:
                    axes[at] = c.join(axes[at], axis) if axes[at] else axis
        pairs = zip(axes, out.shape, strict=True)
        c.set(out, [axis or c.fresh(size) for axis, size in pairs])


def _like(c: DependencyBuilder, op: Operation) -> None:
    """Make a tensor of the shape of another."""
    for out in op.outputs:
        c.set(out, list(c.axes(op.inputs[0])))


def _made(c: DependencyBuilder, op: Operation) -> None:
    """Make a tensor of a shape that the code holds."""
    rewritten = c.program and op.name.removeprefix("aten.") in MADE.split()
    for out in op.outputs:
        reason = "" if rewritten else "it comes from a tensor made on the way"
        c.set(out, [c.fresh(size, reason) for size in out.shape])


def _convolution(c: DependencyBuilder, op: Operation) -> None:
    x, weight, bias = op.args["input"], op.args["weight"], op.args["bias"]
    groups, transposed = op.args["groups"], op.args["transposed"]
    (out,) = op.outputs
    if len(x.shape) != len(weight.shape):  # no sample axis
        give_up(c, op)
        return
    positions = prod(x.shape) // x.shape[1] if transposed else prod(out.shape) // out.shape[1]
    c.count(weight, positions * prod(weight.shape))
    reads, makes, *kernel = c.axes(weight) if transposed else _swapped(c.axes(weight))
    samples, channels, *spatial = c.axes(x)
    if not c.is_weight(weight):
        c.bar(reads, f"{op.name} sums over it what is made on the way")
    if groups == 1:
        made = makes
        c.join(channels, reads)
    else:
        made = _grouped(c, op, channels, reads, makes)
    depthwise = groups == x.shape[1] == out.shape[1] > 1
    c.role(made if transposed is False else makes, "follower" if depthwise else "producer")
    c.role(reads, "follower" if depthwise else "consumer")
    for axis in kernel:
        c.bar(axis, "it is a kernel's")
    reason = "a convolution slides over it"
    for axis in spatial:
        c.bar(axis, reason)
    if bias is not None:
        made = c.join(made, c.axes(bias)[0])
    c.set(out, [samples, made, *(c.fresh(size, reason) for size in out.shape[2:])])


def _swapped(axes: list[Axis]) -> list[Axis]:
    return [axes[1], axes[0], *axes[2:]]


def _grouped(c: DependencyBuilder, op: Operation, channels: Axis, reads: Axis, makes: Axis) -> Axis:
    """Join group to group, and within groups what is read; return the channels made.

    Of a transposed convolution `reads` are all channels and `makes` those of one group.
    """
    groups, (out,) = op.args["groups"], op.outputs
    given = c.halves(channels, groups)
    whole = makes
    if op.args["transposed"]:
        c.join(channels, reads)
        (whole,) = (c.fresh(out.shape[1]),)
    made = c.halves(whole, groups)
    if given is None or made is None:
        reason = f"its groups, {groups}, don't fit how it is put together"
        for axis in (channels, reads, makes, whole):
            c.bar(axis, reason)
        return whole
    c.join(given[0], made[0])
    c.sized_axes(op.module, [made[0]])
    if op.args["transposed"]:
        c.join(made[1], makes)
    else:
        c.join(given[1], reads)
    return whole


def _product(c: DependencyBuilder, op: Operation, a: Ref, b: Ref, bias: Ref | None = None) -> None:
    """Multiply matrices, or batches of them: the inner axes meet and are summed over."""
    (out,) = op.outputs
    *batch, rows, inner = c.axes(a)
    *other, met, columns = c.axes(b)
    size = prod(out.shape) * a.shape[-1]
    for ref, reads, makes, over in ((b, met, columns, rows), (a, inner, rows, columns)):
        if c.is_weight(ref):
            c.count(ref, size, *batch, over)
            c.role(reads, "consumer")
            c.role(makes, "producer")
    if not (c.is_weight(a) or c.is_weight(b)):
        c.works(size, *batch, rows, inner, columns)
        c.bar(inner, f"{op.name} sums over it what is made on the way")
    c.join(inner, met)
    for one, two in zip(batch, other, strict=True):
        c.head(c.join(one, two))
    c.set(out, [*batch, rows, columns])
    if bias is not None:
        offset = len(out.shape) - len(bias.shape)
        for at, axis in enumerate(c.axes(bias), start=offset):
            if axis:
                c.join(axis, c.axes(out)[at])


def _mm(c: DependencyBuilder, op: Operation) -> None:
    _product(c, op, op.args["self"], op.args["mat2"])


def _addmm(c: DependencyBuilder, op: Operation) -> None:
    _product(c, op, op.args["mat1"], op.args["mat2"], op.args["self"])


def _baddbmm(c: DependencyBuilder, op: Operation) -> None:
    _product(c, op, op.args["batch1"], op.args["batch2"], op.args["self"])


def _vector_product(c: DependencyBuilder, op: Operation) -> None:
    """Multiply a matrix, or a vector, and a vector."""
    a, b = op.inputs[:2]
    *rows, inner = c.axes(a)
    c.join(inner, c.axes(b)[0])
    c.set(op.outputs[0], rows)


def _attention(c: DependencyBuilder, op: Operation) -> None:
    """Follow heads; the scale is made of the head's width, so that stays."""
    query, key, value = (op.args[name] for name in ("query", "key", "value"))
    out = op.outputs[0]
    samples, heads, length, width = c.axes(query)
    for ref in (key, value):
        c.join(samples, c.axes(ref)[0])
    for axis in (width, c.axes(key)[3]):
        c.bar(axis, "attention's scale is made of its length")
    for axis in (c.axes(key)[2], c.axes(value)[2]):
        c.bar(axis, "attention sums over it")
    shared = c.join(c.axes(key)[1], c.axes(value)[1])
    if key.shape[1] == query.shape[1]:
        heads = c.join(heads, shared)
    else:
        parts = c.halves(heads, key.shape[1])
        if parts is None:
            give_up(c, op)
            return
        c.join(parts[0], shared)
        heads = (*parts[0], *parts[1])
    c.head(heads)
    keys = key.shape[2]
    c.works(prod(query.shape) * keys, samples, heads, length)
    c.works(prod(out.shape) * keys, samples, heads, length, c.axes(value)[3])
    for mask in op.inputs[3:]:
        for axis, made in zip(reversed(c.axes(mask)), (None, None, heads, samples), strict=False):
            if made is not None and axis and prod(map(len, axis)) == prod(map(len, made)):
                c.join(axis, made)
    c.set(out, [samples, heads, length, c.axes(value)[3]])
    for ref in op.outputs[1:]:  # sums, and an accelerator's seeds, which are along neither
        along = [samples, heads] if ref.shape[:2] == out.shape[:2] else []
        rest = ref.shape[len(along) :]
        c.set(ref, [*along, *(c.fresh(n, "attention sums over it") for n in rest)])


def _recurrent(c: DependencyBuilder, op: Operation) -> None:
    """Count what a recurrent layer does at each step, and leave it alone."""
    steps = prod(op.inputs[0].shape[:-1])
    for ref in op.inputs[1:]:
        if c.is_weight(ref) and len(ref.shape) > 1:
            c.count(ref, steps * prod(ref.shape))
    give_up(c, op)


def _batch_norm(c: DependencyBuilder, op: Operation) -> None:
    x = op.args["input"]
    axes = list(c.axes(x))
    if op.args.get("training"):  # of a weight that is standardised, too
        for axis in (axes[0], *axes[2:]):
            c.bar(axis, f"{op.name} normalises over it")
    for name in ("weight", "bias", "running_mean", "running_var"):
        if op.args.get(name) is not None:
            axes[1] = c.join(axes[1], c.axes(op.args[name])[0])
    c.sized_axes(op.module, [axes[1]])
    c.set(op.outputs[0], axes)


def _layer_norm(c: DependencyBuilder, op: Operation) -> None:
    x = op.args["input"]
    shape = op.args["normalized_shape"]
    reason = f"{op.name} normalises over it"
    for axis in c.axes(x)[len(x.shape) - len(shape) :]:
        c.bar(axis, reason)
    for name in ("weight", "bias"):
        if op.args.get(name) is not None:
            c.bar_all([op.args[name]], reason)
    c.set(op.outputs[0], list(c.axes(x)))


def _group_norm(c: DependencyBuilder, op: Operation) -> None:
    """Normalise groups of channels, each by itself: whole groups can go."""
    x, groups = op.args["input"], op.args["group"]
    axes = list(c.axes(x))
    parts = c.halves(axes[1], groups)
    reason = f"{op.name} normalises over it"
    for axis in axes[1:] if parts is None else (parts[1], *axes[2:]):
        c.bar(axis, reason)
    for name in ("weight", "bias"):
        if op.args.get(name) is not None:
            c.join(axes[1], c.axes(op.args[name])[0])
    c.set(op.outputs[0], axes)
    if parts is not None:
        c.sized_axes(op.module, [parts[0]])


def _reduction(c: DependencyBuilder, op: Operation) -> None:
    """Take the larger of two tensors, or make one value of many."""
    (_pointwise if "other" in op.args else moves.reduce)(c, op)


def _weight_norm(c: DependencyBuilder, op: Operation) -> None:
    """Scale a weight's members along one axis, each by the norm of the rest."""
    v, g, dim = op.args["v"], op.args["g"], op.args.get("dim", 0)
    for at, axis in enumerate(c.axes(v)):
        if at != dim:
            c.bar(axis, f"{op.name} normalises over it")
    axes = list(c.axes(v))
    axes[dim] = c.join(axes[dim], c.axes(g)[dim])
    c.set(op.outputs[0], axes)


_POINTWISE = (
    "detach alias contiguous lift_fresh _to_copy to dropout masked_fill copysign hardswish "
    "_prelu_kernel prelu log_sigmoid_forward where _conj logical_or zeros_like ones_like"
)
_LIKE = "empty_like rand_like randn_like full_like new_zeros_like bernoulli fill zero normal"
_MADE = (
    "zeros ones full empty arange rand randn new_zeros new_ones new_full new_empty scalar_tensor "
    "eye linspace tril_indices triu_indices"
)
_VIEWS = "view _unsafe_view reshape _reshape_alias squeeze unsqueeze flatten unflatten"
_PERMUTES = "permute transpose t swapaxes movedim numpy_T"
_SPLITS = "split split_with_sizes chunk tensor_split unsafe_split unsafe_split_with_sizes"
_ALONG = (
    "_softmax _safe_softmax _log_softmax softmax log_softmax cumsum cumprod logcumsumexp flip sort "
    "topk roll"
)
_REDUCTIONS = (
    "mean sum amax amin max min var std var_mean std_mean prod argmax argmin all any norm "
    "logsumexp linalg_vector_norm median count_nonzero"
)
_POOLINGS = (
    "max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d "
    "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d "
    "reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d "
    "replication_pad3d upsample_nearest1d upsample_nearest2d upsample_nearest3d "
    "_upsample_nearest_exact1d _upsample_nearest_exact2d upsample_linear1d upsample_bilinear2d "
    "upsample_bicubic2d upsample_trilinear3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa"
)
_BATCH_NORMS = (
    "native_batch_norm cudnn_batch_norm miopen_batch_norm "
    "_native_batch_norm_legit _native_batch_norm_legit_no_training"
)
_ATTENTIONS = (
    "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention "
    "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention"
)


def _table() -> dict[str, Rule]:
    groups: list[tuple[str, Rule]] = [
        (_POINTWISE, _pointwise),
        (_LIKE, _like),
        (_MADE, _made),
        (_BATCH_NORMS, _batch_norm),
        (_ATTENTIONS, _attention),
        ("convolution", _convolution),
        ("addmm", _addmm),
        ("mm bmm", _mm),
        ("baddbmm", _baddbmm),
        ("mv dot", _vector_product),
        ("mkldnn_rnn_layer _cudnn_rnn lstm gru rnn_tanh rnn_relu", _recurrent),
        ("embedding", moves.look_up),
        ("native_layer_norm _fused_rms_norm", _layer_norm),
        ("native_group_norm", _group_norm),
        ("_weight_norm_interface", _weight_norm),
        (_VIEWS, moves.view),
        (_PERMUTES, moves.permute),
        ("expand", moves.expand),
        ("repeat", moves.repeat),
        ("cat", moves.concatenate),
        ("stack", moves.stack),
        ("select unbind", moves.take),
        (_SPLITS, moves.split),
        ("slice", moves.slice_),
        ("constant_pad_nd", moves.pad),
        ("index", moves.index),
        (_ALONG, moves.along),
        (_REDUCTIONS, _reduction),
        (_POOLINGS, moves.spatial),
        ("channel_shuffle native_channel_shuffle", moves.shuffle),
        ("glu", moves.gate),
        ("pixel_shuffle pixel_unshuffle", moves.pixels),
        ("im2col", moves.unfold),
        ("unfold", moves.windows),
    ]
    return {f"aten.{name}": rule for names, rule in groups for name in names.split()}


RULES = _table()
