"""Granularity "auto": channels where work counts, zeros where bytes count, one after the other."""

import json
from importlib import import_module

import pytest
import torch
from torch import nn

import flexrel
from flexrel import MACs, PackError, PruneOptions, UsageError
from flexrel.cli import main
from flexrel.core.distance import Divergence
from flexrel.core.plan import Plan
from networks import bits, random_, same_bits


def network():
    return random_(
        nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    )


X = list(torch.randn(160, 12, generator=torch.Generator().manual_seed(3)).split(40))
OTHERS = torch.randn(2000, 12, generator=torch.Generator().manual_seed(4)).split(200)
LABELLED = [(x, network()(x).argmax(1)) for x in OTHERS]


def pruned(granularity="auto", *, model=None, **asked):
    asked = {"calibration": X, "evaluate": LABELLED, "criterion": "magnitude"} | asked
    return flexrel.prune(model or network(), granularity=granularity, **asked)


def same(one, other):
    return (
        one.plan.as_json() == other.plan.as_json()
        and one.packed == other.packed
        and one.achieved == other.achieved
    )


@pytest.mark.parametrize(
    ("granularity", "asked"),
    [
        ("channel", {"budgets": ["macs=50%"]}),
        ("channel", {"budgets": ["parameters=40%", "memory=80%"]}),
        ("channel", {"target": "10%", "options": PruneOptions(minimise="macs")}),
        ("element", {"budgets": ["bytes=50%"]}),
        ("element", {"budgets": ["sparsity=50%", "link=50%@1Mbit/s"], "criterion": None}),
        ("element", {"target": "10%"}),
        ("element", {"budgets": ["bytes=50%"], "options": PruneOptions(form="exported")}),
    ],
)
def test_what_takes_one_kind_of_removal_is_done_by_that_alone(granularity, asked):
    assert same(pruned(**asked), pruned(granularity, **asked))


def test_channels_go_for_multiply_adds_and_then_zeros_for_bytes():
    channels = pruned("channel", budgets=["macs=50%"], recover="none")
    dense = pruned("channel", budgets=["macs=100%"]).dense
    limit = int(0.3 * dense.bytes)
    zeros = flexrel.prune(
        channels.model,
        calibration=X,
        criterion="magnitude",
        budgets=[flexrel.Bytes(limit)],
        granularity="element",
        recover="none",
    )

    found = pruned(budgets=["macs=50%", "bytes=30%"], recover="none")

    assert found.dense == dense
    assert found.achieved.macs == channels.achieved.macs <= 0.5 * dense.macs
    assert found.achieved.bytes <= limit
    assert found.amounts == {
        "macs": (dense.macs, channels.achieved.macs),
        "bytes": (dense.bytes, found.achieved.bytes),
    }
    assert found.requested["macs"] == dense.macs // 2
    assert found.requested["bytes"] == limit
    mine, theirs = found.plan.then.masks, zeros.plan.masks
    assert all(torch.equal(mask, theirs[name]) for name, mask in mine.items())


def test_the_plan_of_both_cuts_another_copy_alike_also_from_its_file(tmp_path):
    found = pruned(budgets=["macs=50%", "bytes=30%"])
    found.save(tmp_path)
    plan = Plan.load(tmp_path / "plan.json")

    cut = flexrel.apply(network(), plan)

    shapes = {name: p.shape for name, p in found.model.named_parameters()}
    assert {name: p.shape for name, p in cut.named_parameters()} == shapes
    for name, weight in found.model.named_parameters():
        if weight.ndim == 2:
            assert torch.equal(cut.get_parameter(name) == 0, weight == 0)
    assert sum(int((p == 0).sum()) for p in cut.parameters()) > 0
    assert plan.explain() == found.plan.explain()
    assert "Of the network that this leaves:" in plan.explain()
    assert plan.encode() == (tmp_path / "plan.json").read_bytes()
    into = flexrel.load(tmp_path / "model.flexrel", into=network())
    assert torch.equal(into(X[0]), found.model(X[0]))


