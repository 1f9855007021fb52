"""Packed networks in onnxruntime, which is an extra: nothing here is loaded without it."""

from __future__ import annotations

import importlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Final

import numpy as np

from flexrel_edge.errors import FlexrelError
from flexrel_edge.files import opened
from flexrel_edge.graph import write_onnx
from flexrel_edge.records import Array, show
from flexrel_edge.trust import FilePath

CPU: Final = ("CPUExecutionProvider",)
_SILENT: Final = 4  # its errors come as exceptions
_DTYPES: Final = {"float": "float32", "double": "float64"}  # where onnxruntime has its own words


@dataclass(frozen=True)
class Ran:
    """What a network gave, and how long it took.

    Attributes:
        outputs: by name.
        milliseconds: median of the calls after the first; None: there were none.
    """

    outputs: dict[str, Array]
    milliseconds: float | None


def session(
    path: FilePath,
    providers: Sequence[str] = CPU,
    threads: int = 0,
    trust: FilePath | None = None,
    *,
    observing: bool = False,
) -> Any:  # noqa: ANN401
    """Return an `onnxruntime.InferenceSession` of a packed file that carries its ONNX graph.

    Args:
        path: of the file; verified.
        providers: of onnxruntime, the first that can is taken.
        threads: that one call may use; 0: one a core.
        trust: PEM file of public keys, one of which must have signed it.
        observing: whether it has outputs too that tell what its layers take in, if it was packed
            so: for each layer `NAME|mean` and `NAME|square`, float32 `[channels]`.

    Raises:
        PackError: the file is damaged or not trusted.
        FlexrelError: it has no graph, onnxruntime can't run it, or there is no onnxruntime.
        OSError: the file can't be read.
    """
    _onnxruntime()  # first: without it all else is for nothing
    network = BytesIO()
    with opened(path, trust) as packed:
        write_onnx(packed, network, observing=observing)
    try:
        return session_of(network.getvalue(), providers, threads)
    except FlexrelError as error:
        raise FlexrelError(f"{path}: {error}") from error


def session_of(network: bytes, providers: Sequence[str] = CPU, threads: int = 0) -> Any:  # noqa: ANN401
    """Return an `onnxruntime.InferenceSession` of the bytes of an ONNX file.

    Args:
        network: as `write_onnx` writes it.
        providers: as for `session`.
        threads: likewise.

    Raises:
        FlexrelError: onnxruntime can't run it, or is not there.
    """
    runtime = _onnxruntime()
    options = runtime.SessionOptions()
    options.log_severity_level = _SILENT
    options.intra_op_num_threads = threads
    try:
        return runtime.InferenceSession(network, options, providers=list(providers))
    except Exception as error:
        raise FlexrelError(f"onnxruntime can't run the network: {_reason(error)}") from error


def run(network: Any, inputs: Array | Mapping[str, Array], repeat: int = 0) -> Ran:  # noqa: ANN401
    """Run a session.

    Args:
        network: an `onnxruntime.InferenceSession`.
        inputs: arrays by the names of the network's inputs; of one input also the array alone,
            or as `x`. Numbers of another width are converted.
        repeat: how many more times to run it, to say how long it takes.

    Raises:
        FlexrelError: the inputs are not those of the network, or it can't run on them.
    """
    feed = _fed(network, inputs)
    took = []
    try:
        given = network.run(None, feed)
        for _ in range(repeat):
            start = time.perf_counter()
            network.run(None, feed)
            took.append(time.perf_counter() - start)
    except Exception as error:
        raise FlexrelError(
            f"onnxruntime can't run on these inputs: {_reason(error)}; {_told(network, feed)}"
        ) from error
    names = [output.name for output in network.get_outputs()]
    return Ran(dict(zip(names, given)), 1000 * float(np.median(took)) if took else None)


def _onnxruntime() -> Any:  # noqa: ANN401
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise FlexrelError(
            f"running takes onnxruntime: pip install 'flexrel-edge[run]' ({error})"
        ) from error


def _fed(network: Any, inputs: Array | Mapping[str, Array]) -> dict[str, Array]:  # noqa: ANN401
    wanted = {node.name: node for node in network.get_inputs()}
    if not isinstance(inputs, Mapping):
        inputs = {"x": inputs}
    if len(wanted) == 1 and wanted.keys() != inputs.keys() and "x" in inputs:
        inputs = {next(iter(wanted)): inputs["x"]}
    if wanted.keys() != inputs.keys():
        raise FlexrelError(
            f"the network's inputs are {show(sorted(wanted))}, given are {show(sorted(inputs))}"
        )
    return {name: _converted(node, inputs[name]) for name, node in wanted.items()}


def _converted(node: Any, array: Array) -> Array:  # noqa: ANN401
    """Return the array in the dtype that an input wants, if it is of the same kind."""
    word = node.type.removeprefix("tensor(").removesuffix(")")
    try:
        dtype = np.dtype(_DTYPES.get(word, word))
    except TypeError:  # a type that numpy lacks: onnxruntime's to judge
        return array
    if not np.can_cast(array.dtype, dtype, "same_kind"):
        raise FlexrelError(
            f"input {show(node.name)} is {dtype} for the network, given {array.dtype}"
        )
    return array.astype(dtype, copy=False)


def _told(network: Any, feed: Mapping[str, Array]) -> str:  # noqa: ANN401
    """Return what inputs a network takes, and what it was given."""
    takes = (f"{node.name} {[_size(axis) for axis in node.shape]}" for node in network.get_inputs())
    given = (f"{name} {list(array.shape)}" for name, array in feed.items())
    return f"the network takes {', '.join(takes)}, given are {', '.join(given)}".replace("'", "")


def _size(axis: object) -> object:
    return axis if isinstance(axis, int) else str(axis)


def _reason(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
