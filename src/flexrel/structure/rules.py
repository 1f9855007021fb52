"""What each operation says about the axes of its tensors: one small rule an operation.

Here are the table of all rules, and those of what works entry by entry, of convolutions and of
products of matrices.
"""

from collections.abc import Callable
from math import prod

from flexrel.structure import axis_rules, index_rules, move_rules, recurrent_rules
from flexrel.structure.dependencies import Axis, AxisDependencies, DependencyBuilder
from flexrel.structure.move_rules import give_up
from flexrel.structure.program_sizes import SIZED_BY_LIST
from flexrel.structure.trace import Operation, Trace

AxisRule = Callable[[DependencyBuilder, Operation], None]


def dependencies_of(traced: Trace) -> AxisDependencies:
    """Return what the rules of all operations of a traced network say."""
    builder = DependencyBuilder(traced)
    for operation in traced.operations:
        rule = AXIS_RULES.get(operation.name.rstrip("_"))
        if rule is None:
            rule = _pointwise if operation.pointwise else give_up
        try:
            rule(builder, operation)
        except (LookupError, ValueError, TypeError):
            give_up(builder, operation, f"{operation.name} is called in a way that has no rule yet")
        builder.made_of_weights(operation)
        said = builder.said
        said.spent.append((len(said.uses), len(said.products), len(said.weights)))
    builder.bar_all(traced.outputs, "it is the network's output")
    for name, refs in traced.nodes.items():
        builder.said.nodes[name] = [builder.axes(ref) for ref in refs]
    return builder.said


# --- entry by entry -----------------------------------------------------------------------------


def _pointwise(d: DependencyBuilder, op: Operation) -> None:
    """Join the operands' axes, broadcast from the right."""
    for out in op.outputs:
        axes: list[Axis] = [()] * len(out.shape)
        for ref in op.inputs:
            offset = len(out.shape) - len(ref.shape)
            for at, axis in enumerate(d.axes(ref), start=offset):
                if axis and ref.shape[at - offset] == out.shape[at]:
                    axes[at] = d.join(axes[at], axis) if axes[at] else axis
        pairs = zip(axes, out.shape, strict=True)
        d.set(out, [axis or d.fresh(size) for axis, size in pairs])


def _like(d: DependencyBuilder, op: Operation) -> None:
    """Make a tensor of the shape of another."""
    for out in op.outputs:
        d.set(out, list(d.axes(op.inputs[0])))


def _made(d: DependencyBuilder, op: Operation) -> None:
    """Make a tensor of a shape that the code holds, perhaps as a number of the module's."""
    rewritten = d.program and op.name.removeprefix("aten.") in SIZED_BY_LIST.split()
    reason = f"it goes together with a tensor that {op.told} makes"
    for out in op.outputs:
        d.set(out, [d.fresh(size, "" if rewritten else reason) for size in out.shape])


def _alike(d: DependencyBuilder, op: Operation) -> None:
    """Make a tensor of one value; where its module holds an axis's length, that can be cut."""
    held = d.lengths.get(op.module, frozenset())
    if d.program:
        _made(d, op)
        return
    reason = f"it goes together with a tensor that {op.told} makes"
    for out in op.outputs:
        d.set(out, [d.fresh(size, "" if size in held else reason) for size in out.shape])
        d.sized(
            op, [axis for axis, size in zip(d.axes(out), out.shape, strict=True) if size in held]
        )


def _reduction(d: DependencyBuilder, op: Operation) -> None:
    """Take the larger of two tensors, or make one value of many."""
    (_pointwise if "other" in op.args else axis_rules.reduce)(d, op)


# --- with weights -------------------------------------------------------------------------------


def _convolution(d: DependencyBuilder, op: Operation) -> None:
    x, weight, bias = op.args["input"], op.args["weight"], op.args["bias"]
    groups, transposed = op.args["groups"], op.args["transposed"]
    (out,) = op.outputs
    if len(x.shape) != len(weight.shape):  # no sample axis
        give_up(d, op)
        return
    positions = prod(x.shape) // x.shape[1] if transposed else prod(out.shape) // out.shape[1]
    d.count(weight, positions * prod(weight.shape))
    reads, makes, *kernel = d.axes(weight)
    if not transposed:
        reads, makes = makes, reads
    samples, channels, *spatial = d.axes(x)
    if not d.is_weight(weight):
        d.bar(reads, f"{op.told} sums over it, with a weight that is made of the input")
    if groups == 1:
        made = makes
        d.join(channels, reads)
    else:
        made = _grouped(d, op, channels, reads, makes)
    depthwise = groups == x.shape[1] == out.shape[1] > 1
    d.role(made if transposed is False else makes, "follower" if depthwise else "producer")
    d.role(reads, "follower" if depthwise else "consumer")
    for axis in kernel:
        d.bar(axis, "it is a kernel's")
    reason = "a convolution slides over it"
    for axis in spatial:
        d.bar(axis, reason)
    if bias is not None:
        made = d.join(made, d.axes(bias)[0])
    d.set(out, [samples, made, *(d.fresh(size, reason) for size in out.shape[2:])])


