"""How long layers take on this device: a kit of small ONNX networks in, their times out.

The kit is a zip that `flexrel latency-kit` makes of one network: each of its layers at a grid of
widths, the network as a whole, and some cuts of it, all with constants for weights. The times go
back to the desk, where `prune` takes them for a budget on latency.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, Final
from zipfile import BadZipFile, ZipFile

import numpy as np

from flexrel_edge.errors import FlexrelError, PackError
from flexrel_edge.files import replace_file
from flexrel_edge.records import Array
from flexrel_edge.session import CPU, session_of
from flexrel_edge.trust import FilePath

KIT: Final = ("flexrel-latency-kit", 1)  # format and version
PROFILE: Final = ("flexrel-latency-profile", 1)
INDEX: Final = "index.json"
Told = Callable[[int, int], None]  # how many are done, of how many

_MILLISECONDS: Final = 1000  # of a second
_MOST_CALLS: Final = 1000
_TURNS: Final = 9
_LAYER: Final = 0.0015  # seconds that a turn is about, or one call
_NETWORK: Final = 0.015


def fastest_of(call: Callable[[], object], calls: int) -> float:
    """Return the seconds of the fastest of some calls: others share the processor for a while."""
    times = []
    for _ in range(calls):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times)


def calls_within(call: Callable[[], object], seconds: float) -> int:
    """Return how many calls take about so long, at least one; the first one warms it up."""
    call()
    once = fastest_of(call, 1)
    return max(1, min(int(seconds / max(once, 1e-9)), _MOST_CALLS))


def machine() -> str:
    """Return what tells machines of different speed apart: processor and number of cores."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{platform.machine()}, {next(named, platform.processor())}, {os.cpu_count()} cores"


def profile(
    kit: FilePath, out: FilePath, threads: int = 1, tell: Told = lambda _done, _of: None
) -> dict[str, Any]:
    """Time all that is in a kit, in onnxruntime, and write the times as JSON.

    Args:
        kit: as `flexrel latency-kit` writes it.
        out: file of the times, written whole or not at all.
        threads: that a call may use.
        tell: is told after each turn.

    Returns:
        What was written.

    Raises:
        PackError: the kit is damaged, or something else.
        FlexrelError: onnxruntime can't run it, or is not there.
        OSError: a file can't be read or written.
    """
    if threads < 1:
        raise FlexrelError(f"threads is {threads}; it is a whole number from 1")
    try:
        with ZipFile(kit) as archive:
            index = _index(archive)
            feed = _inputs(archive)
            names = [*index["networks"].values(), *index["layers"].values()]
            done = 0
            times: dict[str, float] = {}
            for _ in range(_TURNS):  # machines are busier at one time than at another
                for name in names:
                    network = archive.read(name)
                    whole = name in index["networks"].values()
                    seconds = _timed(network, feed if whole else {}, threads)
                    times[name] = min(times.get(name, seconds), seconds)
                    done += 1
                    tell(done, _TURNS * len(names))
    except (BadZipFile, KeyError, ValueError, TypeError, AttributeError) as error:
        raise PackError(f"{kit}: is no latency kit, or it is damaged: {error}") from error
    found = {
        "format": PROFILE[0],
        "version": PROFILE[1],
        "of": {
            "machine": machine(),
            "runtime": "onnxruntime",
            "version": importlib.metadata.version("onnxruntime"),
            "threads": threads,
        },
        "batch": index["batch"],
        "network": index["network"],
        "networks": {key: _MILLISECONDS * times[n] for key, n in index["networks"].items()},
        "layers": {key: _MILLISECONDS * times[n] for key, n in index["layers"].items()},
    }
    replace_file(Path(out), json.dumps(found, indent=1).encode())
    return found


def _index(archive: ZipFile) -> dict[str, Any]:
    index: dict[str, Any] = json.loads(archive.read(INDEX))
    if (index["format"], index["version"]) != KIT:
        raise ValueError(f"it is {index['format']} version {index['version']}")
    if not {"batch", "network"} <= index.keys() or "dense" not in index["networks"]:
        raise ValueError("its index lacks the dense network")
    return index


def _inputs(archive: ZipFile) -> dict[str, Array]:
    with np.load(BytesIO(archive.read("inputs.npz")), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays}


def _timed(network: bytes, feed: dict[str, Array], threads: int) -> float:
    """Return the seconds of a call of a network on its inputs, or of a layer, without any."""
    session = session_of(network, CPU, threads)
    inputs = session.get_inputs()
    names = [node.name for node in inputs]
    given = dict(feed) or {names[0]: np.full(inputs[0].shape, 0.01, np.float32)}
    for at, name in enumerate(names):  # those given by place come first
        if str(at) in given:
            given[name] = given.pop(str(at))

    def call() -> object:
        return session.run(None, given)

    return fastest_of(call, calls_within(call, _NETWORK if feed else _LAYER))
