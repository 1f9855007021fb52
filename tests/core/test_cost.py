"""What a plan costs, counted by hand and against the network that was really cut."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flexrel import ModelError
from flexrel.core import cost
from flexrel.structure import analyse, apply
from networks import Mixer, batch, images, macs_by_hooks, networks, random_plan


def read(model, inputs, granularity):
    return analyse(model, batch(inputs), granularity)


def small():
    """conv 3 -> 4 on 8 x 8, batch norm, conv 4 -> 2 without padding, linear 72 -> 5."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 2, 3),
        nn.Flatten(),
        nn.Linear(72, 5),
    )


IMAGE = torch.zeros(2, 3, 8, 8)


def test_the_dense_network_by_hand():
    graph = read(small(), IMAGE, "channel")

    assert cost.parameters(graph) == 3 * 4 * 9 + (4 + 4) + (4 * 2 * 9 + 2) + (72 * 5 + 5)
    assert cost.macs(graph) == 3 * 4 * 9 * 64 + 4 * 2 * 9 * 36 + 72 * 5


def test_a_plan_of_channels_by_hand():
    graph = read(small(), IMAGE, "channel")
    plan = random_plan(graph, 0)
    plan.masks["0"][:] = torch.tensor([True, True, True, False])  # 4 -> 3
    plan.masks["2"][:] = torch.tensor([True, False])  # 2 -> 1, and 72 features -> 36

    assert cost.parameters(graph, plan.masks) == 3 * 3 * 9 + 3 + 3 + (3 * 1 * 9 + 1) + (36 * 5 + 5)
    assert cost.macs(graph, plan.masks) == 3 * 3 * 9 * 64 + 3 * 1 * 9 * 36 + 36 * 5
    assert plan.removed / graph.units == (1 + 1) / (4 + 2)


@pytest.mark.parametrize(
    ("unit_costs", "of"),
    [(cost.unit_parameters, cost.parameters), (cost.unit_macs, cost.macs)],
)
def test_what_goes_with_a_unit_is_what_the_network_lacks_without_it(unit_costs, of):
    graph = read(small(), IMAGE, "channel")

    found = unit_costs(graph)

    assert found.keys() == {"0", "2"}
    for group in graph.groups:
        plan = random_plan(graph, 0)
        for mask in plan.masks.values():
            mask[:] = True
        plan.masks[group.name][-1] = False
        assert found[group.name] == of(graph) - of(graph, plan.masks)


def test_a_plan_of_elements_saves_parameters_and_no_multiply_adds():
    graph = read(small(), IMAGE, "element")
    plan = random_plan(graph, 0)
    for mask in plan.masks.values():
        mask[:] = True
    plan.masks["0"][0, :2] = False  # two kernels of 3 x 3
    plan.masks["4"][:, 1] = False  # one column of 5

    assert cost.parameters(graph, plan.masks) == cost.parameters(graph) - (18 + 5)
    assert cost.macs(graph, plan.masks) == cost.macs(graph)
    assert plan.removed / graph.units == (18 + 5) / (3 * 4 * 9 + 4 * 2 * 9 + 72 * 5)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_multiply_adds_are_those_of_one_sample_whatever_the_batch(batch_size):
    graph = read(small(), torch.zeros(batch_size, 3, 8, 8), "element")

    assert cost.macs(graph) == 3 * 4 * 9 * 64 + 4 * 2 * 9 * 36 + 72 * 5


def test_tied_parameters_count_once_and_their_multiply_adds_each_time():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2))
    model[2].weight = model[0].weight

    graph = read(model, torch.zeros(2, 4), "element")

    assert cost.parameters(graph) == 16 + 4 + 4 + (8 + 2)
    assert cost.macs(graph) == 16 + 16 + 8


def test_a_module_called_three_times_costs_its_multiply_adds_three_times():
    layers = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 2)])
    model = Mixer(layers, lambda f, x: f[1](f[0](f[0](f[0](x)))))

    graph = read(model, torch.zeros(2, 3), "element")

    assert cost.macs(graph) == 3 * 9 + 6
    assert cost.parameters(graph) == 9 + 3 + 6 + 2


def test_layers_on_tokens_cost_their_multiply_adds_for_every_token():
    graph = read(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), torch.zeros(2, 7, 3), "element")

    assert cost.macs(graph) == 7 * (12 + 8)


@settings(max_examples=40, derandomize=True)
@given(model=networks(), seed=st.integers(0, 10**6))
def test_elements_counted_are_those_left_in_the_pruned_network(model, seed):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.where(parameter == 0, 1.0, parameter))
    try:
        graph = read(model, images(), "element")
    except ModelError:  # pragma: no cover - every network has a linear layer
        pytest.fail("elements can always be pruned")
    plan = random_plan(graph, seed)

    pruned = apply(model, plan)

    assert cost.parameters(graph, plan.masks) == sum(
        int(p.count_nonzero()) for p in pruned.parameters()
    )
    assert cost.macs(graph, plan.masks) == macs_by_hooks(pruned, images())
    zeros = sum(int((p == 0).sum()) for p in pruned.parameters())
    assert plan.removed / graph.units == zeros / graph.units
