"""What is written down: four files, true to the result."""

import dataclasses
import json
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

import flexrel
from flexrel import AccuracyDrop, Magnitude, Parameters, Sparsity
from networks import random_

FILES = {"model.flexrel", "plan.json", "result.json", "report.html"}
# ARCHITECTURE.md: at least these, under `requested` and `achieved`, and beside them.
FIGURES = {
    "accuracy",
    "accuracy_dense",
    "samples",
    "parameters",
    "parameters_dense",
    "macs",
    "macs_dense",
    "bytes",
    "bytes_dense",
    "latency_ms",
    "latency_dense_ms",
}
BESIDE = {"criterion", "delta", "granularity", "seed", "versions"}


def network():
    model = nn.Sequential()
    model.add_module("first", nn.Linear(4, 12))
    model.add_module("relu", nn.ReLU())
    model.add_module("second", nn.Linear(12, 8))
    model.add_module("last", nn.Linear(8, 3))
    return random_(model)


INPUTS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


def prune(model=None, **options):
    request = {"budgets": [Sparsity(0.4)], "criterion": Magnitude(), **options}
    return flexrel.prune(model or network(), calibration=[INPUTS], **request)


def size_of(model):
    return min(1.0, sum(p.numel() for p in model.parameters()) / 250)


@pytest.fixture(scope="module")
def compared():
    """A result with all there can be in it."""
    result = prune(
        evaluate=size_of,
        target=AccuracyDrop(0.5),
        keep=["second"],
    )
    return flexrel.compare(result, network(), calibration=[INPUTS], evaluate=size_of)


# --- the four files -----------------------------------------------------------------------------


@pytest.mark.parametrize("granularity", ["element", "channel"])
def test_saving_writes_exactly_the_four_files(granularity, tmp_path):
    result = prune(granularity=granularity)

    result.save(tmp_path / "made" / "on the way")

    assert {p.name for p in (tmp_path / "made" / "on the way").iterdir()} == FILES


@pytest.mark.parametrize("values", ["float32", "float16"])
@pytest.mark.parametrize("granularity", ["element", "channel"])
def test_the_bytes_achieved_are_those_of_the_file(values, granularity, tmp_path):
    result = prune(values=values, granularity=granularity)

    result.save(tmp_path)

    written = json.loads((tmp_path / "result.json").read_text())
    assert (tmp_path / "model.flexrel").stat().st_size == written["achieved"]["bytes"]
    assert result.achieved.bytes == written["achieved"]["bytes"]


def test_the_saved_network_is_the_result(tmp_path):
    result = prune()
    result.save(tmp_path)

    loaded = flexrel.load(tmp_path / "model.flexrel", into=network())

    inputs = torch.randn(5, 4)
    assert torch.equal(loaded.eval()(inputs), result.model.eval()(inputs))


def test_result_json_has_the_keys_of_the_contract(compared, tmp_path):
    compared.save(tmp_path)

    written = json.loads((tmp_path / "result.json").read_text())

    assert set(written["requested"]) | set(written["achieved"]) >= FIGURES
    assert set(written["achieved"]) >= FIGURES
    assert set(written["requested"]) >= {"accuracy", "parameters", "macs", "bytes", "latency_ms"}
    assert set(written) >= BESIDE
    for key in ("latency_ms", "latency_dense_ms"):  # present, and honest: not measured
        assert written["achieved"][key] is None
    assert written["requested"]["latency_ms"] is None
    assert set(written["versions"]) >= {"flexrel", "flexrel-edge", "torch", "numpy", "python"}


def test_result_json_says_what_the_result_says(tmp_path):
    result = prune(
        evaluate=lambda _: 0.75, budgets=[Parameters(0.8)], criterion=flexrel.FlexRel(0.3), seed=4
    )
    result.save(tmp_path)

    written = json.loads((tmp_path / "result.json").read_text())

    dense = 4 * 12 + 12 + 12 * 8 + 8 + 8 * 3 + 3
    assert written["requested"] == {
        "accuracy": None,
        "sparsity": None,
        "parameters": dense * 8 // 10,
        "macs": None,
        "bytes": None,
        "latency_ms": None,
    }
    achieved = written["achieved"]
    assert achieved["parameters_dense"] == dense
    assert achieved["parameters"] == sum(p.numel() for p in result.model.parameters())
    assert achieved["macs_dense"] == 4 * 12 + 12 * 8 + 8 * 3
    assert (achieved["accuracy"], achieved["accuracy_dense"]) == (0.75, 0.75)
    assert (written["criterion"], written["delta"]) == ("flexrel:0.3", 0.3)
    assert (written["granularity"], written["seed"]) == ("channel", 4)


def test_numbers_that_json_has_no_word_for_are_null(tmp_path):
    result = prune()
    far = replace(result.achieved, divergence=float("inf"))

    replace(result, achieved=far, rivals=(far,), curves=(far,)).save(tmp_path)

    text = (tmp_path / "result.json").read_text()
    assert not re.search("NaN|Infinity", text)
    assert json.loads(text)["achieved"]["divergence"] is None


def test_plan_json_names_every_channel_kept_and_every_reason(tmp_path):
    result = prune(keep=["second"])
    result.save(tmp_path)

    written = json.loads((tmp_path / "plan.json").read_text())

    kept = result.plan.masks["first"].nonzero().squeeze(1).tolist()
    assert written["granularity"] == "channel"
    (group,) = written["groups"]
    assert (group["name"], group["units"], group["kept"]) == ("first", 12, len(kept))
    assert [at for run in group["keep"] for at in range(*run)] == kept
    assert {(p["name"], p["reason"]) for p in written["protected"]} == {
        ("second", "kept on request"),
        ("last", "it is the network's output"),
    }
    dense, rows = network().first.weight, result.model.first.weight
    assert torch.equal(rows, dense[torch.tensor(kept)])  # the channels named are those kept


def test_plan_json_counts_elements(tmp_path):
    result = prune(granularity="element")
    result.save(tmp_path)

    written = json.loads((tmp_path / "plan.json").read_text())

    assert {s["name"]: s["kept"] for s in written["groups"]} == {
        name: int(getattr(result.model, name).weight.count_nonzero())
        for name in ("first", "second", "last")
    }
    assert [s["units"] for s in written["groups"]] == [48, 96, 24]


def test_saving_over_a_directory_replaces_the_four_files_and_nothing_else(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    prune(budgets=[Sparsity(0.6)]).save(tmp_path)
    old = {name: (tmp_path / name).read_bytes() for name in FILES}

    prune(budgets=[Sparsity(0.2)]).save(tmp_path)

    assert {p.name for p in tmp_path.iterdir()} == {*FILES, "notes.txt"}
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert all((tmp_path / name).read_bytes() != old[name] for name in FILES)


@pytest.mark.parametrize("written_before", [0, 1, 2, 3])
def test_a_failing_save_leaves_nothing(written_before, tmp_path, monkeypatch):
    result = prune()
    result.save(tmp_path / "good")
    calls = []

    def fail(_):
        calls.append(None)
        if len(calls) > written_before:
            raise OSError("no space left")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        result.save(tmp_path / "bad")

    assert [path.name for path in tmp_path.iterdir()] == ["good"]


def test_a_result_that_can_not_be_packed_writes_nothing(tmp_path):
    result = prune()
    with torch.no_grad():
        result.model.last.weight.mul_(1e9)
    result = dataclasses.replace(result, values="float16")  # with its graph it is packed anew

    with pytest.raises(flexrel.UsageError, match="float16"):
        result.save(tmp_path / "none", export=["graph"])

    assert not (tmp_path / "none").exists()
