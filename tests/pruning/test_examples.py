"""Networks whose samples go different ways: of experts each is cut, and nothing is read wrongly."""

import pytest
import torch
from torch import nn

import flexrel
from flexrel.pruning.examples import telling_example
from flexrel.repair import reconstruct_
from networks import random_


class Experts(nn.Module):
    """Each sample goes through the one of eight experts that a gate picks for it."""

    def __init__(self, count=8):
        super().__init__()
        self.gate, self.head = nn.Linear(16, count), nn.Linear(16, 5)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)) for _ in range(count)
        )

    def forward(self, x):
        picked, out = self.gate(x).argmax(1), x
        for at, expert in enumerate(self.experts):
            mine = (picked == at).nonzero()[:, 0]
            if len(mine):
                out = out.index_add(0, mine, expert(x[mine]))
        return self.head(out)


class Exits(nn.Module):
    """Goes on to the second half only where some sample of the batch is not sure yet."""

    def __init__(self):
        super().__init__()
        self.first, self.out = nn.Linear(6, 24), nn.Linear(24, 3)
        self.second = nn.Linear(24, 24)

    def forward(self, x):
        hidden = self.first(x).relu()
        if bool(x.sum() > 0):
            hidden = self.second(hidden).relu()
        return self.out(hidden)


def drawn(count, size, width=16):
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(size, width, generator=draw) for _ in range(count)]


def test_of_a_network_of_experts_each_is_cut():
    model = random_(Experts()).eval()
    result = flexrel.prune(
        model, calibration=drawn(12, 8), budgets=["macs=60%"], criterion="magnitude"
    )

    narrower = [len(expert[0].weight) < 32 for expert in result.model.experts]
    assert sum(narrower) >= 7  # two samples go through two experts at most
    assert not [warning for warning in result.warnings if "never called" in warning]
    assert result.achieved.macs <= 0.6 * result.dense.macs


def test_zeros_of_a_network_of_experts_are_those_asked_for():
    model = random_(Experts()).eval()
    result = flexrel.prune(
        model, calibration=drawn(12, 8), budgets=["sparsity=50%"], granularity="element"
    )

    weights = [p for p in result.model.parameters() if p.ndim == 2]
    zero = sum(int((weight == 0).sum()) for weight in weights)
    assert zero / sum(weight.numel() for weight in weights) == pytest.approx(0.5, abs=0.001)


def test_an_ordinary_network_is_read_on_two_samples_and_one_of_experts_on_as_many_as_tell():
    batches = drawn(12, 8)
    plain = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))

    assert telling_example(plain, batches).samples == 2
    assert 2 < telling_example(random_(Experts()), batches).samples <= 96


def test_weights_that_no_sample_uses_make_the_example_no_larger():
    class Spared(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = nn.Linear(16, 3), nn.Linear(4, 4)

        def forward(self, x):
            return self.used(x)

    assert telling_example(Spared(), drawn(12, 8)).samples == 2


def cut(model):
    """Return the network with other weights, so that there is something to repair."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) + 0.5)
    return model


def test_experts_are_not_fitted_to_rows_that_another_network_may_not_pick():
    model, other = (random_(Experts()).eval() for _ in range(2))
    made, refused = reconstruct_(cut(other), model, None, drawn(12, 8))

    experts = {f"experts.{at}.{layer}" for at in range(8) for layer in (0, 2)}
    assert {one.layer for one in made} == {"gate", "head"}
    assert refused == dict.fromkeys(experts, "which rows go through it depends on the data")


def test_what_a_later_batch_passes_by_is_told_and_not_repaired():
    model, other = (random_(Exits()).eval() for _ in range(2))
    here, there = torch.rand(40, 6), -torch.rand(8, 6)
    made, refused = reconstruct_(cut(other), model, None, [here, there])

    assert [one.layer for one in made] == ["first"]
    told = "it, or one before it, does not run on every batch"
    assert refused == {"second": told, "out": told}
