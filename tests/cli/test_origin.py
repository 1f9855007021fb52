"""The words of a command are told, and which ask for another network of the same."""

import json

import pytest

from flexrel.cli import main
from flexrel.cli.origin import demo_origin, origin_of

DATA = ["--calibration", "demo:digits", "--evaluation", "demo:digits"]


@pytest.mark.parametrize(
    "asked",
    [
        ["--target", "accuracy-drop=1%"],
        ["--budget=macs=50%", "--budget", "bytes=20kB", "--compare", "--out", "x", "-q"],
        ["--criterion=obs", "--export", "onnx", "--json", "--overwrite", "--assured"],
    ],
)
def test_words_that_ask_for_another_point_leave_out_what_was_asked(asked):
    words = ["prune", "net.py:make", *DATA, *asked, "--granularity", "head", "--seed=3"]
    named = {"model": "net.py:make", "calibration": "a", "evaluation": "b"}

    origin = origin_of(words, named)

    expected = ("prune", "net.py:make", *DATA, "--granularity", "head", "--seed=3")
    assert origin.command == ("flexrel", *words)
    assert origin.again == ("flexrel", *expected)
    assert (origin.model, origin.calibration, origin.evaluation) == ("net.py:make", "a", "b")


def test_the_demo_can_be_pruned_again_with_its_seed():
    base = ("flexrel", "prune", "demo:digits", *DATA)

    assert demo_origin(["demo"], 0).again == base
    assert demo_origin(["demo", "--seed", "2"], 2).again == (*base, "--seed", "2")


def test_a_saved_result_tells_its_command(tmp_path, monkeypatch):
    (tmp_path / "net.py").write_text(
        "import torch\n"
        "def make():\n"
        "    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential("
        "torch.nn.Linear(4, 9), torch.nn.ReLU(), torch.nn.Linear(9, 3))\n"
        "def data():\n    return [torch.randn(8, 4)]\n"
    )
    monkeypatch.chdir(tmp_path)
    words = ["prune", "net.py:make", "--calibration", "net.py:data", "--budget", "macs=50%", "-q"]

    assert main(words) == 0

    origin = json.loads((tmp_path / "pruned" / "result.json").read_text())["origin"]
    assert origin["command"] == ["flexrel", *words]
    assert origin["evaluation"] is None
    assert "macs=50%" not in origin["again"]