@pytest.mark.parametrize("then", [3, [], {}, "twice", "channels"])
def test_a_plan_that_goes_on_to_what_is_no_plan_of_what_is_left_is_refused(tmp_path, then):
    plan = pruned(budgets=["macs=50%", "bytes=30%"], recover="none").plan
    told = plan.as_json()
    wrong = {"twice": {**told["then"], "then": told["then"]}, "channels": {**told}}
    wrong["channels"].pop("then")
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({**told, "then": wrong[then] if isinstance(then, str) else then}))

    with pytest.raises((PackError, UsageError), match=r"plan"):
        flexrel.apply(network(), Plan.load(path))


def test_zeros_of_both_are_held_while_the_network_is_trained():
    found = pruned(budgets=["macs=50%", "bytes=30%"])
    zeros = {n: p == 0 for n, p in found.model.named_parameters() if p.ndim == 2}
    holder = flexrel.MaskHolder(found.model, found.plan)
    with torch.no_grad():
        for parameter in found.model.parameters():
            parameter.add_(1)

    holder.apply_()

    assert all(torch.equal(found.model.get_parameter(n) == 0, zero) for n, zero in zeros.items())


def test_a_target_is_one_on_the_network_as_it_came():
    """Channels alone lose some; the zeros may lose what is left of the drop, and not as much again.

    Accuracy is that on the half of the samples that is searched with.
    """
    found = pruned(target="12%", budgets=["macs=90%"])
    told = found.as_json()["targets"][0]

    assert told["dense"] == 1.0
    assert 0.88 <= told["achieved"] < 1.0
    assert found.achieved.macs <= 0.9 * found.dense.macs
    assert found.plan.then.removed > 0
    assert found.promise is not None


def test_the_divergence_is_from_the_network_as_it_came():
    found = pruned(budgets=["macs=50%", "bytes=30%"], recover="none")

    first = (LABELLED[0],)
    expected = Divergence(network(), X, "auto", first)(found.model)
    assert found.achieved.divergence == pytest.approx(expected)


def test_weights_gone_are_those_of_the_network_as_it_came():
    found = pruned(budgets=["macs=50%", "bytes=30%"])

    left = sum(int((p != 0).sum()) for p in found.model.parameters() if p.ndim == 2)
    dense = sum(p.numel() for p in network().parameters() if p.ndim == 2)
    assert found.achieved.weights_removed == pytest.approx(1 - left / dense)


def test_precision_counts_in_shares_of_bytes():
    dense = pruned("element", budgets=["bytes=90%"], values="int8").dense

    found = pruned(budgets=["macs=70%", "bytes=60%"], values="int8")

    assert found.values == "int8"
    assert found.amounts["bytes"][0] == dense.bytes
    assert found.achieved.bytes <= 0.6 * dense.bytes


def test_the_model_is_not_changed_and_batches_are_read_once():
    model = network()
    before = bits(model)

    found = pruned(model=model, calibration=iter(X), budgets=["macs=50%", "bytes=30%"])

    assert same_bits(bits(model), before)
    assert same(found, pruned(budgets=["macs=50%", "bytes=30%"]))


def test_result_and_report_say_both(tmp_path):
    found = pruned(budgets=["macs=50%", "bytes=30%"])
    found.save(tmp_path)

    told = json.loads((tmp_path / "result.json").read_text())
    assert told["granularity"] == "channel"
    assert told["then"] == "element"
    assert told["achieved"]["macs_dense"] == found.dense.macs
    assert pruned(budgets=["macs=50%"]).as_json()["then"] is None


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (
            {"target": "5%", "budgets": ["bytes=50%"], "options": PruneOptions(minimise="macs")},
            "can't divide a target between MACs, .* and bytes",
        ),
        ({}, "nothing to prune to"),
        (
            {
                "budgets": ["macs=50%", "bytes=50%"],
                "options": PruneOptions(form="exported"),
            },
            "does not go on from channels to zeros in an exported program",
        ),
    ],
)
def test_what_auto_cant_decide_is_refused(asked, says):
    with pytest.raises(UsageError, match=says):
        pruned(**asked)


