"""Layers that are timed are those of the network, in every runtime; what was measured is kept."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import nn

from flexrel import Latency, ModelError, UsageError
from flexrel.core.latency_model import LayerKind
from flexrel.io import LayerPoint, layer_times, network_times, timed_file, timing
from flexrel.io.stopwatch import _in_onnxruntime, _in_torch, times_of
from networks import batch

EVEN, NONE = ((1, 1), (1, 1)), (0, 0)
POINTS = {
    "linear": LayerPoint(LayerKind(), 1, 5, 7),
    "linear over tokens": LayerPoint(LayerKind(size=(6,)), 1, 5, 7),
    "conv": LayerPoint(
        LayerKind((3, 3), (2, 1), EVEN, (1, 1), (9, 8), output_padding=NONE), 1, 5, 7
    ),
    "depthwise": LayerPoint(
        LayerKind((3, 3), (1, 1), EVEN, (2, 2), (9, 8), 6, output_padding=NONE), 6, 6, 1
    ),
    "grouped": LayerPoint(
        LayerKind((3,), (1,), ((1, 1),), (1,), (9,), 4, output_padding=(0,)), 2, 6, 5
    ),
    "transposed": LayerPoint(
        LayerKind((2, 3), (2, 2), EVEN, (1, 1), (4, 4), 1, True, (1, 0)), 1, 5, 7
    ),
}
MODULES = {  # the same, as torch's own modules, and the shape of two samples
    "linear": (nn.Linear(7, 5), (2, 7)),
    "linear over tokens": (nn.Linear(7, 5), (2, 6, 7)),
    "conv": (nn.Conv2d(7, 5, 3, (2, 1), 1), (2, 7, 9, 8)),
    "depthwise": (nn.Conv2d(6, 6, 3, 1, 1, 2, groups=6), (2, 6, 9, 8)),
    "grouped": (nn.Conv1d(10, 6, 3, padding=1, groups=2), (2, 10, 9)),
    "transposed": (nn.ConvTranspose2d(7, 5, (2, 3), 2, 1, (1, 0)), (2, 7, 4, 4)),
}


def expected(name):
    module, shape = MODULES[name]
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(0.01)
        return module(torch.full(shape, 0.01))


@pytest.mark.parametrize("name", POINTS)
def test_a_layer_in_torch_is_the_module_of_these_widths(name):
    call = _in_torch(POINTS[name].told(2), {}, Path())

    torch.testing.assert_close(call(), expected(name))


@pytest.mark.parametrize("name", POINTS)
def test_a_layer_in_onnxruntime_computes_the_same(name):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")

    (result,) = _in_onnxruntime(POINTS[name].told(2), {"threads": 1}, Path())()

    torch.testing.assert_close(torch.from_numpy(result), expected(name))


def test_a_job_is_timed_as_often_as_it_asks():
    job = {
        "runtime": "torch",
        "threads": torch.get_num_threads(),
        "turns": 3,
        "seconds": 0.0,
        "networks": [],
        "layers": [POINTS["conv"].told(1), POINTS["linear"].told(4)],
    }

    found = times_of(json.loads(json.dumps(job)))

    assert [len(times) for times in found["layers"]] == [3, 3]
    assert all(time > 0 for times in found["layers"] for time in times)


def test_a_point_has_one_name_and_another_point_or_batch_another():
    names = {point.key(size) for point in POINTS.values() for size in (1, 2)}

    assert len(names) == 2 * len(POINTS)
    assert POINTS["conv"].key(1) == LayerPoint(**vars_of(POINTS["conv"])).key(1)


def vars_of(point):
    return {**asdict(point), "kind": LayerKind(**asdict(point.kind))}


# --- what was measured before -----------------------------------------------------------------


@pytest.fixture
def runs(monkeypatch):
    """Stand in for the process: each layer takes as many milliseconds as it has outputs."""
    asked = []

    def run(budget, job, example, files=()):
        asked.append([layer["outputs"] for layer in job["layers"]])
        return {"layers": [[0.5, layer["outputs"] / 1000] for layer in job["layers"]]}

    monkeypatch.setattr(timing, "_run", run)
    return asked


def test_layers_that_were_measured_are_not_measured_again(runs, tmp_path):
    budget = Latency("5 ms", cache=str(tmp_path / "times"))

    first = layer_times([POINTS["conv"], POINTS["depthwise"]], budget)
    second = layer_times([POINTS["conv"], POINTS["depthwise"], POINTS["linear"]], budget)

    assert runs == [[5, 6], [5]]
    assert first[POINTS["conv"]] == second[POINTS["conv"]] == pytest.approx(5.0)
    assert second[POINTS["depthwise"]] == pytest.approx(6.0)


def test_without_a_folder_nothing_is_kept(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    layer_times([POINTS["conv"]], Latency("5 ms"))
    layer_times([POINTS["conv"]], Latency("5 ms"))

    assert len(runs) == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "other", [{"threads": 2}, {"batch": 2}, {"version": "9"}, {"machine": "another"}]
)
def test_times_of_another_machine_version_or_call_are_not_taken(runs, tmp_path, monkeypatch, other):
    layer_times([POINTS["conv"]], Latency("5 ms", cache=str(tmp_path)))
    call = {name: other[name] for name in ("threads", "batch") if name in other}
    if "version" in other:
        monkeypatch.setattr(timing.importlib.metadata, "version", lambda _: other["version"])
    if "machine" in other:
        monkeypatch.setattr(timing, "machine", lambda: other["machine"])

    layer_times([POINTS["conv"]], Latency("5 ms", cache=str(tmp_path), **call))

    assert len(runs) == 2


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"of": 1}', '{"times": {"a": "b"}}', '{"times": {"a": -1}}']
)
def test_a_damaged_file_of_times_is_refused_by_its_name(runs, tmp_path, content):
    budget = Latency("5 ms", cache=str(tmp_path))
    layer_times([POINTS["conv"]], budget)
    (file,) = tmp_path.iterdir()
    file.write_text(content)

    with pytest.raises(UsageError, match="delete it") as caught:
        layer_times([POINTS["conv"]], budget)

    assert str(file) in str(caught.value)


def test_a_file_that_is_renamed_to_another_machines_is_refused(runs, tmp_path, monkeypatch):
    budget = Latency("5 ms", cache=str(tmp_path))
    layer_times([POINTS["conv"]], budget)
    (mine,) = tmp_path.iterdir()
    monkeypatch.setattr(timing, "machine", lambda: "another")
    layer_times([POINTS["conv"]], budget)
    (other,) = (path for path in tmp_path.iterdir() if path != mine)
    mine.replace(other)

    with pytest.raises(UsageError, match="of another machine or runtime"):
        layer_times([POINTS["conv"]], budget)


# --- in a process of its own ------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["torch", "onnxruntime", "openvino"])
def test_a_network_ten_times_as_wide_takes_longer_in_a_fresh_process(runtime):
    for name in ("onnx", "onnxscript", runtime):
        pytest.importorskip(name)
    small, wide = (
        nn.Sequential(nn.Linear(64, n), nn.ReLU(), nn.Linear(n, 8)) for n in (100, 10_000)
    )
    example = batch(torch.rand(2, 64))
    budget = Latency("50%", runtime, batch=3)

    found = network_times(small, timed_file(wide, example, budget), example, budget, 0.5)

    assert 0 < found.milliseconds < found.dense
    assert (found.runtime, found.batch, found.predicted) == (runtime, 3, 0.5)


@pytest.mark.slow
def test_what_a_runtime_says_is_passed_on():
    example = batch(torch.rand(2, 4))

    with pytest.raises(ModelError, match="torch can't be timed on the network: "):
        network_times(nn.Linear(4, 2), b"no program", example, Latency("5 ms"), 0.5)


@pytest.mark.slow
def test_layers_are_measured_in_a_fresh_process(tmp_path):
    narrow, wide = (LayerPoint(LayerKind(size=(50,)), 1, n, n) for n in (16, 512))

    found = layer_times([narrow, wide], Latency("5 ms", cache=str(tmp_path)))

    assert 0 < found[narrow] < found[wide]
    assert len(list(tmp_path.iterdir())) == 1
