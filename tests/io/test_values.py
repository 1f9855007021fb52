"""The precision of a packed file, found by what it costs."""

import copy

import pytest
import torch
from torch import nn

import flexrel
import flexrel_edge
from flexrel import AccuracyDrop, BudgetError, Bytes, MACs, Magnitude, UsageError, prune
from flexrel.cli.options import parse_metadata
from flexrel.errors import PrecisionError
from flexrel.io import encode, load
from flexrel.pruning import pack

FINE_TO_COARSE = ("float32", "float16", "int8", "int4")
ASKED = {"criterion": Magnitude(), "granularity": "element"}


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 32, 3)
        self.second = nn.Conv2d(32, 32, 3)
        self.last = nn.Linear(32, 10)

    def forward(self, x):
        return self.last(self.second(self.first(x).relu()).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Small().eval()


@pytest.fixture(scope="module")
def batches():
    return [torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(n)) for n in range(3)]


def likeness(model, batches):
    """An accuracy that falls with every bit: 1 less the error over the size of the outputs."""
    goal = model(batches[0]).detach()

    def evaluate(other):
        with torch.no_grad():
            error = (other(batches[0]) - goal).square().sum() / goal.square().sum()
        return max(0.0, 1 - float(error.sqrt()))

    return evaluate


def pruned(model, batches, **options):
    return {
        values: prune(model, calibration=batches, values=values, **ASKED, **options)
        for values in ("auto", *FINE_TO_COARSE)
    }


@pytest.mark.parametrize("share", [0.55, 0.25, 0.1])
def test_with_a_budget_on_bytes_the_precision_is_that_whose_outputs_move_least(
    model, batches, share
):
    limit = int(len(encode(model)) * share)
    found = pruned(model, batches, budgets=[Bytes(limit)], recover="none")

    auto = found.pop("auto")
    assert auto.achieved.bytes <= limit
    assert auto.achieved.divergence == min(one.achieved.divergence for one in found.values())
    assert auto.options["values"] not in ("auto", "float32")
    assert auto.options["values_asked"] == "auto"
    assert auto.dense.bytes == len(encode(model))  # shares are of the network as it came


def test_with_a_target_the_precision_is_that_of_the_smallest_file(model, batches):
    evaluate = likeness(model, batches)
    options = {"evaluate": evaluate, "target": AccuracyDrop(0.2), "recover": "none"}
    found = pruned(model, batches, **options)

    auto = found.pop("auto")
    assert auto.achieved.accuracy >= 0.8
    assert auto.achieved.bytes == min(one.achieved.bytes for one in found.values())
    assert auto.achieved.bytes < 0.5 * found["float32"].achieved.bytes


def test_else_it_is_the_coarsest_that_hardly_adds_to_what_the_cut_changes(model, batches):
    options = {**ASKED, "granularity": "channel", "budgets": [MACs(0.97)]}
    found = {
        values: prune(model, calibration=batches, values=values, **options).achieved
        for values in ("auto", *FINE_TO_COARSE)
    }

    auto, fine = found.pop("auto"), found["float32"]
    good = [one for one in found.values() if one.divergence <= 1.1 * fine.divergence]
    assert auto.bytes == min(one.bytes for one in good) < 0.5 * fine.bytes


def test_a_budget_that_only_coarse_values_meet_is_met(model, batches):
    options = {"calibration": batches, **ASKED, "recover": "none", "granularity": "channel"}
    with pytest.raises(BudgetError) as caught:
        prune(model, budgets=[Bytes(1)], **options)
    limit = int(caught.value.closest) - 1
    with pytest.raises(BudgetError, match="bytes"):
        prune(model, budgets=[Bytes(limit)], **options)

    result = prune(model, budgets=[Bytes(limit)], values="auto", **options)

    assert result.achieved.bytes <= limit


def test_a_target_that_nothing_meets_says_what_the_finest_values_reach(model, batches):
    def evaluate(other):
        kept = other.second.weight != 0
        if kept.all():
            return 1.0
        off = (other.second.weight - model.second.weight)[kept].abs().max().item()
        return 0.25 - min(0.2, off)

    with pytest.raises(BudgetError) as caught:
        prune(
            model,
            calibration=batches,
            evaluate=evaluate,
            target=AccuracyDrop(0.1),
            budgets=[flexrel.Sparsity(0.9)],
            values="auto",
            recover="none",
            **ASKED,
        )

    assert (caught.value.resource, caught.value.closest) == ("accuracy", 0.25)


