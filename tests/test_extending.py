"""Where CONTRIBUTING says that something is added: one file each, and it works.

Criteria are in tests/criteria/contract.py, budgets in tests/pruning/test_resources.py, rules of
relevance in tests/relevance.
"""

import copy

import pytest
import torch
from torch import nn

import flexrel
from flexrel import Magnitude, Recovery
from flexrel.repair import RepairResult
from flexrel.structure.axis_rules import along
from flexrel.structure.rules import AXIS_RULES
from networks import Call, random_

DATA = [torch.randn(32, 6, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]


class Shift:
    """Gives the last layer the bias that brings the means of its outputs back."""

    name = "shift"

    def __call__(self, pruned, dense, plan, batches, progress=None):
        network = copy.deepcopy(pruned)
        with torch.no_grad():
            inputs = torch.cat([b if isinstance(b, torch.Tensor) else b.args[0] for b in batches])
            network[-1].bias += (dense(inputs) - network(inputs)).mean(0)
        return RepairResult(self.name, network, ("the means are those of the dense network",))


class Ruin(Shift):
    """Sets the last layer's bias to something far off."""

    name = "ruin"

    def __call__(self, pruned, dense, plan, batches, progress=None):
        network = copy.deepcopy(pruned)
        with torch.no_grad():
            network[-1].bias += torch.tensor([100.0, 0.0, 0.0])
        return RepairResult(self.name, network, ())


def pruned_with(recovery):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 3))
    budgets = [flexrel.MACs(0.3)]
    return flexrel.prune(
        model, calibration=DATA, budgets=budgets, criterion=Magnitude(), recover=recovery
    )


def test_a_repair_of_ones_own_goes_on_from_the_closed_form():
    assert isinstance(Shift(), Recovery)

    steps = pruned_with(Shift()).recovery

    assert [step.name for step in steps] == ["closed-form", "shift"]
    assert steps[1].before == steps[0].after


def test_one_that_makes_it_worse_is_undone():
    plain, ruined = pruned_with("closed-form"), pruned_with(Ruin())

    assert [(step.name, step.kept) for step in ruined.recovery][1:] == [("ruin", False)]
    assert ruined.packed == plain.packed


def test_of_an_operation_without_a_rule_it_is_said_what_to_do_instead_where_that_is_known():
    rounded = Call(lambda x: torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -128, 127))
    model = random_(nn.Sequential(nn.Linear(4, 8), rounded, nn.Linear(8, 2)))

    with pytest.raises(flexrel.ModelError, match="prune the network before it is prepared for qu"):
        flexrel.prune(
            model,
            calibration=[torch.randn(2, 4)],
            budgets=["macs=60%"],
            options=flexrel.PruneOptions(form="module"),
        )


def test_an_operation_without_a_rule_is_left_alone_and_one_line_in_the_table_lets_it_be_cut(
    monkeypatch,
):
    def model():
        layers = nn.Conv2d(1, 8, 3), Call(lambda x: x.cummax(3).values), nn.Conv2d(8, 2, 3)
        return random_(nn.Sequential(*layers))

    image = [torch.randn(2, 1, 8, 8)]
    with pytest.raises(flexrel.ModelError, match=r"torch\.cummax .*, which can't be followed yet"):
        flexrel.prune(
            model(),
            calibration=image,
            budgets=[flexrel.MACs(0.6)],
            criterion=Magnitude(),
            options=flexrel.PruneOptions(form="module"),
        )

    monkeypatch.setitem(AXIS_RULES, "aten.cummax", along)
    result = flexrel.prune(
        model(), calibration=image, budgets=[flexrel.MACs(0.6)], criterion=Magnitude()
    )

    assert result.model[0].out_channels == result.model[2].in_channels < 8
