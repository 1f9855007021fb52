"""What a layer is fitted to: the dense layer's outputs, or the dense network's sum behind it."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from flexrel.repair import reconstruct_
from flexrel.structure import apply
from networks import Call, random_
from repairs import normal, outputs, plan_of, repaired


class Sum(nn.Module):
    """A residual block: what a branch gives is added to what came through a cut before it."""

    def __init__(self, end=None, after=None):
        super().__init__()
        self.skip = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.Sigmoid())
        self.branch = nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, 5))
        self.end = end or (lambda y: y)
        self.after = after or nn.Linear(5, 3)

    def forward(self, x):
        return self.after(self.skip(x) + self.end(self.branch(x)))


def damaged(model, inputs):
    """Return the network cut on the side that is no branch's, and that repaired."""
    cut, network, made, _ = repaired(model, {"skip.0": [0, 3, 5, 6]}, inputs)
    return cut, network, {repair.layer: repair for repair in made}


def scaled_in_place(y):
    return y.mul_(0.25)


ENDS = {
    "nothing": None,
    "a number": lambda y: 0.25 * y,
    "a number a channel": lambda y: y * torch.tensor([1.0, 2.0, -3.0, 0.5, 4.0]),
    "in place": scaled_in_place,
    "dropout": lambda y: functional.dropout(y, 0.5, training=False),
    "batch norm": nn.BatchNorm1d(5),
}


@pytest.mark.parametrize("name", ENDS)
def test_a_branch_makes_up_for_what_the_other_side_of_its_sum_lost(name):
    end = copy.deepcopy(ENDS[name])
    model, inputs = random_(Sum(end)).eval(), normal(400, 6)

    cut, network, made = damaged(model, inputs)

    # the slow twin: a plain goal would leave the branch, of which nothing was cut, as it is
    plain = copy.deepcopy(network)
    plain.branch.load_state_dict(cut.branch.state_dict())
    plain.after.load_state_dict(cut.after.state_dict())
    sides = [
        (outputs(one.skip, inputs) + outputs(Call(one.end), outputs(one.branch, inputs)))
        for one in (model, plain, network)
    ]
    assert made["branch.2"].changed
    apart = [float((side - sides[0]).square().mean()) for side in sides]
    assert apart[2] < 0.6 * apart[1]


SCALES = {
    "samples": lambda y, _: y * y[:, :1].sigmoid(),
    "channels of each sample": lambda y, _: y * (5 * y.mean((2, 3), keepdim=True)).sigmoid(),
    "positions": lambda y, _: y * torch.linspace(0.1, 2, 4).view(2, 2),
    "rows of positions": lambda y, _: y * torch.tensor([[0.1], [2.0]]),
    "channels by what else comes in": lambda y, x: y * (5 * x[:, :1].mean((2, 3), True)).sigmoid(),
    "channels of each sample by what else comes in": lambda y, x: (
        y * (5 * x.mean((2, 3), keepdim=True)[:, [0, 1, 2, 0, 1]]).sigmoid()
    ),
}


@pytest.mark.parametrize("first", [2, 1])  # samples in the first batch
@pytest.mark.parametrize("name", SCALES)
def test_a_branch_that_is_scaled_otherwise_than_by_channel_has_a_plain_goal(name, first):
    """What its sum lost can't be put on its outputs then by a number a channel."""

    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.skip = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 5, 1))
            self.branch, self.last = nn.Conv2d(3, 5, 1), nn.Conv2d(5, 3, 1)

        def forward(self, x):
            return self.last(self.skip(x).sigmoid() + SCALES[name](self.branch(x), x))

    model, inputs = random_(Gated()).eval(), normal(200, 3, 2, 2)

    batches = [inputs[:first], inputs[first:]]
    cut, network, made, _ = repaired(model, {"skip.0": [0, 3, 5, 6]}, inputs, batches=batches)

    assert torch.equal(network.branch.weight, cut.branch.weight)  # what it gives is right already
    assert torch.equal(network.branch.bias, cut.branch.bias)
    assert "last" in [repair.layer for repair in made if repair.changed]


def test_a_sum_made_in_place_is_of_the_repaired_branch_whichever_way_the_model_goes_on():
    class InPlace(Sum):
        def forward(self, x):
            made = self.branch(x)
            made.add_(self.skip(x))  # and what it returns is not used
            return self.after(made)

    model, inputs = random_(InPlace()).eval(), normal(400, 6)

    _, network, made = damaged(model, inputs)
    _, plain, _ = damaged(random_(Sum()).eval(), inputs)

    assert made["branch.2"].changed
    assert torch.allclose(outputs(network, inputs), outputs(plain, inputs), atol=1e-5)


def test_the_goal_of_a_branch_is_found_by_hand():
    """One weight a side: what the skip side lost, 2 x, the branch takes on."""

    class Hand(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(1, 2, bias=False)
            self.second = nn.Linear(2, 1, bias=False)
            self.branch = nn.Linear(1, 1, bias=False)

        def forward(self, x):
            return self.second(functional.relu(self.first(x))) + 4 * self.branch(x)

    model, inputs = Hand().eval(), 1 + normal(100, 1).abs()
    with torch.no_grad():
        model.first.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        model.second.weight.copy_(torch.tensor([[3.0, 7.0]]))
        model.branch.weight.fill_(5)
    cut = apply(model, plan_of(model, inputs[:2], {"first": [1]}))
    assert torch.allclose(outputs(cut, inputs), outputs(model, inputs))  # relu(-x) is 0
    with torch.no_grad():
        cut.second.weight.fill_(1)  # an earlier cut that no layer before could make up for

    plan = plan_of(model, inputs[:2], {"first": [1]})
    reconstruct_(cut, model, plan, [inputs])

    assert torch.allclose(outputs(cut, inputs), outputs(model, inputs), atol=1e-3)
