"""How long networks and layers take in a runtime: measured in a process of its own, and kept."""

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from flexrel.core.batches import Batch, first_samples
from flexrel.core.latency import Latency, Timing
from flexrel.core.latency_model import LayerKind
from flexrel.errors import ModelError, UsageError
from flexrel.io.export import exported
from flexrel_edge.files import replace_file
from flexrel_edge.profile import machine

_MILLISECONDS: Final = 1000  # of a second
_OF_NETWORKS: Final = {"turns": 33, "seconds": 0.015}  # a turn is about so long, or one call
_OF_LAYERS: Final = {"turns": 9, "seconds": 0.0015}
_EXTRAS: Final = {"onnxruntime": "export", "openvino": "openvino"}
_PACKAGES: Final = ("onnx", "onnxscript", "onnxruntime")  # that ONNX takes


@dataclass(frozen=True, slots=True)
class LayerPoint:
    """A layer of certain widths: outputs and inputs as its weight has them."""

    kind: LayerKind
    groups: int
    outputs: int
    inputs: int

    def key(self, batch: int) -> str:
        """Return the point as a text, the same in every process."""
        return json.dumps(self.told(batch), sort_keys=True)

    def told(self, batch: int) -> dict[str, Any]:
        """Return the point as a job has it."""
        widths = {"groups": self.groups, "outputs": self.outputs, "inputs": self.inputs}
        return {**asdict(self.kind), **widths, "batch": batch}


def check_runtime(runtime: str) -> None:
    """Refuse to go on without what a runtime takes.

    Raises:
        UsageError: it is not installed; names the extra.
    """
    if runtime not in _EXTRAS:
        return
    for name in dict.fromkeys((*_PACKAGES, runtime)):
        if importlib.util.find_spec(name) is None:
            extra = _EXTRAS[runtime]
            raise UsageError(
                f"latency in {runtime} takes the extra {extra!r}: pip install 'flexrel[{extra}]' "
                f"({name} is not installed)"
            )


def network_times(
    model: nn.Module, dense: bytes, example: Batch, budget: Latency, predicted: float
) -> Timing:
    """Return how long a call takes, in turn with the dense network, in a process of its own.

    Args:
        model: not changed.
        dense: the dense network's file, as `timed_file` returns it.
        example: a batch of inputs.
        budget: says the runtime, and how it is called.
        predicted: the share of the dense network's time that the call is expected to take.

    Raises:
        ModelError: the network can't be exported, or the runtime can't run it.
    """
    files = [dense, timed_file(model, example, budget)]
    first, second = _measured(budget, files, of_samples(example, budget.batch))
    return Timing(
        budget.runtime,
        importlib.metadata.version(budget.runtime),
        budget.batch,
        budget.threads,
        _undisturbed(second),
        _undisturbed(first),
        predicted,
    )


def dense_time(dense: bytes, example: Batch, budget: Latency) -> float:
    """Return the milliseconds of a call of the network in a file, in a process of its own."""
    (times,) = _measured(budget, [dense], of_samples(example, budget.batch))
    return _undisturbed(times)


def _undisturbed(times: Sequence[float]) -> float:
    """Return the milliseconds of the fastest of several turns, in seconds.

    What else the machine does makes turns slower, where it is busy most of them, and none faster.
    """
    return _MILLISECONDS * min(times)


def timed_file(model: nn.Module, example: Batch, budget: Latency) -> bytes:
    """Return the file of a network that the runtime runs: of torch's own program, or ONNX.

    Raises:
        ModelError: the network can't be exported.
    """
    kind = "pt2" if budget.runtime == "torch" else "onnx"
    return exported(model, of_samples(example, budget.batch), kind)[0]


