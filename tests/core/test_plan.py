"""A plan is written whole, in few lines, and is read as it was written."""

import copy
from dataclasses import fields, is_dataclass

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import flexrel
from families import FAMILIES, family, numbers_are_true
from flexrel import Plan
from flexrel.core import cost
from flexrel.core.plan.write import runs
from networks import (
    attributes_are_true,
    bits,
    images,
    networks,
    same_bits,
)
from planned import all_plans, plan_for


@pytest.fixture(scope="module")
def plans():
    return all_plans()


def alike(one, two):
    """Whether two records are equal, field by field, down to the tensors."""
    if isinstance(one, Tensor):
        return one.dtype == two.dtype and torch.equal(one, two)
    if isinstance(one, dict):
        return list(one) == list(two) and all(alike(one[key], two[key]) for key in one)
    if isinstance(one, tuple):
        return len(one) == len(two) and all(map(alike, one, two))
    if is_dataclass(one):
        names = [field.name for field in fields(one)]
        return type(one) is type(two) and all(
            alike(getattr(one, n), getattr(two, n)) for n in names
        )
    return type(one) is type(two) and one == two


@pytest.mark.parametrize("name", [*FAMILIES, "weights"])
def test_a_plan_is_read_as_it_was_written(name, plans, tmp_path):
    plan = plans[name]
    plan.save(tmp_path / "plan.json")

    read = Plan.load(tmp_path / "plan.json")

    assert alike(read, plan)
    assert read.encode() == plan.encode() == (tmp_path / "plan.json").read_bytes()


@settings(max_examples=40, derandomize=True)
@given(
    model=networks(), seed=st.integers(0, 99), granularity=st.sampled_from(["element", "channel"])
)
def test_any_plan_makes_the_same_network_again(model, seed, granularity, tmp_path_factory):
    try:
        plan = plan_for(model, seed, granularity, images())
    except flexrel.ModelError:
        assume(False)
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    plan.save(path)

    again = flexrel.apply(copy.deepcopy(model), Plan.load(path))

    assert same_state(again, flexrel.apply(model, plan))
    attributes_are_true(again)


def same_state(one, two):
    a, b = one.state_dict(), two.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_plan_makes_other_weights_of_the_same_network_smaller_too(plans):
    model = family("transformer", seed=5).train()
    before = bits(model)

    pruned = flexrel.apply(nn.DataParallel(model), plans["transformer"])

    assert same_bits(bits(model), before)
    assert pruned.training
    numbers_are_true(pruned)
    whole = plans["transformer"].graph
    assert sum(p.numel() for p in pruned.parameters()) == cost.parameters(
        whole, plans["transformer"].masks
    )


def ranges(found):
    return [value for run in found for value in range(*run)]


@given(st.lists(st.integers(0, 40), unique=True) | st.lists(st.integers(0, 9)))
def test_runs_give_their_values(values):
    assert ranges(runs(torch.tensor(values, dtype=torch.int64).numpy())) == values


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (range(5, 900), [[5, 900]]),
        (range(3, 900, 7), [[3, 906, 7]]),  # 3, 10, ..., 899
        ([4], [[4, 5]]),
        ([0, 1, 2, 9, 10], [[0, 3], [9, 11]]),
        ([1, 5, 6, 7], [[1, 2], [5, 8]]),
        ([9, 6, 3, 0], [[9, -3, -3]]),
        ([], []),
    ],
)
def test_runs_are_few(values, expected):
    assert runs(torch.tensor(list(values), dtype=torch.int64).numpy()) == expected


@pytest.mark.parametrize("turn", [False, True])
def test_a_stripe_of_features_is_one_line(turn, tmp_path):
    """4 channels of 25 features each, one after the other or interleaved: [unit, place]."""
    model = nn.Sequential(nn.Conv2d(3, 4, 4), nn.Flatten(), nn.Linear(100, 2))
    if turn:
        model.insert(1, Last())

    plan = plan_for(model)
    plan.save(tmp_path / "plan.json")

    written = plan.as_json()
    assert alike(Plan.load(tmp_path / "plan.json"), plan)
    (group,) = written["groups"]
    (stripe,) = [part for part in group["members"] if part["role"] == "consumer"]
    assert (stripe["each"], stripe["by"]) == (25, "places" if turn else "units")
    assert stripe["index"] == [[0, 100]]


class Last(nn.Module):
    def forward(self, x):
        return x.permute(0, 2, 3, 1)


def test_masks_of_weights_take_a_bit_each():
    model = nn.Sequential(nn.Linear(500, 400))
    plan = plan_for(model, granularity="element", inputs=torch.ones(2, 500))

    assert 500 * 400 / 8 < len(plan.encode()) < 1.4 * 500 * 400 / 8  # base64: 4 letters for 3


def part(content, tensor):
    return next(p for s in content["groups"] for p in s["members"] if p["tensor"] == tensor)
