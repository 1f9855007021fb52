"""`flexrel compare A B`: two results side by side, of one network, as a table and a page."""

import json
import re

import pytest
import torch
from torch import nn

import flexrel
from flexrel.cli import main
from flexrel.io import comparison_of
from report_page import INPUTS, Page, network


def prune(model, folder, **asked):
    labels = network()(INPUTS).argmax(1)
    labels[::10] = (labels[::10] + 1) % 3
    request = {"criterion": "magnitude", "recover": "none", "budgets": ["parameters=90%"], **asked}
    evaluate = flexrel.Accuracy([(INPUTS, labels)])
    result = flexrel.prune(model, calibration=[INPUTS], evaluate=evaluate, **request)
    result.save(folder)
    return result


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    first = prune(network(), folder / "a")
    second = prune(network(), folder / "b", budgets=["parameters=60%"], recover="closed-form")
    return folder, first, second


def test_resources_accuracies_and_widths_stand_side_by_side(two, capsys, monkeypatch):
    folder, first, second = two
    monkeypatch.chdir(folder)

    assert main(["compare", "a", "b"]) == 0

    lines = [re.split(r"\s{2,}", line.strip()) for line in capsys.readouterr().out.splitlines()]
    rows = {line[0]: line[1:] for line in lines if line[0]}
    assert rows["dense"] == ["a", "b"]
    both = first, second
    shares = (one.achieved.parameters / first.dense.parameters for one in both)
    told = zip(both, shares, strict=True)
    expected = [f"{one.achieved.parameters:,} ({100 * share:.2f} %)" for one, share in told]
    assert rows["parameters"] == [f"{first.dense.parameters:,}", *expected, "≠"]
    errors = [100 * one.standard_error for one in both]
    accuracies = [100 * one.achieved.accuracy for one in both]
    assert rows["accuracy"][1:3] == [
        f"{accuracy:.2f} % ± {error:.2f} points"
        for accuracy, error in zip(accuracies, errors, strict=True)
    ]
    assert rows["recover"] == ["none", "closed-form", "≠"]
    for name in ("first", "second"):
        module = [str(one.model.get_submodule(name).out_features) for one in both]
        assert rows[name][1:3] == module
    assert rows["last"] == ["3", "3", "3"]


def test_the_page_has_the_same_rows_and_needs_nothing_else(two, monkeypatch, capsys):
    folder, *_ = two
    monkeypatch.chdir(folder)

    assert main(["compare", "a/result.json", "b", "--out", "page.html", "--json"]) == 0

    told = json.loads(capsys.readouterr().out)
    text = (folder / "page.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text)
    assert "script" not in page.tags
    rows = {row[0]: row[1:] for row in page.rows}
    for row in told["rows"] + told["layers"]:
        found = rows[row["name"]]
        assert found[:2] == [row["dense"], row["first"]]
        assert found[2].startswith(row["second"])
        assert found[2].endswith("≠") == (row["first"] != row["second"])
    assert told["names"] == ["a/result.json", "b"]


def test_a_network_beside_itself_does_not_differ(two, capsys):
    folder, *_ = two

    assert main(["compare", str(folder / "a"), str(folder / "a")]) == 0

    assert "≠" not in capsys.readouterr().out


def test_results_of_different_networks_are_refused(two, tmp_path, capsys):
    folder, *_ = two
    torch.manual_seed(0)
    prune(nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 3)), tmp_path / "other")

    assert main(["compare", str(folder / "a"), str(tmp_path / "other")]) == 2

    said = capsys.readouterr()
    assert said.out == ""
    assert "are results of different networks" in said.err
    assert "other's has 75 parameters" in said.err


@pytest.mark.parametrize(
    ("content", "says"), [("{", "is damaged"), ("[]", "no record"), ('{"achieved": 1}', "lacks")]
)
def test_what_is_no_record_is_refused(two, tmp_path, capsys, content, says):
    folder, *_ = two
    (tmp_path / "result.json").write_text(content)

    assert main(["compare", str(folder / "a"), str(tmp_path)]) == 2
    assert says in capsys.readouterr().err


def test_a_record_beside_another_file_is_refused(two, tmp_path, capsys):
    folder, *_ = two
    (tmp_path / "result.json").write_bytes((folder / "a" / "result.json").read_bytes())
    (tmp_path / "model.flexrel").write_bytes((folder / "b" / "model.flexrel").read_bytes())

    assert main(["compare", str(folder / "a"), str(tmp_path)]) == 5
    assert "was saved with" in capsys.readouterr().err


def record(accuracy, error, dense=0.9):
    labels = network()(INPUTS).argmax(1)
    evaluate = flexrel.Accuracy([(INPUTS, labels)])
    request = {"criterion": "magnitude", "recover": "none", "budgets": ["macs=80%"]}
    result = flexrel.prune(network(), calibration=[INPUTS], evaluate=evaluate, **request)
    told = result.as_json()
    told["achieved"] |= {"accuracy": accuracy, "accuracy_dense": dense}
    return told | {"achieved": told["achieved"] | {"accuracy_standard_error": error}}


@pytest.mark.parametrize(
    ("accuracies", "errors", "told"),
    [((0.88, 0.84), (0.03, 0.04), True), ((0.90, 0.84), (0.03, 0.04), False)],
)
def test_accuracies_that_errors_explain_are_said_to_be_so(accuracies, errors, told):
    """The error of a difference is 0.05, as 3, 4 and 5 make a right angle."""
    records = tuple(map(record, accuracies, errors))

    notes = comparison_of(records, ("a", "b")).notes

    assert bool(notes) == told
    if told:
        assert "4.00 points apart, no more than the standard error of that, 5.00 points" in notes[0]


def test_accuracies_on_other_samples_are_said_to_be_so():
    records = record(0.8, 0.001, dense=0.9), record(0.9, 0.001, dense=0.95)

    found = comparison_of(records, ("a", "b"))

    assert "other samples" in found.notes[0]
    assert found.rows[4].dense == "90.00 % / 95.00 %"
