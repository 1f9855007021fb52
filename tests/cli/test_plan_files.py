"""Files of plans on the command line: shown, carried out, refused."""

import json

import pytest
import torch
from torch import nn

import flexrel
from families import family
from flexrel.cli import main
from planned import all_plans, plan_for


@pytest.fixture(scope="module")
def plans():
    return all_plans()


def same_state(one, two):
    a, b = one.state_dict(), two.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


NETWORK = """
import torch
from families import family

def make():
    return family("grouped")

def odd():
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    return net
"""


@pytest.fixture
def files(tmp_path, plans):
    (tmp_path / "net.py").write_text(NETWORK)
    plans["grouped"].save(tmp_path / "plan.json")
    return tmp_path


def test_inspect_shows_a_plan(files, plans, capsys):
    assert main(["inspect", str(files / "plan.json")]) == 0

    shown = capsys.readouterr().out
    kept = int(plans["grouped"].masks["stem"].sum())
    for text in (f"{kept} of 8 channels", "reduce", "grouped", "norm1", "expand", "parameters"):
        assert text in shown
    assert "it is the network's output" in shown


def test_inspect_shows_names_as_they_are(tmp_path, capsys):
    model = nn.Sequential()
    for name, layer in {"[red]a": nn.Linear(3, 4), "[/b]": nn.Linear(4, 2)}.items():
        model.add_module(name, layer)
    plan_for(model, inputs=torch.ones(2, 3)).save(tmp_path / "plan.json")

    assert main(["inspect", str(tmp_path / "plan.json")]) == 0

    shown = capsys.readouterr().out
    assert "[red]a" in shown
    assert "[/b]" in shown


def test_inspect_gives_a_plan_as_one_object(files, plans, capsys):
    assert main(["inspect", str(files / "plan.json"), "--json"]) == 0

    assert json.loads(capsys.readouterr().out) == json.loads(plans["grouped"].encode())


def test_pack_carries_a_plan_out(files, plans, capsys):
    make, plan, out = f"{files}/net.py:make", str(files / "plan.json"), files / "m.flexrel"

    assert main(["pack", make, "--plan", plan, "-o", str(out)]) == 0

    loaded = flexrel.load(out, into=family("grouped", seed=4))
    assert same_state(loaded, flexrel.apply(family("grouped"), plans["grouped"]))


@pytest.mark.parametrize(
    ("factory", "plan", "code", "says"),
    [
        ("make", "none.json", 2, "none.json: no such file"),
        ("make", "net.py", 5, "is no plan"),
        ("odd", "plan.json", 2, "of another network"),
    ],
)
def test_a_plan_that_is_not_there_or_not_right_is_one_line(
    files, capsys, factory, plan, code, says
):
    command = ["pack", f"{files}/net.py:{factory}", "--plan", str(files / plan)]

    assert main([*command, "-o", str(files / "m.flexrel")]) == code

    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
    assert not (files / "m.flexrel").exists()


def test_a_damaged_plan_is_one_line_and_exit_5(files, capsys):
    (files / "plan.json").write_text("{")

    assert main(["inspect", str(files / "plan.json")]) == 5
    assert capsys.readouterr().err.count("\n") == 1
