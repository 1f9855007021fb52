"""A packed network that can tell what its layers take in, by hand: torch's exporter is slow."""

from collections import OrderedDict

import numpy as np
import onnx
import torch
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from torch import nn

import flexrel_edge
from flexrel.core.running import fingerprint
from flexrel.io.onnx_taps import taps
from flexrel_edge.graph import Graph
from networks import random_

SHAPE = (2, 6, 6)


class Tokens(nn.Module):
    """Convolutions, one of groups; linear layers on tokens, and on rows, with a bias or without."""

    def __init__(self):
        super().__init__()
        layers = OrderedDict(
            first=nn.Conv2d(2, 6, 3, padding=1), act=nn.ReLU(), grouped=nn.Conv2d(6, 4, 3, groups=2)
        )
        self.body = nn.Sequential(layers)
        self.mix = nn.Linear(4, 5, bias=False)
        self.twin = nn.Linear(4, 5, bias=False)  # takes in the same
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        tokens = self.body(x).flatten(2).transpose(1, 2)  # [samples, positions, channels]
        return self.head((self.mix(tokens) + self.twin(tokens)).relu().mean(1))


def network():
    return random_(Tokens()).eval()


def proto():
    """Return what `Tokens` computes, as torch's exporter lays it out, without the weights."""
    nodes = [
        make_node("Conv", ["x", "body.first.weight", "body.first.bias"], ["a"], pads=[1] * 4),
        make_node("Relu", ["a"], ["b"]),
        make_node("Conv", ["b", "body.grouped.weight", "body.grouped.bias"], ["c"], group=2),
        make_node("Constant", [], ["flat"], value_ints=[0, 4, -1]),
        make_node("Reshape", ["c", "flat"], ["d"]),
        make_node("Transpose", ["d"], ["tokens"], perm=[0, 2, 1]),
        make_node("Transpose", ["mix.weight"], ["mixed"], perm=[1, 0]),
        make_node("MatMul", ["tokens", "mixed"], ["e"]),
        make_node("Transpose", ["twin.weight"], ["twinned"], perm=[1, 0]),
        make_node("MatMul", ["tokens", "twinned"], ["f"]),
        make_node("Add", ["e", "f"], ["g"]),
        make_node("Relu", ["g"], ["h"]),
        make_node("Constant", [], ["middle"], value_ints=[1]),
        make_node("ReduceMean", ["h", "middle"], ["i"], keepdims=0),
        make_node("Gemm", ["i", "head.weight", "head.bias"], ["output"], transB=1),
    ]
    inputs = [make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", *SHAPE])]
    outputs = [make_tensor_value_info("output", onnx.TensorProto.FLOAT, ["batch", 3])]
    graph = make_graph(nodes, "net", inputs, outputs)
    return make_model(graph, opset_imports=[make_opsetid("", 18)], ir_version=10)


def write(path, model, **metadata):
    """Pack the network with its graph and taps."""
    tensors = dict(model.state_dict())
    made = proto()
    kinds = dict.fromkeys(sorted(tensors), "float32")
    told = taps(made, tensors, onnx.helper)
    texts = Graph(made.SerializeToString(), kinds, None, told).metadata(tensors)
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    ours = {"fingerprint": fingerprint(model), **texts, **metadata}
    flexrel_edge.write(path, arrays, metadata=ours)
    return path


def requests(count, seed=0):
    """Return requests of one to three samples."""
    draw = np.random.default_rng(seed)
    sizes = (1 + at % 3 for at in range(count))
    return [draw.standard_normal((size, *SHAPE)).astype(np.float32) for size in sizes]


def taken_in(model, names, x):
    """Return what layers take in, float64 `[rows, channels]`, by torch's own hooks."""
    found, handles = {}, []
    for name in names:
        layer = model.get_submodule(name)
        axis = 1 if isinstance(layer, nn.Conv2d) else -1

        def note(_, args, name=name, axis=axis):
            found[name] = args[0].detach().double().movedim(axis, -1).flatten(0, -2)

        handles.append(layer.register_forward_pre_hook(note))
    with torch.no_grad():
        model(torch.as_tensor(x))
    for handle in handles:
        handle.remove()
    return found
