"""`flexrel sweep`: a table, a file, and the command that makes each point."""

import json
import shlex

import pytest

from flexrel.cli import main
from flexrel.pruning import sweeper

pytest.importorskip("optuna", reason="it comes with the extra 'sweep'")

NETWORK = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))

def inputs():
    return [torch.randn(32, 6, generator=torch.Generator().manual_seed(1))]

def labelled():
    return [(x, make()(x).argmax(1)) for x in inputs()]
"""


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NETWORK)
    data = ("--calibration", "net.py:inputs", "--evaluation", "net.py:labelled")
    quick = ("--resource", "macs", "--points", "2", "--recover", "none", "-q")

    def run(*options):
        return main(["sweep", "net.py:make", *data, *quick, *options])

    return run


def test_every_point_has_the_command_that_makes_it(sweep, tmp_path, capsys):
    """Of 160 multiply-adds 40 are the least with widths in multiples of 4: thirds of 1/4."""
    assert sweep("--seed", "2", "--criterion", "magnitude", "--multiple-of", "4") == 0

    told = json.loads((tmp_path / "sweep" / "frontier.json").read_text())
    assert [one["budget"] for one in told["points"]] == ["macs=63.0%", "macs=39.7%"]
    for point in told["points"]:
        program, *words = shlex.split(point["command"])
        capsys.readouterr()
        assert (program, main([*words, "--overwrite", "--json", "-q"])) == ("flexrel", 0)
        achieved = json.loads(capsys.readouterr().out)["achieved"]
        assert achieved["macs"] == point["reached"]["amounts"]["macs"]
        assert achieved["accuracy"] == point["reached"]["metrics"]["accuracy"]
        assert achieved["accuracy_standard_error"] == point["reached"]["standard_error"]
        assert "--multiple-of 4" in point["command"]


def test_the_table_marks_the_front_and_commands_follow(sweep, tmp_path, capsys):
    assert sweep("--points", "50%, 5", "--criterion", "magnitude") == 0
    told = json.loads((tmp_path / "sweep" / "frontier.json").read_text())
    assert capsys.readouterr().out == ""

    data = "--calibration net.py:inputs --evaluation net.py:labelled"
    asked = "--recover none --resource macs --points 50%,5 --criterion magnitude"
    assert main(f"sweep net.py:make {data} {asked}".split()) == 0

    said = capsys.readouterr()
    assert "> macs=50%" in said.out
    assert "dense" in said.out
    assert told["points"][0]["command"] in said.out
    assert "impossible: macs=5, channel, float32: asked for at most 5 MACs" in said.err


def test_a_stopped_sweep_says_that_it_goes_on(sweep, monkeypatch, capsys):
    made = []

    def stopped(*args, **asked):
        made.append(asked["budgets"])
        if len(made) == 2:
            raise KeyboardInterrupt
        return prune(*args, **asked)

    prune = sweeper.prune
    monkeypatch.setattr(sweeper, "prune", stopped)

    assert sweep("--criterion", "magnitude") == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert sweep("--criterion", "magnitude") == 0
    assert made == [["macs=39.7%"], ["macs=15.7%"], ["macs=15.7%"]]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--points", "50%,,5"], "write 6, or 50%,25%,10%"),
        (["--points", "0"], "points is 0"),
        (["--resource", "flops"], "did you mean macs"),
        (["--metric", "loss"], "does not tell 'loss'"),
        (["--trials", "-1"], "--trials"),
    ],
)
def test_wrong_words_are_one_line_and_exit_code_2(sweep, capsys, words, says):
    assert sweep(*words) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1


def test_json_is_one_object_on_stdout(sweep, capsys):
    assert sweep("--criterion", "magnitude", "--json") == 0

    told = json.loads(capsys.readouterr().out)
    assert told["resource"] == "macs"
    assert told["out"] == "sweep"
