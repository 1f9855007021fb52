"""What can't be pruned counts in what is said, and is named."""

import pytest
import torch
from torch import nn

import flexrel
from flexrel.core import cost
from flexrel.structure import analyse, apply
from networks import batch, random_, random_plan


class Spoken(nn.Module):
    """An LSTM, a table and two layers."""

    def __init__(self, hidden=24):
        super().__init__()
        self.words = nn.Embedding(30, 8)
        self.lstm = nn.LSTM(8, hidden, batch_first=True)
        self.first, self.last = nn.Linear(hidden, 8), nn.Linear(8, 3)

    def forward(self, words):
        return self.last(torch.relu(self.first(self.lstm(self.words(words))[0][:, -1])))


WORDS = torch.arange(60).view(12, 5) % 30
SHARES = {  # of all matrices
    name: size / (240 + 4 * 24 * (8 + 24) + 24 * 8 + 8 * 3)
    for name, size in {"words": 240, "lstm": 4 * 24 * (8 + 24)}.items()
}


def pruned(granularity, **options):
    return flexrel.prune(
        random_(Spoken()),
        calibration=[WORDS],
        budgets=["sparsity=50%"],
        criterion="magnitude",
        granularity=granularity,
        recover="none",
        **options,
    )


def share_that_is_zero_or_gone(dense, model):
    sizes = [sum(p.numel() for p in m.parameters() if p.ndim > 1) for m in (dense, model)]
    zeros = sum(int((p == 0).sum()) for p in model.parameters() if p.ndim > 1)
    return 1 - (sizes[1] - zeros) / sizes[0]


@pytest.mark.parametrize("granularity", ["element", "channel", "2:4", "block:2x2"])
def test_the_share_of_all_weights_is_told_beside_that_of_what_can_go(granularity):
    result = pruned(granularity)

    share = share_that_is_zero_or_gone(random_(Spoken()), result.model)
    assert result.achieved.weights_removed == pytest.approx(share)
    assert result.as_json()["achieved"]["weights_removed"] == result.achieved.weights_removed
    assert result.achieved.removed >= 0.5


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("granularity", ["element", "channel", "2:4", "block:2x2", "depth"])
def test_the_share_of_all_weights_is_that_of_the_applied_plan(granularity, seed):
    layers = [nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)) for _ in range(3)]
    model = random_(Residual(layers))
    plan = random_plan(analyse(model, batch(torch.ones(2, 8)), granularity), seed)

    share = share_that_is_zero_or_gone(model, apply(model, plan))

    assert cost.weights_removed(plan.graph, plan.masks) == pytest.approx(share)


class Branch(nn.Module):
    def __init__(self, inside):
        super().__init__()
        self.inside = inside

    def forward(self, x):
        return x + self.inside(x)


class Residual(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.blocks = nn.Sequential(*map(Branch, layers))
        self.last = nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.blocks(x))


@pytest.mark.parametrize("granularity", ["channel", "2:4"])
def test_what_holds_much_and_was_left_is_named(granularity):
    result = pruned(granularity)

    for name, share in SHARES.items():
        (line,) = [w for w in result.warnings if w.startswith(f"{name} holds")]
        assert f"holds {share:.0%} of the weights" in line
    assert len(result.warnings) == len(SHARES)
    protected = {p.name for p in result.plan.graph.protected}
    assert {"lstm.weight_ih_l0", "lstm.weight_hh_l0"} <= protected


def test_weights_of_a_recurrent_layer_are_zeroed_one_by_one():
    result = pruned("element")

    zeros = [int((w == 0).sum()) for n, w in result.model.named_parameters() if "lstm.weight" in n]
    assert all(zeros)
    assert [w.split(" holds ")[0] for w in result.warnings] == ["words"]
    result.model(WORDS)


def test_what_is_kept_on_request_needs_no_warning():
    assert not [w for w in pruned("element", keep=["first"]).warnings if w.startswith("first")]