def _grouped(d: DependencyBuilder, op: Operation, channels: Axis, reads: Axis, makes: Axis) -> Axis:
    """Join group to group, and within groups what is read; return the channels made.

    Of a transposed convolution `reads` are all channels and `makes` those of one group.
    """
    groups, (out,) = op.args["groups"], op.outputs
    given = d.halves(channels, groups)
    whole = makes
    if op.args["transposed"]:
        d.join(channels, reads)
        (whole,) = (d.fresh(out.shape[1]),)
    made = d.halves(whole, groups)
    if given is None or made is None:
        reason = f"its groups, {groups}, don't fit how it is put together"
        for axis in (channels, reads, makes, whole):
            d.bar(axis, reason)
        return whole
    d.join(given[0], made[0])
    d.sized(op, [made[0]])
    if op.args["transposed"]:
        d.join(made[1], makes)
    else:
        d.join(given[1], reads)
    return whole


def _product(d: DependencyBuilder, op: Operation) -> None:
    """Multiply matrices, or batches of them: the inner axes meet and are summed over.

    What a bias is added to as well comes first: `addmm(self, mat1, mat2)`, but `mm(self, mat2)`.
    """
    names = ("self", "mat1", "batch1", "mat2", "batch2")
    *biases, a, b = (op.args[name] for name in names if name in op.args)
    (out,) = op.outputs
    *batch, rows, inner = d.axes(a)
    *other, met, columns = d.axes(b)
    size = prod(out.shape) * a.shape[-1]
    for ref, reads, makes in ((b, met, columns), (a, inner, rows)):
        if d.is_weight(ref):
            d.role(reads, "consumer")
            d.role(makes, "producer")
    if d.is_weight(b):
        d.count(b, size, rows)
        d.multiplied(a)
    elif d.is_weight(a):
        d.count(a, size, columns)
    else:
        d.multiply(size, *batch, rows, inner, columns)
        d.bar(inner, f"{op.told} sums over it, and both sides are made of the input")
    d.join(inner, met)
    for one, two in zip(batch, other, strict=True):
        d.head(d.join(one, two))
    d.set(out, [*batch, rows, columns])
    for bias in biases:
        offset = len(out.shape) - len(bias.shape)
        for at, axis in enumerate(d.axes(bias), start=offset):
            if axis:
                d.join(axis, d.axes(out)[at])


def _vector_product(d: DependencyBuilder, op: Operation) -> None:
    """Multiply a matrix, or a vector, and a vector."""
    a, b = op.inputs[:2]
    *rows, inner = d.axes(a)
    d.join(inner, d.axes(b)[0])
    d.set(op.outputs[0], rows)


def _weight_norm(d: DependencyBuilder, op: Operation) -> None:
    """Scale a weight's slices along one axis, each by the norm of the rest."""
    v, g, dim = op.args["v"], op.args["g"], op.args.get("dim", 0)
    for at, axis in enumerate(d.axes(v)):
        if at != dim:
            d.bar(axis, f"the weights along it are normalised together on the way, by {op.told}")
    axes = list(d.axes(v))
    axes[dim] = d.join(axes[dim], d.axes(g)[dim])
    d.set(op.outputs[0], axes)


# --- which operation has which ------------------------------------------------------------------


_POINTWISE = (
    "detach alias contiguous lift_fresh _to_copy to dropout masked_fill copysign hardswish "
    "_prelu_kernel prelu log_sigmoid_forward where _conj logical_or zeros_like ones_like"
)

_LIKE = "empty_like rand_like randn_like full_like new_zeros_like bernoulli fill zero normal"

_ALIKE = "zeros ones full new_zeros new_ones new_full"

_MADE = "empty arange rand randn new_empty scalar_tensor eye linspace tril_indices triu_indices"

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


def _table() -> dict[str, AxisRule]:
    groups: list[tuple[str, AxisRule]] = [
        (_POINTWISE, _pointwise),
        (_LIKE, _like),
        (_ALIKE, _alike),
        (_MADE, _made),
        (_BATCH_NORMS, axis_rules.batch_norm),
        (_ATTENTIONS, axis_rules.attention),
        ("convolution", _convolution),
        ("mm bmm addmm baddbmm", _product),
        ("mv dot", _vector_product),
        ("mkldnn_rnn_layer", recurrent_rules.lstm),
        ("_cudnn_rnn lstm gru rnn_tanh rnn_relu", recurrent_rules.whole),
        ("embedding", index_rules.look_up),
        ("_embedding_bag _embedding_bag_forward_only", index_rules.bag),
        ("native_layer_norm _fused_rms_norm", axis_rules.layer_norm),
        ("native_group_norm", axis_rules.group_norm),
        ("_weight_norm_interface", _weight_norm),
        (_VIEWS, move_rules.view),
        (_PERMUTES, move_rules.permute),
        ("expand", move_rules.expand),
        ("repeat", move_rules.repeat),
        ("cat", move_rules.concatenate),
        ("stack", move_rules.stack),
        ("select unbind", move_rules.take),
        (_SPLITS, move_rules.pieces),
        ("slice", move_rules.slice_),
        ("constant_pad_nd", move_rules.pad),
        ("index", index_rules.index),
        ("index_select", index_rules.select),
        ("gather", index_rules.gather),
        ("index_add scatter_add scatter_reduce", index_rules.add_by_number),
        (_ALONG, axis_rules.along),
        (_REDUCTIONS, _reduction),
        (_POOLINGS, axis_rules.spatial),
        ("channel_shuffle native_channel_shuffle", move_rules.shuffle),
        ("glu", move_rules.gate),
        ("pixel_shuffle pixel_unshuffle", move_rules.pixels),
        ("im2col", move_rules.unfold),
        ("unfold", axis_rules.windows),
    ]
    return {f"aten.{name}": rule for names, rule in groups for name in names.split()}


AXIS_RULES = _table()
