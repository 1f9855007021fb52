"""What a dry run says can be had, is what `prune` then can or can't do; the least by hand."""

import json

import pytest
import torch
from torch import nn

import flexrel
from flexrel import BudgetError, Bytes, MACs, Magnitude, Parameters, Sparsity, UsageError

X = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)
    )


def dry_run(*budgets, **asked):
    return flexrel.dry_run(network(), calibration=[X], budgets=budgets, **asked)


def by_name(found):
    return {one.resource: one for one in found.amounts}


def test_the_least_of_each_resource_is_told_without_budgets():
    """One unit stays of each hidden layer: 6 + 1 + 3 weights, 2 + 3 biases; 10 multiply-adds."""
    found = dry_run()

    told = by_name(found)
    assert set(told) == {"parameters", "MACs", "bytes"}
    dense = 6 * 16 + 16 + 16 * 12 + 12 + 12 * 3 + 3
    assert (told["parameters"].dense, told["parameters"].closest) == (dense, 6 + 1 + 1 + 1 + 3 + 3)
    assert (told["MACs"].dense, told["MACs"].closest) == (6 * 16 + 16 * 12 + 12 * 3, 10)
    assert 0 < told["bytes"].closest < told["bytes"].dense
    assert found.possible
    assert found.binds is None


@pytest.mark.parametrize(
    ("budgets", "binds"),
    [
        ([MACs(0.3), Parameters(0.9)], "MACs"),
        ([MACs(0.9), Parameters(0.3)], "parameters"),
        (["macs=90%", "sparsity=80%"], "sparsity"),
        ([Bytes(0.6), MACs(0.95)], "bytes"),
    ],
)
def test_what_binds_is_the_budget_that_takes_most(budgets, binds):
    found = dry_run(*budgets)

    assert found.possible
    assert found.binds == binds
    how = {"calibration": [X], "criterion": Magnitude(), "recover": "none"}
    alone = [flexrel.prune(network(), budgets=[one], **how) for one in budgets]
    both = flexrel.prune(network(), budgets=budgets, **how)
    most = max(alone, key=lambda one: one.achieved.removed)
    assert most.achieved.removed == pytest.approx(both.achieved.removed, abs=0.08)
    assert binds.lower() in most.amounts


@pytest.mark.parametrize("budget", [MACs(9), Parameters(14), Bytes(200)])
def test_what_cant_be_met_is_refused_by_both_with_the_same_numbers(budget):
    found = dry_run(budget, MACs(0.9))

    name = budget.resource.name
    with pytest.raises(BudgetError) as caught:
        flexrel.prune(network(), calibration=[X], budgets=[budget], recover="none")
    assert not found.possible
    (told,) = [one for one in found.amounts if one.refused]
    assert told.resource == name
    assert told.closest == pytest.approx(caught.value.closest, rel=0.05)
    assert f"but the closest possible is {caught.value.closest:,}"[:20] in told.refused
    json.dumps(found.as_json())


def test_just_what_is_possible_is_possible():
    assert dry_run(MACs(10), Parameters(15)).possible
    assert dry_run(Sparsity(26 / 28)).possible
    assert not dry_run(Sparsity(27 / 28)).possible


def test_nothing_is_repaired_or_evaluated_and_the_model_stays(monkeypatch):
    def never(*_, **__):
        raise AssertionError

    monkeypatch.setattr(flexrel.ClosedForm, "__call__", never)
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    flexrel.dry_run(model, calibration=[X], budgets=["bytes=60%"], granularity="element")

    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_budget_that_means_nothing_is_refused_as_in_prune():
    with pytest.raises(UsageError, match="write it like"):
        dry_run("seconds=3")
