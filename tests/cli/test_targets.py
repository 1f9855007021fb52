"""Targets on any metric on the command line, told by a function of the user's."""

import json

import pytest

from flexrel.cli import main

NETWORK = """
import torch
from torch import nn
from torch.nn import functional

def make():
    torch.manual_seed(0)
    last = nn.Linear(16, 4)
    with torch.no_grad():
        last.weight *= 20
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), last)

def inputs(samples=24):
    return [torch.randn(samples, 6, generator=torch.Generator().manual_seed(1))]

def told(model):
    x = inputs()[0]
    return {"loss": functional.cross_entropy(model(x), make()(x).argmax(1))}
"""


@pytest.fixture
def net(tmp_path):
    path = tmp_path / "net.py"
    path.write_text(NETWORK)
    return path


def out(net):
    return "--out", str(net.parent / "pruned")


def test_a_function_of_the_model_tells_what_a_target_is_on(net, capsys):
    data = ("--calibration", f"{net}:inputs", "--evaluation", f"{net}:told")
    how = ("--criterion", "magnitude", "--recover", "none")

    code = main(["prune", f"{net}:make", *data, *how, "--target", "loss<=0.6", "--json", *out(net)])

    told = json.loads(capsys.readouterr().out)
    assert code == 0
    (target,) = told["targets"]
    assert (target["metric"], target["limit"]) == ("loss", 0.6)
    assert target["achieved"] <= 0.6
    assert told["achieved"]["metrics"] == {"loss": target["achieved"]}
    assert told["achieved"]["parameters"] < told["achieved"]["parameters_dense"]


def test_the_table_has_a_column_for_the_metric(net, capsys):
    data = ("--calibration", f"{net}:inputs", "--evaluation", f"{net}:told")
    how = ("--criterion", "magnitude", "--recover", "none")

    code = main(["prune", f"{net}:make", *data, *how, "--target", "loss+50%", *out(net)])

    assert code == 0
    assert "loss" in capsys.readouterr().out


def test_a_target_on_what_labelled_data_do_not_tell_is_refused(net, capsys):
    code = main(["prune", f"{net}:make", "--calibration", f"{net}:inputs", "--target", "loss+5%"])

    assert code == 2
    assert "a target on loss needs --evaluation" in capsys.readouterr().err
