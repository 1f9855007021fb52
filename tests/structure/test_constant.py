"""Units that never change go first and exactly: what they are goes into their readers' biases."""

import copy

import pytest
import torch
from torch import nn

from flexrel import FlexRel, Magnitude, Relevance, Sparsity, prune
from flexrel.core import cost
from flexrel.core.plan import Plan
from flexrel.criteria import scores_of
from flexrel.structure import analyse, apply, named_tensors, verify
from flexrel.structure.verify import disagreement
from networks import batch, bits, random_, same_bits

IMAGE = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def outputs(model, inputs):
    with torch.no_grad():
        return copy.deepcopy(model).eval()(inputs)


def constants(graph):
    """Return which units never change, by group, where there are any."""
    return {
        group.name: group.constant.nonzero().flatten().tolist()
        for group in graph.groups
        if group.constant is not None
    }


def without_constants(graph):
    masks = {
        group.name: torch.ones(group.shape, dtype=torch.bool)
        if group.constant is None
        else ~group.constant
        for group in graph.groups
    }
    return Plan(graph, masks)


def is_exact(model, inputs, constant):
    """Whether the units named are found, go, and leave the outputs as they were on new inputs."""
    graph = analyse(model, batch(inputs), "channel")
    assert constants(graph) == constant
    plan = without_constants(graph)
    before = bits(model)
    cut = apply(model, plan)
    verify(model, cut, plan, batch(inputs))
    assert same_bits(bits(model), before)
    assert cost.parameters(graph, plan.masks) == sum(p.numel() for p in cut.parameters())
    fresh = torch.randn(inputs.shape, generator=torch.Generator().manual_seed(9))
    want, have = outputs(model, fresh), outputs(cut, fresh)
    assert float((want - have).abs().max()) <= 1e-6 * float(want.abs().max())
    return cut


def test_by_hand():
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [0.0]]))
        model[0].bias.copy_(torch.tensor([0.0, 3.0]))
        model[2].weight.copy_(torch.tensor([[1.0, 2.0], [5.0, -1.0]]))

    graph = analyse(model, batch(torch.tensor([[1.0], [2.0]]).double()), "channel")
    cut = apply(model, without_constants(graph))

    assert constants(graph) == {"0": [1]}
    assert cut[2].weight.tolist() == [[1.0], [5.0]]
    assert cut[2].bias.tolist() == [3.0 * 2.0, 3.0 * -1.0]
    assert cut[2].bias.requires_grad
    assert cost.parameters(graph, without_constants(graph).masks) == 1 + 1 + 2 + 2


def test_a_reader_that_loses_outputs_of_its_own_keeps_the_right_ones_of_its_new_bias():
    model = nn.Sequential(
        nn.Linear(3, 4), nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 2)
    ).double()
    random_(model)
    with torch.no_grad():
        model[0].weight[2] = 0
    inputs = torch.randn(2, 3).double()
    graph = analyse(model, batch(inputs), "channel")
    masks = {s.name: torch.ones(s.shape, dtype=torch.bool) for s in graph.groups}
    masks["0"][2], masks["1"][1] = False, False
    plan = Plan(graph, masks)

    cut = apply(model, plan)

    shift = model[1].weight[:, 2] * model[0].bias[2]
    assert torch.equal(cut[1].bias, shift[[0, 2, 3]])
    verify(model, cut, plan, batch(inputs))
    assert cost.parameters(graph, plan.masks) == sum(p.numel() for p in cut.parameters())


def conv_net(padding, mode="zeros", *, between=None, groups=1, bias=True):
    """conv, batch norm, an activation, conv: channels 1 and 2 of the norm have weight 0."""
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6),
        between or nn.ReLU(),
        nn.Conv2d(6, 4, 3, padding=padding, padding_mode=mode, groups=groups, bias=bias),
        nn.ReLU(),
        nn.Flatten(),
        nn.LazyLinear(5),
    )
    model(IMAGE)
    random_(model)
    with torch.no_grad():
        model[1].weight[[1, 2]] = 0
        model[1].bias[[1, 2]] = torch.tensor([0.7, -0.7])  # a ReLU makes 0 of the second
    return model


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("padding", "mode", "found"),
    [
        (0, "zeros", [1, 2]),
        ("valid", "zeros", [1, 2]),
        (1, "zeros", [2]),  # the border of channel 1 is another number than the rest
        ("same", "zeros", [2]),
        (1, "reflect", [1, 2]),
    ],
)
def test_behind_a_norm_of_weight_0(padding, mode, found, bias):
    cut = is_exact(conv_net(padding, mode, bias=bias), IMAGE, {"0": found})

    assert cut[3].in_channels == 6 - len(found)


def test_a_channel_that_can_not_go_exactly_goes_as_any_other():
    model = conv_net(1)
    graph = analyse(model, batch(IMAGE), "channel")
    masks = {s.name: torch.ones(s.shape, dtype=torch.bool) for s in graph.groups}
    masks["0"][[1, 2, 4]] = False
    plan = Plan(graph, masks)

    verify(model, apply(model, plan), plan, batch(IMAGE))