@pytest.mark.parametrize("share", [0.55, 0.25])
def test_a_precision_that_cannot_hold_a_value_is_not_taken(model, batches, share):
    large = copy.deepcopy(model)
    large.last.bias.data[0] = 1e8
    options = {"budgets": [Bytes(int(len(encode(model)) * share))], "recover": "none", **ASKED}
    with pytest.raises(PrecisionError, match=r"last\.bias.*1e\+08.*float16"):
        prune(large, calibration=batches, values="float16", **options)

    auto = prune(large, calibration=batches, values="auto", **options)

    others = [
        prune(large, calibration=batches, values=values, **options).achieved.divergence
        for values in ("float32", "int8", "int4")
    ]
    assert auto.achieved.divergence == min(others)


def test_pack_goes_on_past_a_precision_that_cannot_hold_a_value(model, batches, tmp_path):
    large = copy.deepcopy(model)
    large.last.bias.data[0] = 1e8

    def evaluate(other):
        return float(torch.equal(other.second.weight, large.second.weight))

    target = AccuracyDrop(0.0)
    done = pack(large, tmp_path / "m", "auto", evaluate=evaluate, target=target)

    assert done.values == "float32"
    assert torch.equal(load(tmp_path / "m", copy.deepcopy(model)).last.bias, large.last.bias)


@pytest.mark.parametrize("drop", [0.5, 0.05, 0.005, 0.0001, 0.0])
def test_pack_takes_the_fewest_bits_that_keep_to_the_target(model, batches, drop, tmp_path):
    evaluate = likeness(model, batches)
    kept = {}
    for values in FINE_TO_COARSE:
        done = pack(model, tmp_path / values, values, calibration=batches, evaluate=evaluate)
        kept[values] = done.accuracy
        assert (done.values, done.accuracy_before) == (values, 1.0)
        assert done.bytes == (tmp_path / values).stat().st_size

    target = AccuracyDrop(drop)
    done = pack(
        model, tmp_path / "m", "auto", calibration=batches, evaluate=evaluate, target=target
    )

    good = [values for values in FINE_TO_COARSE if kept[values] >= 1 - drop]
    assert done.values == good[-1]
    assert done.accuracy == evaluate(load(tmp_path / "m", copy.deepcopy(model)))
    assert (tmp_path / "m").read_bytes() == (tmp_path / done.values).read_bytes()


def test_what_a_precision_costs_is_measured_on_samples_held_out(model, batches, tmp_path):
    costs = [
        pack(model, tmp_path / "m", values, calibration=batches).divergence
        for values in FINE_TO_COARSE
    ]

    assert costs[0] == 0 < min(costs[1:])
    assert max(costs[1:3]) < 0.1 * costs[3]
    assert pack(model, tmp_path / "m", "int8").divergence is None


def test_a_file_that_misses_its_target_is_not_written(model, batches, tmp_path):
    with pytest.raises(BudgetError, match=r"accuracy.*'auto'"):
        pack(
            model,
            tmp_path / "m",
            "int4",
            evaluate=likeness(model, batches),
            target=AccuracyDrop(0.001),
        )

    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"values": "auto"}, "'auto' needs target="),
        ({"target": AccuracyDrop(0.1)}, "needs evaluate="),
        ({"metadata": {"tied": "x"}}, "'tied' is a name of FlexRel's own"),
    ],
)
def test_what_makes_no_sense_together_is_refused(model, options, reason, tmp_path):
    with pytest.raises(UsageError, match=reason):
        pack(model, tmp_path / "m", **options)

    assert not (tmp_path / "m").exists()


def test_metadata_are_kept_beside_our_own(model, tmp_path):
    pack(model, tmp_path / "m", metadata={"licence": "MIT", "labels": "cat\ndog"})

    found = flexrel_edge.inspect(tmp_path / "m").metadata
    assert found["licence"] == "MIT"
    assert found["labels"] == "cat\ndog"
    assert len(found["fingerprint"]) == 64


def test_metadata_on_the_command_line(tmp_path):
    (tmp_path / "labels").write_text("cat\ndog\n")

    found = parse_metadata(["licence=MIT", f"labels=@{tmp_path}/labels", "a=b=c", "empty="])

    assert found == {"licence": "MIT", "labels": "cat\ndog\n", "a": "b=c", "empty": ""}
    for wrong in (["licence"], ["=x"], ["a=1", "a=2"]):
        with pytest.raises(UsageError, match="each name once"):
            parse_metadata(wrong)
