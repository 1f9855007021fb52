"""A resource that the library does not know: one object in one file, and everything works."""

import json
import math
import pickle
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

import flexrel
from flexrel import Budget, BudgetError, Bytes, Link, Magnitude, Resource
from flexrel.io import encode

DATA = [torch.randn(8, 6, generator=torch.Generator().manual_seed(0))]


def biases_left(candidate):
    """Count the entries of biases that a plan leaves, from the members of its groups."""
    left = sum(shape[0] for name, shape in candidate.graph.shapes.items() if name.endswith("bias"))
    for group in candidate.graph.groups:
        gone = int((~candidate.plan.masks[group.name]).sum())
        left -= sum(
            gone * member.index.shape[1]
            for member in group.members
            if member.tensor.endswith("bias")
        )
    return left


@dataclass(frozen=True)
class Biases:
    """At most a share of the dense network's biases."""

    amount: float
    resource: ClassVar[Resource] = Resource("biases", biases_left)

    def limit(self, dense):
        return math.floor(self.amount * dense)


@dataclass(frozen=True)
class Rows:
    """At most a share of the rows of weights, counted on the network itself."""

    amount: float
    resource: ClassVar[Resource] = Resource(
        "rows",
        lambda candidate: sum(len(p) for p in candidate.network.parameters() if p.ndim > 1),
        steady=False,
    )

    def limit(self, dense):
        return math.floor(self.amount * dense)


def network():
    torch.manual_seed(0)
    layers = nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 2)
    return nn.Sequential(*layers)


def biases_in(model):
    return sum(len(p) for name, p in model.named_parameters() if name.endswith("bias"))


def rows_in(model):
    return sum(len(p) for p in model.parameters() if p.ndim > 1)


@pytest.mark.parametrize("share", [0.9, 0.5, 0.3])
@pytest.mark.parametrize("criterion", [None, Magnitude()])
def test_a_network_is_pruned_to_a_budget_that_a_user_wrote(share, criterion, tmp_path):
    budget = Biases(share)
    assert isinstance(budget, Budget)

    result = flexrel.prune(network(), calibration=DATA, budgets=[budget], criterion=criterion)

    limit = math.floor(share * (20 + 10 + 2))
    assert limit - 1 < biases_in(result.model) <= limit  # each unit has one: nothing in vain
    assert result.requested["biases"] == limit
    result.save(tmp_path / "out")
    assert (
        json.loads((tmp_path / "out" / "result.json").read_text())["requested"]["biases"] == limit
    )


def test_it_goes_together_with_the_librarys_own():
    result = flexrel.prune(
        network(),
        calibration=DATA,
        budgets=[Biases(0.9), "macs=40%"],
        criterion=Magnitude(),
    )

    assert biases_in(result.model) <= math.floor(0.9 * 32)
    assert result.achieved.macs <= 0.4 * result.dense.macs


def test_one_that_is_measured_on_the_network_is_kept_too():
    result = flexrel.prune(network(), calibration=DATA, budgets=[Rows(0.5)], criterion=Magnitude())

    assert rows_in(result.model) == 16  # half of 20 + 10 + 2, and each unit is one row


def test_a_limit_of_less_than_one_is_kept_too():
    class Thousands:
        resource = Resource("thousand biases", lambda c: biases_left(c) / 1000)

        def limit(self, dense):
            return dense / 2

    result = flexrel.prune(
        network(), calibration=DATA, budgets=[Thousands()], criterion=Magnitude()
    )

    assert biases_in(result.model) == 16  # half of 32


def test_one_that_can_not_be_met_says_the_closest_by_its_name():
    with pytest.raises(BudgetError) as caught:
        flexrel.prune(network(), calibration=DATA, budgets=[Biases(0.1)], criterion=Magnitude())

    assert (caught.value.resource, caught.value.limit, caught.value.closest) == ("biases", 3, 4)


def test_a_floor_that_is_measured_is_refused():
    with pytest.raises(flexrel.UsageError, match="'rows' is a floor and is measured"):
        Resource("rows", len, steady=False, at_least=True)


def test_a_floor_that_is_counted_is_reached_and_said_as_one():
    class Gone:
        resource = Resource("gone", lambda candidate: candidate.removed, at_least=True)

        def limit(self, dense):
            return 7

    class TooMany(Gone):
        def limit(self, dense):
            return 99

    result = flexrel.prune(network(), calibration=DATA, budgets=[Gone()], criterion=Magnitude())

    assert result.plan.removed == 7
    with pytest.raises(BudgetError, match=r"asked for at least 99 gone, but the closest .* is 28"):
        flexrel.prune(network(), calibration=DATA, budgets=[TooMany()], criterion=Magnitude())


def test_a_result_survives_pickling():
    result = flexrel.prune(network(), calibration=DATA, budgets=["macs=50%"], evaluate=lambda _: 1)

    back = pickle.loads(pickle.dumps(result))

    assert back.packed == result.packed
    assert back.requested == result.requested


def pruned(*budgets):
    return flexrel.prune(network(), calibration=DATA, budgets=budgets, criterion=Magnitude())


def test_a_network_is_pruned_to_a_link_as_to_the_bytes_that_it_carries():
    dense = len(encode(network()))
    most = dense * 3 // 4

    over = pruned(Link(f"{most} ms", "8 kbit/s"))  # a byte each millisecond
    told = over.as_json()

    assert len(over.packed) == len(pruned(Bytes(most)).packed) <= most
    assert told["requested"]["link_s"] == most / 1000
    assert told["achieved"]["link_s"] == len(over.packed) / 1000
    assert told["achieved"]["link_s_dense"] == dense / 1000
    assert "seconds over the link" in over.report()


def test_a_link_that_is_too_slow_says_the_closest_time():
    with pytest.raises(BudgetError, match=r"at most 0\.01 s of link, but the closest .* s of link"):
        pruned("link=10ms@8kbit/s")


def test_two_links_of_different_rates_are_refused():
    with pytest.raises(flexrel.UsageError, match="give the tighter"):
        pruned("link=8s@1Mbit/s", "link=8s@2Mbit/s")
