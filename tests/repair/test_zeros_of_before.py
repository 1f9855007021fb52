"""Zeros that a network came with: another tool's work, or ours. They stay in every step."""

import pytest
import torch
from torch import nn

import flexrel
from flexrel import FineTune, MaskHolder
from networks import random_
from repairs import normal


def sparse_network():
    layers = nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()
    model = random_(nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 4))).eval()
    with torch.no_grad():
        for weight in (p for p in model.parameters() if p.ndim > 1):
            weight.mul_(normal(*weight.shape, seed=weight.numel()).abs() > 1.28)  # 80 % zeros
    return model


def nonzero_where_zero(network, like):
    pairs = zip(network.named_parameters(), like.named_parameters(), strict=True)
    return {
        name: int(((weight != 0) & (other == 0)).sum())
        for (name, weight), (_, other) in pairs
        if weight.ndim > 1
    }


@pytest.mark.parametrize("granularity", ["channel", "element", "2:4"])
@pytest.mark.parametrize("recover", ["closed-form", FineTune(2, distillation=1.0)])
@pytest.mark.parametrize("values", ["float32", "int8"])
def test_zeros_of_before_stay_in_every_step(granularity, recover, values):
    model, batches = sparse_network(), [normal(64, 3, 4, 4, seed=seed) for seed in range(4)]
    budget = "macs=60%" if granularity == "channel" else "parameters=15%"

    result = flexrel.prune(
        model,
        calibration=batches,
        budgets=[] if granularity == "2:4" else [budget],
        granularity=granularity,
        criterion="magnitude",
        recover=recover,
        values=values,
    )

    cut = flexrel.apply(model, result.plan)
    assert set(nonzero_where_zero(result.model, cut).values()) == {0}


def test_a_holder_holds_the_zeros_that_it_was_given_too():
    model, batches = sparse_network(), [normal(64, 3, 4, 4, seed=seed) for seed in range(2)]
    plan = flexrel.prune(
        model, calibration=batches, budgets=["macs=60%"], criterion="magnitude", recover="none"
    ).plan
    network = flexrel.apply(model, plan)
    before = flexrel.apply(model, plan)
    optimizer = torch.optim.Adam(network.parameters(), weight_decay=0.1)

    with MaskHolder(network, plan).hold(optimizer):
        for batch in batches:
            optimizer.zero_grad()
            (network(batch) - 1.0).square().mean().backward()
            optimizer.step()

    assert set(nonzero_where_zero(network, before).values()) == {0}
    assert (network[0].weight != before[0].weight).any()


@pytest.mark.parametrize("granularity", ["channel", "2:4"])
@pytest.mark.parametrize("recover", ["closed-form", FineTune(2, distillation=1.0)])
def test_zeros_of_before_come_back_where_that_is_asked_for_and_those_of_the_plan_do_not(
    granularity, recover
):
    model, batches = sparse_network(), [normal(64, 3, 4, 4, seed=seed) for seed in range(4)]

    result = flexrel.prune(
        model,
        calibration=batches,
        budgets=["macs=60%"] if granularity == "channel" else [],
        granularity=granularity,
        criterion="magnitude",
        recover=recover,
        options=flexrel.PruneOptions(regrow=True),
    )

    cut = flexrel.apply(model, result.plan)
    back = sum(nonzero_where_zero(result.model, cut).values())
    assert back > 0
    assert result.as_json()["options"]["regrow"] is True
    notes = [note for step in result.recovery for note in step.notes]
    assert any("weights that were zero before the cut are other numbers now" in n for n in notes)
    if granularity == "2:4":
        ones = flexrel.apply(all_ones(model), result.plan)  # zero where the plan says so
        for (name, weight), (_, kept) in zip(
            result.model.named_parameters(), ones.named_parameters(), strict=True
        ):
            assert not weight[kept == 0].any(), name


def all_ones(model):
    other = sparse_network()
    with torch.no_grad():
        for weight in other.parameters():
            weight.fill_(1.0)
    return other
