"""What is looked up or put down by number, as messages along edges, is followed and cut."""

import copy

import pytest
import torch
from tests.networks import batch, random_, random_plan
from torch import nn

from flexrel.errors import UnprunableError
from flexrel.structure import analyse, apply

EDGES = torch.tensor([[0, 1, 2, 3, 4, 4, 0], [1, 2, 3, 4, 0, 1, 3]])


def by_index_add(x, source, target):
    return torch.zeros_like(x).index_add(0, target, x[source])


def by_index_select(x, source, target):
    return torch.zeros_like(x).index_add_(0, target, x.index_select(0, source), alpha=2)


def by_scatter(x, source, target):
    places = target[:, None].expand(-1, x.shape[1])
    return torch.zeros_like(x).scatter_add(0, places, x[source])


def by_largest(x, source, target):
    places = target[:, None].expand(-1, x.shape[1])
    return torch.zeros_like(x).scatter_reduce(0, places, x[source], "amax")


def by_gather(x, source, target):
    return x + x.gather(0, source[:5, None].expand(-1, x.shape[1]))


def from_the_right(x, source, target):
    return torch.zeros_like(x.T).index_add(-1, target, x.T.index_select(-1, source)).T


class Messages(nn.Module):
    def __init__(self, pass_on):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(3, 8), nn.Linear(8, 6), nn.Linear(6, 2)
        self.pass_on = pass_on

    def forward(self, x):
        x = self.pass_on(self.first(x).relu(), *EDGES)
        return self.head(self.pass_on(self.second(x).tanh(), *EDGES))


@pytest.mark.parametrize(
    "pass_on",
    [by_index_add, by_index_select, by_scatter, by_largest, by_gather, from_the_right],
)
@pytest.mark.parametrize("seed", range(3))
def test_messages_keep_their_features_apart(pass_on, seed):
    model, x = random_(Messages(pass_on), seed), torch.randn(5, 3)
    graph = analyse(model, batch(x), "channel")
    plan = random_plan(graph, seed)

    cut = apply(model, plan)

    assert {group.name: group.units for group in graph.groups} == {"first": 8, "second": 6}
    zeroed = copy.deepcopy(model)
    with torch.no_grad():
        for name, reader in (("first", zeroed.second), ("second", zeroed.head)):
            reader.weight[:, ~plan.masks[name]] = 0
        assert torch.allclose(cut(x), zeroed(x), atol=1e-5)


class Picked(nn.Module):
    """Features by number: which they are stands in the code."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(3, 8), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.first(x).relu().index_select(1, torch.tensor([0, 2, 4, 7])))


def test_features_that_are_looked_up_by_number_stay():
    told = r"first: torch\.index_select \(.*\) looks it up by number"
    with pytest.raises(UnprunableError, match=told):
        analyse(Picked(), batch(torch.randn(5, 3)), "channel")
