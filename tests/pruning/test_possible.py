"""What no cut can meet is refused before anything is measured; what is told instead can be had."""

from importlib import import_module

import pytest
import torch
from torch import nn

import flexrel
from flexrel import BudgetError, PruneOptions

X = torch.randn(48, 6, generator=torch.Generator().manual_seed(0))


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)
    )


def pruned(*budgets, **asked):
    asked = {"criterion": "magnitude", "options": PruneOptions(form="module")} | asked
    return flexrel.prune(network(), calibration=[X], budgets=budgets, **asked)


@pytest.mark.parametrize(
    ("budget", "granularity"),
    [
        ("macs=9", "channel"),
        ("parameters=14", "element"),
        ("sparsity=99%", "channel"),
        ("bytes=200", "channel"),
        ("link=1ms@1Mbit/s", "element"),
        ("memory=5%", "channel"),
    ],
)
def test_it_is_refused_before_anything_is_measured(budget, granularity, monkeypatch):
    def never(*_, **__):
        raise AssertionError

    spine = import_module("flexrel.pruning.prune")
    for name in ("measured_relevance", "measured_signals"):
        monkeypatch.setattr(spine, name, never)

    with pytest.raises(BudgetError, match="but the closest possible is"):
        pruned(budget, granularity=granularity)


def test_all_that_cant_be_met_is_told_at_once():
    """One unit stays of each hidden layer: 6 + 1 + 3 multiply-adds, and as many weights and 5."""
    with pytest.raises(BudgetError) as caught:
        pruned("macs=9", "parameters=50%", "parameters=14")

    assert (caught.value.resource, caught.value.closest) == ("MACs", 10)
    also = "Also asked for at most 14 parameters, but the closest possible is 15 parameters."
    assert str(caught.value).endswith(also)


@pytest.mark.parametrize(("values", "granularity"), [("auto", "channel"), ("int8", "element")])
def test_the_bytes_that_are_told_can_be_had(values, granularity):
    with pytest.raises(BudgetError) as caught:
        pruned("bytes=100", values=values, granularity=granularity)

    found = pruned(flexrel.Bytes(caught.value.closest), values=values, granularity=granularity)

    assert found.achieved.bytes <= caught.value.closest


def test_a_dry_run_at_any_precision_counts_that_of_the_smallest_file():
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 400))
    told = {
        values: flexrel.dry_run(wide, calibration=[X], budgets=["bytes=40%"], values=values)
        for values in ("float32", "float16", "int8", "int4", "auto")
    }

    closest = {values: found.amounts[0].closest for values, found in told.items()}
    assert closest.pop("auto") == min(closest.values()) < closest["float32"]
    assert told["auto"].amounts[0].dense == told["float32"].amounts[0].dense


def test_a_budget_that_is_met_with_room_does_not_keep_units_from_coming_back():
    """As 380 multiply-adds alone, of which those that fit are given back after the cut."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 3))
    asked = {"calibration": [X], "criterion": "magnitude", "recover": "none"}

    alone, both = (
        flexrel.prune(model, budgets=["macs=380", *more], **asked) for more in ([], ["sparsity=1%"])
    )

    assert both.achieved.macs == alone.achieved.macs > 370


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({}, "no channels were removed: the budgets ask for no less than the network takes"),
        (
            {"evaluate": lambda model: {"size": sum(p.numel() for p in model.parameters())}}
            | {"target": "size>=355"},
            "no channels were removed: within the target none can go",
        ),
    ],
)
def test_a_request_that_removes_nothing_is_told_so(asked, why):
    found = pruned("macs=324", **asked)

    assert found.plan.removed == 0
    assert any(line.startswith(why) for line in found.warnings)
    assert not any("were removed" in line for line in pruned("macs=300").warnings)
