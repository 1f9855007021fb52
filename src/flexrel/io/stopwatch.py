"""What runs in a process of its own: times networks and layers in a runtime, and nothing else.

`python -m flexrel.io.stopwatch JOB` reads a job and writes the times, as JSON, on stdout.
"""

import importlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from flexrel_edge.profile import calls_within, fastest_of
from flexrel_edge.records import Array
from flexrel_edge.session import CPU, session_of

Runnable = Callable[[], object]
Layer = Mapping[str, Any]  # of a job: a `LayerPoint`, and the batch
_OPSET: Final = 17  # of ONNX, which all runtimes read
_IR: Final = 8
_MAKES: Final = 3  # times that networks are loaded, each with its share of the turns
_ENOUGH: Final = 1.0  # seconds of such turns, after the least number of them
_LEAST_TURNS: Final = 3


def times_of(job: Mapping[str, Any]) -> dict[str, list[list[float]]]:
    """Return the seconds of a call of each network and each layer of a job, one for each turn."""
    torch.set_num_threads(job["threads"])
    make = _RUNTIMES[job["runtime"]]
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        found: list[list[float]] = [[] for _ in job["networks"]]
        for _ in range(_MAKES if found else 0):  # where its memory lies may make one slower
            networks = [make(Path(path), job, Path(folder)) for path in job["networks"]]
            for at, seconds in _in_turn(networks, job["turns"] // _MAKES, job["seconds"]):
                found[at].append(seconds)
        layers: list[list[float]] = [[] for _ in job["layers"]]
        for _ in range(job["turns"]):  # made anew each turn: all at once may not fit the memory
            for layer, times in zip(job["layers"], layers, strict=True):
                call = make(layer, job, Path(folder))
                times.append(fastest_of(call, calls_within(call, job["seconds"])))
        return {"networks": found, "layers": layers}


def _in_turn(
    networks: Sequence[Runnable], turns: int, seconds: float
) -> Iterator[tuple[int, float]]:
    """Yield which network was timed, and its seconds: one turn first to last, one last to first.

    Of networks that take long there are fewer turns.
    """
    calls = [calls_within(network, seconds) for network in networks]
    began = time.perf_counter()
    for turn in range(turns):
        if turn >= _LEAST_TURNS and time.perf_counter() - began > _ENOUGH:
            break
        order = range(len(networks)) if turn % 2 == 0 else range(len(networks))[::-1]
        for at in order:
            yield at, fastest_of(networks[at], calls[at])


# --- runtimes: each makes a call of a network's file, or of a layer -------------------------


def _in_torch(what: Path | Layer, job: Mapping[str, Any], folder: Path) -> Runnable:
    del folder
    if not isinstance(what, Path):
        return _torch_layer(what)
    given = _inputs(job)
    program = torch.export.load(what).module()
    return partial(program, *given["args"], **given["kwargs"])


def _torch_layer(layer: Layer) -> Runnable:
    inputs, weight, bias = map(torch.from_numpy, _arrays(layer))
    if not layer["kernel"]:
        return partial(torch.nn.functional.linear, inputs, weight, bias)
    padding = [before for before, _ in layer["padding"]]
    moves = layer["stride"], padding, layer["dilation"], layer["transposed"]
    more = layer["output_padding"], layer["groups"]
    return partial(torch.convolution, inputs, weight, bias, *moves, *more)


def _in_onnxruntime(what: Path | Layer, job: Mapping[str, Any], folder: Path) -> Runnable:
    del folder
    network = what.read_bytes() if isinstance(what, Path) else onnx_layer(what)
    session = session_of(network, CPU, job["threads"])
    names = [node.name for node in session.get_inputs()]
    return partial(session.run, None, _feed(what, names, job))


def _in_openvino(what: Path | Layer, job: Mapping[str, Any], folder: Path) -> Runnable:
    openvino = importlib.import_module("openvino")
    path = what if isinstance(what, Path) else folder / "layer.onnx"
    if not isinstance(what, Path):
        path.write_bytes(onnx_layer(what))
    settings = {
        "INFERENCE_NUM_THREADS": job["threads"],
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    names = [node.get_any_name() for node in compiled.inputs]
    return partial(compiled.create_infer_request().infer, _feed(what, names, job))


_RUNTIMES = {"torch": _in_torch, "onnxruntime": _in_onnxruntime, "openvino": _in_openvino}


def _inputs(job: Mapping[str, Any]) -> dict[str, Any]:
    given: dict[str, Any] = torch.load(job["inputs"], weights_only=True)
    return given


def _feed(what: Path | Layer, names: Sequence[str], job: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inputs of an ONNX network by name: those given by place come first."""
    if not isinstance(what, Path):
        return {names[0]: _arrays(what)[0]}
    given = _inputs(job)
    feed = dict(zip(names, given["args"], strict=False))
    feed |= {name: value for name, value in given["kwargs"].items() if name in names}
    return {name: tensor.numpy() for name, tensor in feed.items()}


# --- layers ---------------------------------------------------------------------------------


def _arrays(layer: Layer) -> list[Array]:
    """Return a layer's input, weight and bias; which values, no time depends on."""
    outputs, inputs, groups = layer["outputs"], layer["inputs"], layer["groups"]
    size, batch, kernel = layer["size"], layer["batch"], layer["kernel"]
    if not kernel:
        shapes = [batch, *size, inputs], [outputs, inputs], [outputs]
    elif layer["transposed"]:
        shapes = [batch, inputs, *size], [inputs, outputs, *kernel], [outputs * groups]
    else:
        shapes = [batch, inputs * groups, *size], [outputs, inputs, *kernel], [outputs]
    return [np.full(shape, 0.01, np.float32) for shape in shapes]


def onnx_layer(layer: Layer) -> bytes:
    """Return the layer alone as an ONNX file."""
    helper = importlib.import_module("onnx").helper
    numbers = importlib.import_module("onnx").numpy_helper.from_array
    inputs, weight, bias = _arrays(layer)
    if not layer["kernel"]:
        weight = np.ascontiguousarray(weight.T)
        nodes = [helper.make_node("MatMul", ["x", "w"], ["z"])]
        nodes += [helper.make_node("Add", ["z", "b"], ["y"])]
    else:
        attributes = {
            "kernel_shape": layer["kernel"],
            "strides": layer["stride"],
            "dilations": layer["dilation"],
            "pads": [before for before, _ in layer["padding"]] + [a for _, a in layer["padding"]],
            "group": layer["groups"],
        }
        if layer["transposed"]:
            attributes["output_padding"] = layer["output_padding"]
        name = "ConvTranspose" if layer["transposed"] else "Conv"
        nodes = [helper.make_node(name, ["x", "w", "b"], ["y"], **attributes)]
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", 1, inputs.shape)],
        [helper.make_tensor_value_info("y", 1, None)],
        [numbers(weight, "w"), numbers(bias, "b")],
    )
    opsets = [helper.make_opsetid("", _OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR)
    data: bytes = model.SerializeToString()
    return data


if __name__ == "__main__":
    json.dump(times_of(json.loads(Path(sys.argv[1]).read_text())), sys.stdout)