def test_a_channel_that_is_silent_on_the_example_alone_is_not_constant():
    model = conv_net(0)
    with torch.no_grad():
        model[1].weight[4] = 1e-3
        model[1].bias[4] = -9.0  # never gets over 0 for the inputs at hand

    assert constants(analyse(model, batch(IMAGE), "channel")) == {"0": [1, 2]}


def test_a_filter_of_zeros_behind_pooling_of_all_kinds():
    pools = [
        nn.Hardswish(),
        nn.MaxPool2d(2),
        nn.Sigmoid(),
        nn.AvgPool2d(2),
        nn.Upsample(scale_factor=2),
    ]
    ends = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)]
    model = random_(nn.Sequential(nn.Conv2d(3, 6, 3), *pools, *ends))
    with torch.no_grad():
        model[0].weight[[3, 5]] = 0

    is_exact(model, torch.randn(2, 3, 12, 12), {"0": [3, 5]})


def test_linear_and_gelu_of_tokens():
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 3, bias=False))
    random_(model)
    with torch.no_grad():
        model[0].weight[[2, 5]] = 0

    cut = is_exact(model, torch.randn(2, 7, 4), {"0": [2, 5]})

    assert cut[2].bias is not None


def test_a_stripe_of_features_may_have_a_constant_for_each_position():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.Flatten(), nn.Linear(64, 5)
    )
    random_(model)
    with torch.no_grad():
        model[0].weight[1] = 0  # behind the padded depthwise layer its border differs

    is_exact(model, IMAGE, {"0": [1]})


class Residual(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        return x + self.body(x)


def test_a_stream_of_several_makers_and_readers():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1),
        Residual(nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4))),
        Residual(nn.Conv2d(4, 4, 1)),
        nn.ReLU(),
        nn.Conv2d(4, 2, 1, bias=False),
    )
    random_(model)
    with torch.no_grad():
        model[0].weight[[1, 2, 3]] = 0
        model[1].body[1].weight[[2, 3]] = 0  # its norm's; channel 1 goes on to change
        model[2].body.weight[3] = 0  # of channel 2 the last branch still makes something

    is_exact(model, IMAGE, {"0": [3]})


def test_groups_that_read_it():
    model = conv_net(0, groups=2)
    with torch.no_grad():
        model[1].weight[:] = 1
        model[1].weight[[1, 4]] = 0  # the second of each group of three
        model[1].bias[[1, 4]] = torch.tensor([0.3, 0.9])

    graph = analyse(model, batch(IMAGE), "channel")
    (group,) = [s for s in graph.groups if s.constant is not None]

    assert group.constant.tolist() == [False, True, False]
    is_exact(model, IMAGE, {group.name: [1]})


def test_a_depthwise_layer_of_zeros_makes_a_constant_of_what_another_made():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1),
        nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU6(inplace=True),
        nn.Conv2d(4, 5, 1),
    )
    random_(model)
    with torch.no_grad():
        model[1].weight[1] = 0
        model[2].weight[3] = 0

    is_exact(model, IMAGE, {"0": [1, 3]})


class _Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.gate, self.down = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.down(self.up(x) * torch.sigmoid(self.gate(x)))


def test_a_product_is_constant_if_both_sides_are():
    model = random_(_Gated())
    with torch.no_grad():
        model.up.weight[[1, 2]] = 0
        model.gate.weight[[2, 3]] = 0

    is_exact(model, torch.randn(2, 3), {"up": [2]})


class _Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return nn.functional.linear(self.one(x), self.two.weight)


def test_a_reader_without_its_module_has_no_bias_to_go_into():
    model = random_(_Functional())
    with torch.no_grad():
        model.one.weight[1] = 0

    assert constants(analyse(model, batch(torch.randn(2, 3)), "channel")) == {}


def test_a_tensor_overwritten_through_a_view_is_not_constant():
    class Overwritten(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.three = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            made = self.one(x)
            made.view(-1).add_(self.two(x).view(-1).clamp(min=100))  # 100 on the example
            return self.three(made)

    model = random_(Overwritten())
    with torch.no_grad():
        model.one.weight.zero_()

    assert constants(analyse(model, batch(torch.randn(2, 3)), "channel")) == {}


@pytest.mark.parametrize("criterion", [Magnitude(), Relevance(), FlexRel(0.5)])
def test_they_are_the_first_to_go_whatever_the_criterion_and_cost_no_accuracy(criterion):
    model = conv_net(0)
    with torch.no_grad():
        model[0].weight[[1, 2]] *= 100

    result = prune(
        model, calibration=[IMAGE], budgets=[Sparsity(0.2)], criterion=criterion, keep=["3"]
    )

    assert constants(result.plan.graph) == {"0": [1, 2]}
    assert result.plan.masks["0"].tolist() == [True, False, False, True, True, True]
    assert torch.allclose(outputs(model, IMAGE), outputs(result.model, IMAGE), rtol=1e-5)


def test_the_check_sees_a_constant_that_was_left_out():
    model = conv_net(0)
    graph = analyse(model, batch(IMAGE), "channel")
    plan = without_constants(graph)
    cut = apply(model, plan)
    with torch.no_grad():
        cut[3].bias.copy_(model[3].bias)

    assert "differ" in str(disagreement(model, cut, plan, batch(IMAGE)))
    assert scores_of(Magnitude(), graph, named_tensors(model), None)["0"][1] == -torch.inf
