"""What each layer takes: counted by hand, and the parts add up to the whole."""

from math import prod

import pytest
import torch
from torch import nn

import flexrel
from families import FAMILIES, family
from flexrel.core import cost
from flexrel.core.layer_costs import WholeNetwork, layer_costs
from flexrel.io import encode
from flexrel.structure import apply
from flexrel_edge.format import describe
from networks import random_
from planned import INPUTS, plan_for


def costs(model, plan):
    pruned = apply(model, plan)
    whole = (WholeNetwork(one, encode(one, "float32")) for one in (model, pruned))
    return layer_costs(plan.graph, plan.masks, *whole), pruned


def small():
    names = ("first", nn.Linear(4, 12)), ("relu", nn.ReLU()), ("last", nn.Linear(12, 3))
    model = nn.Sequential()
    for name, module in names:
        model.add_module(name, module)
    return random_(model)


def test_a_layer_takes_what_a_hand_counts():
    model = small()
    plan = plan_for(model, inputs=torch.randn(2, 4))
    kept = int(plan.masks["first"].sum())

    (first, last, _), _ = costs(model, plan)

    assert (first.width_dense, first.width) == (12, kept)
    assert (first.name, first.weights_dense, first.weights) == ("first", 48, 4 * kept)
    assert (first.macs_dense, first.macs) == (48, 4 * kept)
    assert first.reason == ""
    assert (last.weights_dense, last.weights, last.macs) == (36, 3 * kept, 3 * kept)
    assert (last.width_dense, last.width, last.reason) == (3, 3, "it is the network's output")


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("granularity", ["channel", "element"])
def test_layers_add_up_to_the_network(name, granularity):
    model = family(name)
    plan = plan_for(model, granularity=granularity)

    found, pruned = costs(model, plan)

    files = [len(encode(one, "float32")) for one in (model, pruned)]
    assert [sum(one.bytes_dense for one in found), sum(one.bytes for one in found)] == files
    assert sum(one.macs_dense for one in found) == cost.macs(plan.graph)
    assert sum(one.macs for one in found) == cost.macs(plan.graph, plan.masks)
    weights = [p for p in model.parameters() if p.ndim > 1]
    assert sum(one.weights_dense for one in found) == sum(p.numel() for p in weights)
    left = [int(p.count_nonzero()) for p in pruned.parameters() if p.ndim > 1]
    assert sum(one.weights for one in found) == sum(left)
    assert all(one.macs >= 0 and one.bytes >= 0 for one in found)  # of the rest too


def test_bytes_of_a_layer_are_those_of_its_tensors_in_the_file():
    model = small()
    (first, *_), pruned = costs(model, plan_for(model, inputs=torch.randn(2, 4)))

    entries = {entry.name: entry.bytes for entry in describe(encode(pruned, "float32")).tensors}

    assert first.bytes == entries["first.weight"] + entries["first.bias"]


def test_a_block_that_is_passed_over_has_nothing_left():
    model = family("residuals")
    plan = plan_for(model, granularity="depth")
    (group,) = plan.graph.groups
    gone = [block.module for at, block in enumerate(group.blocks) if not plan.masks[group.name][at]]
    assert gone

    found, _ = costs(model, plan)

    inside = [one for one in found if one.name and one.name.startswith(tuple(gone))]
    assert inside
    assert all(one.width == one.weights == one.macs == one.bytes == 0 for one in inside)


def test_layers_of_an_exported_program_are_those_of_the_network():
    result = flexrel.prune(
        family("residuals"),
        calibration=[INPUTS],
        budgets=["macs=60%"],
        criterion="magnitude",
        options=flexrel.PruneOptions(form="exported"),
    )

    layers = result.evidence.layers

    assert result.form == "exported"
    assert {one.name for one in layers} >= {"stem", "blocks.0.first", "head"}
    shapes = result.plan.graph.shapes
    total = sum(prod(shape) for shape in shapes.values() if len(shape) > 1)
    assert sum(one.weights_dense for one in layers) == total
    assert 1 - sum(one.weights for one in layers) / total == result.achieved.weights_removed
    assert sum(one.bytes for one in layers) == len(result.packed)
