"""Who goes first, and exactly how many: against a sorted list of all units."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flexrel import UsageError
from flexrel.core.graph import GroupMember, PruningGraph, PruningGroup
from flexrel.criteria import ALLOCATIONS, UnitRanking
from flexrel.criteria.ranking import as_scored, ranks_in_layer

# Few distinct values on purpose: ties are where selection code breaks.
VALUES = [-math.inf, -1.0, 0.0, 0.5, 1.0, math.inf]
ordered = settings(max_examples=150, derandomize=True)


def graph_of(scores):
    """Return a graph with one group for each tensor of scores."""
    groups = tuple(PruningGroup(name, tuple(values.shape)) for name, values in scores.items())
    return PruningGraph("element", groups, (), {}, ())


@st.composite
def all_scores(draw, values=tuple(VALUES)):
    """Scores of one to four groups of one to twelve units, some of two axes."""
    scores = {}
    for index in range(draw(st.integers(1, 4))):
        rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 3))
        drawn = draw(
            st.lists(st.sampled_from(values), min_size=rows * columns, max_size=rows * columns)
        )
        shape = (rows, columns) if draw(st.booleans()) else (rows * columns,)
        scores[f"layer{index}"] = torch.tensor(drawn).view(shape)
    return scores


def removed(plan):
    """Return the units that go, as (group, flat index)."""
    return {
        (name, at)
        for name, mask in plan.masks.items()
        for at in (~mask.flatten()).nonzero().squeeze(1).tolist()
    }


def order_slowly(scores):
    """The docstring of UnitRanking, read aloud: one sorted list of all units that can go."""
    units = []
    for place, (name, values) in enumerate(scores.items()):
        listed = values.flatten().tolist()
        best = listed.index(max(listed))  # the first of the best never goes
        units += [(s, -place, -at, (name, at)) for at, s in enumerate(listed) if at != best]
    return [unit[-1] for unit in sorted(units)]


@ordered
@given(scores=all_scores())
def test_every_plan_is_the_sorted_list_cut_after_k_units(scores):
    order = order_slowly(scores)
    ranking = UnitRanking(graph_of(scores), scores)

    assert ranking.removable == len(order)
    for count in range(len(order) + 1):
        assert removed(ranking.plan(count)) == set(order[:count])


@ordered
@given(scores=all_scores(), multiple=st.integers(1, 4))
def test_rounded_widths_keep_what_the_plan_keeps_and_the_best_of_the_rest(scores, multiple):
    graph = graph_of(scores)
    exact, rounded = UnitRanking(graph, scores), UnitRanking(graph, scores, multiple)

    for count in range(exact.removable + 1):
        plain, wide = exact.plan(count).masks, rounded.plan(count).masks
        for name, values in scores.items():
            kept, width = int(plain[name].sum()), values.numel()
            assert int(wide[name].sum()) == min(math.ceil(kept / multiple) * multiple, width)
            assert not (plain[name] & ~wide[name]).any()
            gone, back = values[~wide[name]], values[wide[name] & ~plain[name]]
            assert not gone.numel() or not back.numel() or gone.max() <= back.min()


def test_a_multiple_is_halved_for_widths_of_less_than_two_of_it():
    scores = {str(width): torch.arange(float(width)) for width in (12, 16, 32, 48)}
    graph = graph_of(scores)
    most = graph.units - len(scores)

    plan = UnitRanking(graph, scores, multiple_of=16, halved=True).plan(most)

    kept = {name: int(mask.sum()) for name, mask in plan.masks.items()}
    assert kept == {"12": 4, "16": 8, "32": 16, "48": 16}


def test_a_width_of_several_channels_a_unit_counts_channels():
    scores = {"a": torch.arange(8.0)}  # groups of two channels: four of them make eight
    part = GroupMember("a.weight", 0, torch.arange(16).view(8, 2), "producer")
    graph = PruningGraph("channel", (PruningGroup("a", (8,), (part,)),), (), {}, ())

    plan = UnitRanking(graph, scores, multiple_of=8).plan(5)

    assert plan.masks["a"].tolist() == [False] * 4 + [True] * 4


@ordered
@given(scores=all_scores())
def test_plans_remove_exactly_k_units_and_are_nested(scores):
    ranking = UnitRanking(graph_of(scores), scores)
    before = set()

    for count in range(ranking.removable + 1):
        plan = ranking.plan(count)
        now = removed(plan)

        assert plan.removed == len(now) == count
        assert before <= now
        assert all(bool(mask.any()) for mask in plan.masks.values())
        assert all(mask.dtype == torch.bool for mask in plan.masks.values())
        before = now


@ordered
@given(scores=all_scores(), data=st.data())
def test_no_unit_goes_that_is_worth_more_than_one_kept_but_for_each_layers_best(scores, data):
    ranking = UnitRanking(graph_of(scores), scores)
    plan = ranking.plan(data.draw(st.integers(0, ranking.removable)))

    gone = [float(scores[name].flatten()[at]) for name, at in removed(plan)]
    for name, values in scores.items():
        kept = values[plan.masks[name]].tolist()
        kept.remove(max(kept))  # the best, which never goes
        assert not gone or not kept or max(gone) <= min(kept)


def test_an_example_by_hand():
    scores = {"a": torch.tensor([3.0, 1.0, 2.0]), "b": torch.tensor([0.5, 0.1])}
    ranking = UnitRanking(graph_of(scores), scores)

    assert ranking.removable == 3  # of five units, two are the best of their layer
    assert removed(ranking.plan(1)) == {("b", 1)}
    assert removed(ranking.plan(2)) == {("b", 1), ("a", 1)}
    assert removed(ranking.plan(3)) == {("b", 1), ("a", 1), ("a", 2)}  # b's 0.5 is its best


def test_equal_scores_go_from_the_back():
    scores = {"a": torch.ones(2), "b": torch.ones(3)}
    ranking = UnitRanking(graph_of(scores), scores)

    assert [removed(ranking.plan(k)) - removed(ranking.plan(k - 1)) for k in (1, 2, 3)] == [
        {("b", 2)},
        {("b", 1)},
        {("a", 1)},
    ]


def test_the_scores_given_are_not_changed():
    scores = {"a": torch.tensor([1.0, 2.0])}

    UnitRanking(graph_of(scores), scores).plan(1)

    assert scores["a"].tolist() == [1.0, 2.0]


@ordered
@given(scores=all_scores())
def test_more_than_can_go_is_refused_with_the_numbers(scores):
    ranking = UnitRanking(graph_of(scores), scores)
    units = sum(values.numel() for values in scores.values())

    with pytest.raises(UsageError, match=rf"but {ranking.removable} of {units} can go") as caught:
        ranking.plan(ranking.removable + 1)
    with pytest.raises(UsageError, match="asked to remove -1 units"):
        ranking.plan(-1)

    assert caught.value.exit_code == 2


# --- allocations --------------------------------------------------------------------------------


@ordered
@given(scores=all_scores(values=(0.0, 0.5, 1.0)), data=st.data())
def test_per_layer_takes_the_same_share_of_every_layer_within_one_unit(scores, data):
    ranking = UnitRanking(graph_of(scores), ranks_in_layer(scores))
    count = data.draw(st.integers(0, ranking.removable))

    plan = ranking.plan(count)

    # Some share t fits all layers: |removed - t * units| <= 1, where a layer can't lose its best.
    low, high = 0.0, 1.0
    for name, values in scores.items():
        units, gone = values.numel(), int((~plan.masks[name]).sum())
        low = max(low, (gone - 1) / units)
        high = min(high, (gone + 1) / units if gone < units - 1 else 1.0)
    assert low <= high


@ordered
@given(scores=all_scores(values=(0.0, 0.5, 1.0)), data=st.data())
def test_per_layer_removes_the_lowest_of_each_layer(scores, data):
    ranking = UnitRanking(graph_of(scores), ranks_in_layer(scores))

    plan = ranking.plan(data.draw(st.integers(0, ranking.removable)))

    for name, values in scores.items():
        kept, gone = values[plan.masks[name]], values[~plan.masks[name]]
        assert not len(gone) or gone.max() <= kept.min()


def test_per_layer_by_hand():
    scores = {"a": torch.tensor([9.0, 8.0, 7.0, 6.0]), "b": torch.tensor([2.0, 1.0])}

    ranks = ranks_in_layer(scores)

    # The unit at place r of n, best first, has the rank 1 - (r + 1/2) / n.
    assert ranks["a"].tolist() == [0.875, 0.625, 0.375, 0.125]
    assert ranks["b"].tolist() == [0.75, 0.25]


def test_global_compares_all_units_as_they_are():
    scores = {"a": torch.tensor([1.0, 2.0])}

    assert as_scored(scores) is scores
    assert set(ALLOCATIONS) == {"global", "per-layer"}
