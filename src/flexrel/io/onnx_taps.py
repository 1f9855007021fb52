"""Outputs of an ONNX graph that tell what its layers take in: means and mean squares by channel.

They are nodes and outputs of a message of their own. Behind the graph's they make an observing
network of it; the graph itself stays as it was, and costs what it cost.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from torch import Tensor

from flexrel.core.graph import layer_of
from flexrel.io.onnx_names import Proto, free_name, names_in
from flexrel_edge.moments import MEAN, SQUARE

_SAME: Final = ("Transpose", "Identity", "Cast")  # what may stand between a weight and its layer
_CONVOLUTIONS: Final = ("Conv", "ConvTranspose")
_PRODUCTS: Final = ("Gemm", "MatMul")
_FLOAT: Final = 1  # TensorProto.FLOAT


def taps(proto: Proto, tensors: Mapping[str, Tensor], helper: Any) -> bytes:  # noqa: ANN401
    """Return a message of nodes and outputs, to follow the graph's.

    For each layer, a convolution or a product with a weight, there are `NAME|mean` and
    `NAME|square`, float32 `[channels]`: what its input and the square of it are in the mean over
    samples and positions. Layers with one input have one pair; one that runs several times has
    that of the first.

    Args:
        proto: the network without its weights.
        tensors: of the model, by name.
        helper: `onnx.helper`.
    """
    graph = proto.graph
    taken = names_in(graph) | {one.name for one in graph.initializer} | {*tensors}
    seen: set[str] = set()
    nodes, outputs = [], []
    for inputs, name, channels, conv in _layers(graph.node, tensors):
        layer = layer_of(name)
        found = [f"{layer}{MEAN}", f"{layer}{SQUARE}"]
        if inputs in seen or not taken.isdisjoint(found):
            continue
        seen.add(inputs)
        taken.update(found)
        axes = tensors[name].ndim if conv else 0
        nodes += _means(inputs, found, axes, channels, taken, helper.make_node)
        outputs += [helper.make_tensor_value_info(one, _FLOAT, [channels]) for one in found]
    message = type(proto)()
    message.graph.node.extend(nodes)
    message.graph.output.extend(outputs)
    return bytes(message.SerializeToString(deterministic=True))


def _layers(
    nodes: Sequence[Proto], tensors: Mapping[str, Tensor]
) -> Iterator[tuple[str, str, int, bool]]:
    """Yield of each layer what it takes in, its weight, how many channels, whether it convolves."""
    weights = {name: (name, False) for name in tensors}  # of values: which weight, if transposed
    for node in nodes:
        kind, given = node.op_type, list(node.input)
        if kind in _SAME and given[0] in weights:
            name, turned = weights[given[0]]
            weights[node.output[0]] = name, turned ^ (kind == "Transpose")
        elif kind in (*_CONVOLUTIONS, *_PRODUCTS) and given[1] in weights:
            name, turned = weights[given[1]]
            shape = tensors[name].shape
            numbers = {one.name: one.i for one in node.attribute}
            if kind in _CONVOLUTIONS:
                transposed = kind == "ConvTranspose"
                channels = shape[0] if transposed else shape[1] * numbers.get("group", 1)
                yield given[0], name, channels, True
            elif len(shape) == 2 and not numbers.get("transA"):  # noqa: PLR2004
                yield given[0], name, shape[turned ^ bool(numbers.get("transB"))], False


def _means(
    inputs: str,
    outputs: Sequence[str],
    axes: int,
    channels: int,
    taken: set[str],
    node: Callable[..., Proto],
) -> list[Proto]:
    """Return the nodes that make the mean of a value and that of its square, by channel.

    Args:
        inputs: the value.
        outputs: names of both.
        axes: of the value, channels second; 0: any number, channels last.
        channels: how many.
        taken: names that there are; those of the values between come to them.
        node: `onnx.helper.make_node`.
    """
    value, rows, shape, over, square = names = [
        free_name(f"{outputs[0]} {what}", taken)
        for what in ("float", "rows", "shape", "axes", "squared")
    ]
    taken.update(names)
    nodes = [node("Cast", [inputs], [value], to=_FLOAT)]
    among = [axis for axis in range(axes) if axis != 1]
    if not axes:
        among = [0]
        nodes += [
            node("Constant", [], [shape], value_ints=[-1, channels]),
            node("Reshape", [value, shape], [rows]),
        ]
        value = rows
    return [
        *nodes,
        node("Constant", [], [over], value_ints=among),
        node("ReduceMean", [value, over], [outputs[0]], keepdims=0),
        node("Mul", [value, value], [square]),
        node("ReduceMean", [square, over], [outputs[1]], keepdims=0),
    ]
