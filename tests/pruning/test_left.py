"""What can't be pruned counts in what is said, and is named."""

import io

import pytest
import torch
from rich.console import Console
from torch import nn

import flexrel
from flexrel.cli.show import table
from flexrel.core.cost import weights_removed
from networks import random_
from report_page import Page


class Spoken(nn.Module):
    """A table and an LSTM, each with a norm behind it, and two layers."""

    def __init__(self, hidden=24):
        super().__init__()
        self.words = nn.Embedding(30, 8)
        self.lstm = nn.LSTM(8, hidden, batch_first=True)
        self.norms = nn.ModuleList([nn.LayerNorm(8), nn.LayerNorm(hidden)])
        self.first, self.last = nn.Linear(hidden, 8), nn.Linear(8, 3)

    def forward(self, words):
        said = self.norms[1](self.lstm(self.norms[0](self.words(words)))[0][:, -1])
        return self.last(torch.relu(self.first(said)))


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


def blocks_with_zeros():
    """A network of residual blocks in which a third of all weights is zero already."""
    layers = [nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)) for _ in range(3)]
    model = random_(Residual(layers))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.view(-1)[::3] = 0.0
    return model


def nonzero(state):
    return sum(int((t != 0).sum()) for t in state.values() if t.ndim > 1)


@pytest.mark.parametrize("values", ["float32", "int4"])
@pytest.mark.parametrize("recover", ["none", "closed-form"])
@pytest.mark.parametrize("granularity", ["element", "channel", "2:4", "block:2x2", "depth"])
def test_the_share_of_all_weights_is_what_the_state_has_zeros_of_before_included(
    granularity, recover, values, tmp_path
):
    model = blocks_with_zeros()
    state = model.state_dict()
    size = sum(t.numel() for t in state.values() if t.ndim > 1)

    result = flexrel.prune(
        model,
        calibration=[torch.randn(64, 8)],
        budgets=["parameters=70%"],
        criterion="magnitude",
        granularity=granularity,
        recover=recover,
        values=values,
    )

    assert result.dense.weights_removed == pytest.approx(1 - nonzero(state) / size)
    said = result.achieved.weights_removed
    assert said == pytest.approx(1 - nonzero(result.model.state_dict()) / size)
    (tmp_path / "m").write_bytes(result.packed)
    loaded = flexrel.load(tmp_path / "m", into=blocks_with_zeros())
    assert said == pytest.approx(1 - nonzero(loaded.state_dict()) / size)
    told = result.as_json()["achieved"]
    assert told["weights_removed"] == said
    assert told["weights_removed_dense"] == result.dense.weights_removed
    row = Page(result.report()).row("all weights, gone or zero")
    assert row[1:4] == [f"{100 * result.dense.weights_removed:.2f} %", "", f"{100 * said:.2f} %"]


def test_tied_weights_count_once_in_the_share():
    model = random_(Residual([nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))]))
    model.blocks[0].inside[2].weight = model.blocks[0].inside[0].weight
    with torch.no_grad():
        model.blocks[0].inside[0].weight[:4] = 0.0

    assert weights_removed(model, model) == 32 / (64 + 24)


def test_the_table_of_the_command_line_shows_the_share_of_every_network():
    result = pruned("element")
    with Console(record=True, width=120, file=io.StringIO()) as console:
        console.print(table(result))

    told = console.export_text().splitlines()
    dense = next(line for line in told if "dense" in line.split()[:1])
    achieved = next(line for line in told if line.strip().startswith(">"))
    assert dense.strip().endswith(" 0.00 %")
    assert achieved.strip().endswith(f" {100 * result.achieved.weights_removed:.2f} %")


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


@pytest.mark.parametrize(("granularity", "left"), [("channel", SHARES), ("2:4", ["words"])])
def test_what_holds_much_and_was_left_is_named(granularity, left):
    result = pruned(granularity)

    for name in left:
        (line,) = [w for w in result.warnings if w.startswith(f"{name} holds")]
        assert f"holds {SHARES[name]:.0%} of the weights" in line
    assert len(result.warnings) == len(left)


def test_weights_of_a_recurrent_layer_have_a_pattern_along_what_they_read():
    result = pruned("2:4")

    for name in ("weight_ih_l0", "weight_hh_l0"):
        kept = result.model.lstm.get_parameter(name).unflatten(1, (-1, 4)) != 0
        assert (kept.sum(2) == 2).all()


def test_weights_of_a_recurrent_layer_are_zeroed_one_by_one():
    result = pruned("element")

    zeros = [int((w == 0).sum()) for n, w in result.model.named_parameters() if "lstm.weight" in n]
    assert all(zeros)
    assert [w.split(" holds ")[0] for w in result.warnings] == ["words"]
    result.model(WORDS)


def test_what_is_kept_on_request_needs_no_warning():
    assert not [w for w in pruned("element", keep=["first"]).warnings if w.startswith("first")]
