"""A plan says in words what it does to which layers, and what stays."""

import pytest
import torch
from torch import nn

import flexrel
from families import FAMILIES, family
from flexrel.core.plan import changes
from networks import (
    macs_by_hooks,
    random_,
)
from planned import INPUTS, all_plans, plan_for


@pytest.fixture(scope="module")
def plans():
    return all_plans()


def groups(content):
    return next(a for a in content["attributes"] if a["name"] == "groups")


def test_a_plan_explains_itself():
    """By hand: 3 -> 4 -> 2 features, the second of four hidden ones goes."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    plan = plan_for(model, inputs=torch.ones(4, 3))
    plan.masks["0"][:] = torch.tensor([True, False, True, True])

    # weights 12 + 8, biases 4 + 2, norm 4 + 4; each hidden one: 3 + 1 + 2 + 2
    assert plan.explain() == (
        "Plan by channel\n"
        "  1 of 4 units go\n"
        "  parameters 34 -> 26 (76.5 %)\n"
        "  multiply-adds 20 -> 15 (75.0 %)\n"
        "\n"
        "0: keeps 3 of 4 channels\n"
        "  made by 0\n"
        "  along go 1\n"
        "  read by 3\n"
        "\n"
        "Left alone: 1\n"
        "  3: it is the network's output"
    )


def test_weights_are_explained_as_weights():
    model = random_(nn.Linear(3, 2))
    plan = plan_for(model, granularity="element", inputs=torch.ones(4, 3))
    plan.masks[""][:] = torch.tensor([[True, True, False], [True, True, True]])

    assert plan.explain() == (
        "Plan by element\n"
        "  1 of 6 units go\n"
        "  parameters 8 -> 7 (87.5 %)\n"
        "  multiply-adds 6 -> 6 (100.0 %)\n"
        "\n"
        "the model itself: keeps 5 of 6 weights"
    )


def test_groups_heads_and_numbers_are_said(plans):
    texts = {name: plan.explain() for name, plan in plans.items()}
    masks = plans["grouped"].masks["reduce"], plans["transformer"].masks["attention.qkv"]
    groups, heads = (int(mask.sum()) for mask in masks)

    assert f"reduce: keeps {groups} of 4 groups of 3 channels" in texts["grouped"]
    assert f"numbers grouped.groups -{4 - groups}" in texts["grouped"]
    assert f"attention.qkv: keeps {heads} of 4 heads" in texts["transformer"]
    assert f"numbers attention.num_heads -{4 - heads}" in texts["transformer"]
    assert "made by stem, blocks.0.second\n  along go norm\n" in texts["residuals"]
    assert "along go scale\n" in texts["scaled"]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_tensor_that_shrinks_and_every_layer_left_alone_is_named(name, plans):
    model, plan = family(name), plans[name]
    said = {
        n for p in changes(plan.graph, plan.masks) for n in (*p.makers, *p.followers, *p.readers)
    }
    text = plan.explain()

    cut = flexrel.apply(model, plan)
    before, after = (dict([*m.named_parameters(), *m.named_buffers()]) for m in (model, cut))
    for tensor in before:
        if before[tensor].shape != after[tensor].shape:
            assert tensor in said or tensor.rpartition(".")[0] in said
    for layer in plan.graph.protected:
        assert f"  {layer.name}: {layer.reason}" in text
    assert f"-> {sum(p.numel() for p in cut.parameters()):,} (" in text
    if name in ("residuals", "grouped", "normed", "dense"):  # whose products all have a weight
        assert f"-> {macs_by_hooks(cut, INPUTS):,} (" in text


def test_the_result_explains_its_plan():
    result = flexrel.prune(
        family("dense"),
        calibration=[INPUTS],
        budgets=[flexrel.MACs(0.5)],
        criterion=flexrel.Magnitude(),
    )

    assert f"parameters {result.dense.parameters:,} -> {result.achieved.parameters:,} (" in (
        result.plan.explain()
    )
