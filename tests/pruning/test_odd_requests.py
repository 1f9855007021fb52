"""What is asked or given by mistake is told in one line; what is merely large works."""

import math

import pytest
import torch
from torch import nn

import flexrel
from flexrel import BudgetError, FlexrelError, ModelError, PruneOptions, UsageError
from networks import Call, random_
from repairs import normal

DATA = [normal(32, 8, seed=seed) for seed in range(3)]


def network():
    return random_(nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 4))).eval()


@pytest.mark.parametrize("size", [1e15, 1e20, 1e30])
def test_inputs_whose_squares_overflow_are_pruned_all_the_same(size):
    result = flexrel.prune(
        network(), calibration=[batch * size for batch in DATA], budgets=["macs=50%"]
    )

    assert result.achieved.macs <= 0.5 * result.dense.macs
    assert math.isfinite(result.achieved.divergence)


def test_a_network_that_returns_nan_is_told_so():
    broken = nn.Sequential(network(), Call(lambda x: x * math.nan)).eval()

    with pytest.raises(ModelError, match="returns NaN for calibration batch 0 as it is; check"):
        flexrel.prune(broken, calibration=DATA, budgets=["macs=50%"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"calibration": None}, "the batches are a NoneType; pass an iterable"),
        ({"calibration": 5}, "the batches are a int; pass an iterable"),
        ({"options": {"multiple_of": "8"}}, "multiple_of='8' of granularity"),
        ({"options": {"multiple_of": 2.5}}, "multiple_of=2.5 of granularity"),
    ],
)
def test_an_argument_of_another_kind_is_refused_in_one_line(arguments, says, unchecked):
    asked = {"calibration": DATA, "budgets": ["macs=50%"], **arguments}
    asked["options"] = PruneOptions(**asked.get("options", {}))

    with pytest.raises(UsageError, match=says) as caught:
        flexrel.prune(network(), **asked)

    assert isinstance(caught.value, FlexrelError)
    assert "\n" not in str(caught.value)


def test_names_with_brackets_are_names():
    children = {"a[0]": nn.Linear(8, 24), "b[1]": nn.Linear(24, 4)}
    plain = nn.Sequential(children["a[0]"], nn.ReLU(), children["b[1]"])

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            for name, child in children.items():
                self.add_module(name, child)

        def forward(self, x):
            return self.get_submodule("b[1]")(self.get_submodule("a[0]")(x).relu())

    odd, usual = (
        flexrel.prune(one, calibration=DATA, budgets=["macs=50%"], criterion="magnitude")
        for one in (Named(), plain)
    )

    assert torch.equal(odd.plan.masks["a[0]"], usual.plan.masks["0"])


def test_a_budget_that_can_not_be_met_names_the_layer_that_holds_most_of_the_rest():
    layers = nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 4)
    model = random_(nn.Sequential(*layers)).eval()

    # '0' holds 192 of 864 weights.
    says = r"keeps its best unit\. '0', 22% of the weights, is left alone: kept on request"
    with pytest.raises(BudgetError, match=says):
        flexrel.prune(
            model, calibration=DATA, budgets=["macs=1%"], criterion="magnitude", keep=["0"]
        )


def test_where_all_layers_are_cut_the_one_that_holds_most_of_the_rest_is_named():
    model = random_(nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 4))).eval()

    # One unit of '0' stays: 8 weights and a bias there, 4 and 4 biases in '2'.
    for budget, says in (
        (
            "macs=1%",
            r"keeps its best unit\. Of what stays most is in '0', 67% of the multiply-adds",
        ),
        ("parameters=1%", r"Of what stays most is in '0', 53% of the parameters"),
    ):
        with pytest.raises(BudgetError, match=says):
            flexrel.prune(model, calibration=DATA, budgets=[budget], criterion="magnitude")