def layer_times(points: Iterable[LayerPoint], budget: Latency) -> dict[LayerPoint, float]:
    """Return the milliseconds of layers; those of the budget's cache are not measured again.

    Of several turns the fastest counts: what else the machine does makes a layer slower, and never
    faster.

    Raises:
        UsageError: the cache is no folder, or a file of it is damaged.
    """
    points = list(dict.fromkeys(points))
    known = _read(budget)
    missing = [point for point in points if point.key(budget.batch) not in known]
    if missing:
        layers = [point.told(budget.batch) for point in missing]
        job = {**_OF_LAYERS, "networks": [], "layers": layers}
        for point, times in zip(missing, _run(budget, job, None)["layers"], strict=True):
            known[point.key(budget.batch)] = _MILLISECONDS * min(times)
        _write(budget, known)
    return {point: known[point.key(budget.batch)] for point in points}


def of_samples(example: Batch, count: int) -> Batch:
    """Return a batch of so many samples, the example's over and over if it has fewer."""
    size = example.samples
    if size >= count:
        return first_samples(example, count)
    places = torch.arange(count) % size

    def more(value: Any) -> Any:  # noqa: ANN401 - arguments of the user's model
        whole = isinstance(value, Tensor) and value.ndim > 0 and len(value) == size
        return value[places] if whole else value

    return example.mapped(more)


def _measured(budget: Latency, files: Sequence[bytes], example: Batch) -> list[list[float]]:
    return _run(budget, {**_OF_NETWORKS, "layers": []}, example, files)["networks"]


def _run(
    budget: Latency, job: Mapping[str, Any], example: Batch | None, files: Sequence[bytes] = ()
) -> dict[str, list[list[float]]]:
    """Return what the stopwatch says of a job, in a process that has run nothing before."""
    with tempfile.TemporaryDirectory() as passing:
        folder = Path(passing)
        paths = [folder / f"{at}.network" for at in range(len(files))]
        for path, data in zip(paths, files, strict=True):
            path.write_bytes(data)
        if example is not None:
            given = {"args": example.args, "kwargs": dict(example.kwargs)}
            torch.save(given, folder / "inputs")
        whole = {
            "runtime": budget.runtime,
            "threads": budget.threads,
            "inputs": str(folder / "inputs"),
            **job,
            "networks": list(map(str, paths)),
        }
        (folder / "job").write_text(json.dumps(whole))
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(budget.threads))
        search = os.pathsep.join(filter(None, sys.path))
        ran = subprocess.run(  # noqa: S603 - this package's own module
            [sys.executable, "-m", "flexrel.io.stopwatch", str(folder / "job")],
            env={**os.environ, **threads, "PYTHONPATH": search},
            capture_output=True,
            text=True,
            check=False,
        )
    if ran.returncode:
        why = (ran.stderr.strip().splitlines() or [f"exit code {ran.returncode}"])[-1]
        raise ModelError(f"{budget.runtime} can't be timed on the network: {why}")
    found: dict[str, list[list[float]]] = json.loads(ran.stdout)
    return found


# --- what was measured before ---------------------------------------------------------------


def _place(budget: Latency) -> tuple[Path, dict[str, Any]] | None:
    """Return the file that keeps times of this machine and runtime, and what it is of."""
    if not budget.cache:
        return None
    of = {
        "machine": machine(),
        "runtime": budget.runtime,
        "version": importlib.metadata.version(budget.runtime),
        "threads": budget.threads,
    }
    name = sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:16]
    return Path(budget.cache) / f"latency-{budget.runtime}-{name}.json", of


def _read(budget: Latency) -> dict[str, float]:
    if (place := _place(budget)) is None or not place[0].exists():
        return {}
    path, of = place
    try:
        content = json.loads(path.read_text())
        times = {str(key): float(value) for key, value in content["times"].items()}
        right = content["of"] == of and all(value > 0 for value in times.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: times of layers are damaged ({error}); delete it") from error
    if not right:
        raise UsageError(f"{path}: times of layers are of another machine or runtime; delete it")
    return times


def _write(budget: Latency, times: Mapping[str, float]) -> None:
    if (place := _place(budget)) is None:
        return
    path, of = place
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, json.dumps({"of": of, "times": times}, indent=1).encode())
