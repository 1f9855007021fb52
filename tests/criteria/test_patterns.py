"""Which weights go by N:M and by blocks: by hand, and against loops."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flexrel import (
    UsageError,
)
from flexrel.core.granularity import WeightLayout
from flexrel.core.graph import PruningGraph, PruningGroup
from flexrel.criteria.ranking import PatternRanking, pattern_mask
from layers import drawn, layers, layout_of
from reference import patterns as slow

# Few distinct values on purpose: ties are where selection breaks.
FEW = [-1.0, -0.0, 0.0, 0.5, 2.0]


def few_scores(draw, shape):
    count = torch.Size(shape).numel()
    return torch.tensor(draw(st.lists(st.sampled_from(FEW), min_size=count, max_size=count))).view(
        shape
    )


# --- N:M ----------------------------------------------------------------------------------------


def test_two_of_four_by_hand():
    scores = torch.tensor([[5.0, 1, 4, 2, 9, 8], [1, 1, 1, 1, -7, -8], [-4, -3, -2, -1, 0, 0]])

    mask = pattern_mask(scores, WeightLayout((3, 6)), 2, 4)

    assert mask.int().tolist() == [
        [1, 0, 1, 0, 1, 1],  # the last two are no group and stay
        [1, 1, 0, 0, 1, 1],  # of equals the earlier stay
        [0, 0, 1, 1, 1, 1],
    ]


def test_groups_of_a_convolution_are_input_channels_at_one_kernel_position():
    scores = torch.tensor([[1.0, 4, 2, 3], [8, 7, 6, 5]]).T.reshape(1, 4, 1, 2)

    mask = pattern_mask(scores, WeightLayout((1, 4, 1, 2)), 2, 4)

    assert mask[0, :, 0, 0].int().tolist() == [0, 1, 0, 1]
    assert mask[0, :, 0, 1].int().tolist() == [1, 1, 0, 0]


@drawn
@given(layer=layers, data=st.data())
def test_n_of_m_is_that_of_loops(layer, data):
    layout = layout_of(layer)
    of = data.draw(st.integers(2, 5))
    kept = data.draw(st.integers(1, of - 1))
    scores = few_scores(data.draw, layer.weight.shape)

    mask = pattern_mask(scores, layout, kept, of)

    assert set(map(tuple, mask.nonzero().tolist())) == slow.kept_of_groups(layer, scores, kept, of)
    rows = layer.weight.numel() // layout.inputs
    whole, rest = divmod(layout.inputs, of)
    assert int(mask.sum()) == rows * (whole * kept + rest)


def groups_of(**shapes):
    groups = tuple(
        PruningGroup(name, shape, layout=WeightLayout(shape)) for name, shape in shapes.items()
    )
    return PruningGraph("1:2", groups, (), {}, ())


def test_layers_that_lose_least_by_each_weight_take_the_pattern_first():
    graph = groups_of(a=(1, 2), b=(2, 4), c=(1, 2), d=(1, 2))
    scores = {
        "a": torch.tensor([[3.0, 9.0]]),  # loses 3
        "b": torch.tensor([[1.0, 9.0, 9.0, 1.0], [1.0, 9.0, 9.0, 1.0]]),  # 1 each, 4 in all
        "c": torch.tensor([[2.0, 2.0]]),  # 2
        "d": torch.tensor([[torch.inf, 2.0]]),  # 2, and is later
    }

    removal = PatternRanking(graph, scores)

    took = [
        {name for name, mask in removal.plan(count).masks.items() if not mask.all()}
        for count in range(5)
    ]
    assert took == [set(), {"b"}, {"b", "d"}, {"b", "c", "d"}, {"a", "b", "c", "d"}]
    assert [removal.plan(count).removed for count in range(5)] == [0, 4, 5, 6, 7]
    assert removal.plan(4).masks["d"].tolist() == [[True, False]]
    assert removal.plan(4).masks["c"].tolist() == [[True, False]]
    for count in (-1, 5):
        with pytest.raises(UsageError, match="4 can have it"):
            removal.plan(count)


def test_groups_without_a_layout_have_no_groups():
    with pytest.raises(UsageError, match="no layout"):
        PatternRanking(
            PruningGraph("2:4", (PruningGroup("a", (1, 4)),), (), {}, ()), {"a": torch.ones(1, 4)}
        )


# --- blocks -------------------------------------------------------------------------------------


def test_blocks_by_hand():
    layout = WeightLayout((3, 5), block=(2, 2))
    scores = torch.arange(15.0).view(3, 5)

    assert layout.grid == (2, 3)
    assert layout.means(scores).tolist() == [[3.0, 5.0, 6.5], [10.5, 12.5, 14.0]]
    mask = torch.tensor([[True, False, True], [False, True, False]])
    assert layout.entries(mask) == 4 + 2 + 2
    assert layout.spread(mask).int().tolist() == [
        [1, 1, 0, 0, 1],
        [1, 1, 0, 0, 1],
        [0, 0, 1, 1, 0],
    ]


@drawn
@given(layer=layers, data=st.data())
def test_blocks_are_those_of_loops(layer, data):
    rows, columns = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 7))
    layout = layout_of(layer, (rows, columns))
    scores = few_scores(data.draw, layer.weight.shape)
    found = slow.blocks(layer, rows, columns)

    means = layout.means(scores).flatten()
    assert len(means) == layout.grid[0] * layout.grid[1] == len(found)
    for block, mean in zip(found, means.tolist(), strict=True):
        assert mean == pytest.approx(sum(scores[index].item() for index in block) / len(block))
    for at, block in enumerate(found):
        mask = torch.zeros(layout.grid, dtype=torch.bool)
        mask.view(-1)[at] = True
        assert set(map(tuple, layout.spread(mask).nonzero().tolist())) == set(block)
        assert layout.entries(mask) == len(block)


def test_blocks_of_equal_scores_are_equal_whatever_their_size():
    means = WeightLayout((50, 70), block=(16, 32)).means(torch.full((50, 70), 0.1))

    assert (means == torch.tensor(0.1)).all()


def test_infinite_scores_have_a_mean():
    scores = torch.tensor([[torch.inf, -torch.inf, torch.inf, torch.inf]])

    means = WeightLayout((1, 4), block=(1, 2)).means(scores)

    assert means[0, 0] == 0
    assert means.isfinite().all()


def test_a_block_may_be_larger_than_any_weight():
    assert WeightLayout((3, 5), block=(999_999_999, 999_999_999)).grid == (1, 1)
