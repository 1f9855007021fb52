"""N:M and blocks in a network: which layers have room, which zeros they get, what that costs."""

import pytest
import torch
from torch import nn

import flexrel
from flexrel import (
    FlexRel,
    Magnitude,
    ModelError,
    Parameters,
    Relevance,
    Sparsity,
    calibrate,
)
from flexrel.core import cost
from flexrel.core.granularity import Pattern
from flexrel.criteria import scores_of
from flexrel.structure import analyse, apply, named_tensors
from layers import CRITERIA, PICTURES, tower
from networks import Mixer, batch, bits, random_, random_plan, same_bits
from reference import patterns as slow

# --- what of a network can have it --------------------------------------------------------------


def test_layers_with_fewer_inputs_than_a_group_are_protected():
    graph = analyse(tower(), batch(PICTURES), "2:4")

    assert {group.name: group.shape for group in graph.groups} == {
        "2": (6, 4, 3, 3),
        "5": (6, 5, 2, 2),
        "7": (3, 80),
    }
    assert {p.name: p.reason for p in graph.protected} == {
        "0": "a group takes 4 inputs, and an output of it has 3",
        "3": "a group takes 4 inputs, and an output of it has 1",
    }


def test_a_weight_of_one_block_is_protected():
    graph = analyse(tower(), batch(PICTURES), "block:5x20")

    assert {group.name: group.shape for group in graph.groups} == {
        "0": (2, 2),  # 8 x 27
        "2": (2, 2),  # twice 3 x 36
        "3": (6, 1),  # six times 1 x 4
        "5": (1, 2),  # 5 x 24
        "7": (1, 4),  # 3 x 80
    }
    graph = analyse(tower(), batch(PICTURES), "block:5x36")
    assert {p.name: p.reason for p in graph.protected} == {"5": "its weight is one block"}


def test_a_network_without_room_is_refused_with_the_reason():
    model = nn.Linear(3, 5)

    with pytest.raises(ModelError, match="a group takes 4 inputs, and an output of it has 3"):
        analyse(model, batch(torch.ones(2, 3)), "2:4")
    with pytest.raises(ModelError, match=r"by block:8x8 .*one block"):
        analyse(model, batch(torch.ones(2, 3)), "block:8x8")


def test_layers_that_share_a_weight_have_the_pattern_or_the_reason_together():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 9))
    model[1].weight = model[0].weight

    assert [s.name for s in analyse(model, batch(torch.ones(2, 4)), "1:4").groups] == ["0", "2"]
    graph = analyse(model, batch(torch.ones(2, 4)), "block:4x4")
    assert [s.name for s in graph.groups] == ["2"]
    assert [p.name for p in graph.protected] == ["0", "1"]
    assert {p.reason for p in graph.protected} == {"its weight is one block"}


class Words(nn.Module):
    """A classifier of words whose weight is that of the embedding before it."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, words):
        return self.head(self.embedding(words).mean(1))


@pytest.mark.parametrize("criterion", [Magnitude(), Relevance()])
@pytest.mark.parametrize("granularity", ["element", "2:4", "block:4x4"])
def test_a_head_that_shares_an_embeddings_weight_is_pruned_with_it(granularity, criterion):
    model = random_(Words())

    result = flexrel.prune(
        model,
        calibration=[torch.arange(20).view(4, 5) % 11],
        budgets=[Sparsity(0.5)],
        granularity=granularity,
        criterion=criterion,
    )

    assert int((result.model.head.weight == 0).sum()) == 88 - result.achieved.parameters
    assert result.model.head.weight is result.model.embedding.weight
    assert result.achieved.removed >= 0.5


@pytest.mark.parametrize("granularity", ["element", "2:4"])
def test_a_weight_with_another_name_first_goes_by_that(granularity):
    model = Mixer(nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)]), lambda f, x: f[1](f[0](x)))
    table = nn.Parameter(torch.ones(4, 4))
    model.table = table
    model.get_submodule(
        next(n for n, m in model.named_modules() if m.__class__ is nn.Linear)
    ).weight = table

    graph = analyse(model, batch(torch.ones(2, 4)), granularity)

    assert [group.name for group in graph.groups] == ["table", "layer.1"]
    assert not graph.protected


# --- carried out --------------------------------------------------------------------------------


@pytest.mark.parametrize("granularity", ["2:4", "3:5", "block:2x3", "block:4x4", "block:1x1"])
@pytest.mark.parametrize("seed", range(3))
def test_zeros_are_where_the_plan_says_and_are_counted(granularity, seed):
    model = tower()
    graph = analyse(model, batch(PICTURES), granularity)
    plan = random_plan(graph, seed)
    before = bits(model)

    pruned = apply(model, plan)

    size = Pattern.of(granularity).size
    for name, layer in model.named_children():
        if name not in plan.masks:
            continue
        mask = plan.masks[name]
        gone = set(map(tuple, (~mask).nonzero().tolist()))
        if granularity.startswith("block"):
            found = slow.blocks(layer, *size)
            flags = mask.flatten().tolist()
            gone = {
                at for block, kept in zip(found, flags, strict=True) if not kept for at in block
            }
        weight = pruned.get_submodule(name).weight
        assert set(map(tuple, (weight == 0).nonzero().tolist())) == gone
        kept = weight != 0
        assert torch.equal(weight[kept], layer.weight[kept])
    assert same_bits(before, bits(model))
    assert cost.parameters(graph, plan.masks) == sum(
        int(p.count_nonzero()) for p in pruned.parameters()
    )
    assert cost.macs(graph, plan.masks) == cost.macs(graph)


@pytest.mark.parametrize("criterion", CRITERIA, ids=lambda c: c.name)
@pytest.mark.parametrize("granularity", ["block:2x3", "block:4x4"])
def test_the_score_of_a_block_is_the_mean_of_its_weights(criterion, granularity):
    model = tower()
    statistics = calibrate(model, [PICTURES])
    tensors = named_tensors(model)
    elements, by_block = (
        scores_of(criterion, analyse(model, batch(PICTURES), g), tensors, statistics)
        for g in ("element", granularity)
    )

    for name, scores in by_block.items():
        found = slow.blocks(model.get_submodule(name), *Pattern.of(granularity).size)
        means = [sum(elements[name][at].item() for at in block) / len(block) for block in found]
        assert scores.flatten().tolist() == pytest.approx(means, rel=1e-5)


def test_a_block_of_one_weight_is_an_element():
    options = {"calibration": [PICTURES], "budgets": [Parameters(0.6)], "criterion": FlexRel(0.3)}

    one, other = (
        flexrel.prune(tower(), granularity=g, **options) for g in ("element", "block:1x1")
    )

    assert one.achieved == other.achieved
    assert same_bits(bits(one.model)[:5], bits(other.model)[:5])