def test_rivals_of_both_are_refused():
    found = pruned(budgets=[MACs(0.5), "bytes=30%"])

    with pytest.raises(UsageError, match="compare a result of granularity"):
        flexrel.compare(found, network(), calibration=X, evaluate=LABELLED)


def test_a_dry_run_tells_each_resource_for_what_brings_it_down():
    """Bytes of what channels leave, by magnitude and not repaired."""
    asked = {"calibration": X, "budgets": ["macs=50%", "bytes=30%"]}
    found = flexrel.dry_run(network(), granularity="auto", **asked)
    channels = flexrel.dry_run(network(), calibration=X, budgets=["macs=50%"])
    cut = pruned("channel", budgets=["macs=50%"], recover="none").model
    zeros = flexrel.dry_run(cut, calibration=X, granularity="element")

    told = {one.resource: one for one in found.amounts}
    assert set(told) == {"MACs", "bytes", "parameters"}
    assert told["MACs"] == channels.amounts[0]
    assert told["bytes"].closest == zeros.amounts[-1].closest
    assert told["bytes"].limit == int(0.3 * told["bytes"].dense)
    assert told["bytes"].dense == channels.amounts[-1].dense
    assert not flexrel.dry_run(
        network(), granularity="auto", calibration=X, budgets=["macs=1"]
    ).possible


def test_what_neither_channels_nor_zeros_can_meet_is_refused_before_channels_go(monkeypatch):
    def never(*_, **__):
        raise AssertionError

    monkeypatch.setattr(import_module("flexrel.pruning.prune"), "measured_relevance", never)
    budgets = ["macs=1", "sparsity=99.9%", "bytes=100"]

    with pytest.raises(flexrel.BudgetError) as caught:
        pruned(budgets=budgets)

    words = str(caught.value)
    assert words.startswith("asked for at most 1 MACs, but the closest possible is 17 MACs.")
    for other in ("at least 0.999 sparsity", "at most 100 bytes"):
        assert f"Also asked for {other}, but the closest possible is" in words
    told = flexrel.dry_run(network(), calibration=X, granularity="auto", budgets=budgets)
    assert [one.resource for one in told.amounts if one.refused] == ["sparsity", "bytes", "MACs"]


def test_a_dry_run_rounds_the_widths_of_channels_alone():
    found = flexrel.dry_run(
        network(),
        granularity="auto",
        calibration=X,
        budgets=["macs=60%", "bytes=50%"],
        options=PruneOptions(multiple_of=8),
    )

    assert found.possible


def test_a_limit_on_time_is_one_on_both():
    options = PruneOptions(time_limit=1e-9)

    found = pruned(budgets=["macs=50%", "bytes=30%"], options=options)

    assert found.achieved.bytes <= found.requested["bytes"]
    assert any("time" in line for line in found.warnings)


def test_the_command_takes_auto(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n\n"
        "def make():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 4))\n\n"
        "def inputs():\n    return [torch.randn(40, 12) for _ in range(2)]\n"
    )
    data = "prune net.py:make --calibration net.py:inputs --recover none -q --granularity auto"

    assert main([*data.split(), "--budget", "macs=50%", "--budget", "bytes=40%"]) == 0
    told = json.loads((tmp_path / "pruned" / "result.json").read_text())
    assert (told["granularity"], told["then"]) == ("channel", "element")
    assert main(["inspect", "pruned/plan.json"]) == 0
    assert "weights" in capsys.readouterr().out
    assert main(["report", "pruned"]) == 0
    assert "channel, then element" in (tmp_path / "pruned" / "report.html").read_text()
    assert main([*data.split(), "--budget", "macs=50%", "--dry-run"]) == 0
    assert main([*data.split(), "--budget", "macs=5%", "--compare", "--out", "other"]) == 2
