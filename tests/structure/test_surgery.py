"""Cutting: the smaller network is the network it was cut from, its removed units unread."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flexrel import ModelError, UsageError
from flexrel.core import cost
from flexrel.structure import analyse, apply, resize_, verify
from flexrel.structure.surgery import mask_, shrink_
from networks import (
    PYTHON,
    Call,
    Several,
    attributes_are_true,
    batch,
    bits,
    images,
    macs_by_hooks,
    masked,
    networks,
    random_,
    random_plan,
    same_bits,
    wild_networks,
)

seeds = st.integers(0, 10**6)
few_examples = settings(max_examples=60, derandomize=True)


def structure_of(model):
    """Return what can be cut of the model, or None if nothing can."""
    try:
        return analyse(model, batch(images()), "channel")
    except ModelError as error:
        assert "can be pruned" in str(error)  # noqa: PT017 - other errors are bugs
        return None


def outputs(model, inputs):
    with torch.no_grad():
        return copy.deepcopy(model).eval()(inputs)


@few_examples
@given(model=networks(), seed=seeds)
def test_a_cut_network_computes_and_costs_what_its_plan_says(model, seed):
    graph = structure_of(model)
    if graph is None:
        return
    plan = random_plan(graph, seed)
    before = bits(model)

    cut = apply(model, plan)

    assert same_bits(bits(model), before)
    inputs = images(3, seed=1)
    assert torch.allclose(outputs(cut, inputs), outputs(masked(model, plan), inputs), atol=1e-9)
    assert cost.parameters(graph, plan.masks) == sum(p.numel() for p in cut.parameters())
    assert cost.macs(graph, plan.masks) == macs_by_hooks(cut, images())
    assert cost.macs(graph) == macs_by_hooks(model, images())
    attributes_are_true(cut)
    assert [m.training for m in cut.modules()] == [m.training for m in model.modules()]


@settings(few_examples, max_examples=25)
@given(model=networks(), seed=seeds)
def test_a_cut_network_trains_and_its_state_loads_into_another_cut_copy(model, seed):
    graph = structure_of(model)
    if graph is None:
        return
    plan = random_plan(graph, seed)
    cut, other = apply(model, plan), random_(apply(model, plan), seed=5)

    cut.eval()(images()).square().sum().backward()
    other.load_state_dict(cut.state_dict())

    for parameter in cut.parameters():
        assert parameter.requires_grad
        assert parameter.grad is None or parameter.grad.shape == parameter.shape
    assert any(p.grad is not None and bool(p.grad.any()) for p in cut.parameters())
    assert torch.equal(outputs(other, images()), outputs(cut, images()))
    assert all(parameter.grad is None for parameter in model.parameters())


@settings(few_examples, max_examples=100)
@given(model=wild_networks(), seed=seeds)
def test_what_can_not_be_followed_is_left_alone_and_the_rest_is_cut_rightly(model, seed):
    graph = structure_of(model)
    plan = random_plan(graph, seed)

    cut = apply(model, plan)

    inputs = images(2, seed=1)  # batch statistics and samples axes see the batch size
    assert torch.allclose(outputs(cut, inputs), outputs(masked(model, plan), inputs), atol=1e-9)
    assert not [p for p in graph.protected if "was tried and failed" in p.reason]


@pytest.mark.parametrize("name", sorted(PYTHON))
def test_what_python_does_with_sizes_is_found_by_trying_a_cut(name):
    model = random_(Several([name]).double())

    graph = analyse(model, batch(images()), "channel")

    failed = [p.name for p in graph.protected if "was tried and failed" in p.reason]
    assert failed == ["parts.0.1"]
    assert [group.name for group in graph.groups] == ["stem", "head"]
    plan = random_plan(graph, 1)
    verify(model, apply(model, plan), plan, batch(images()))


# --- by hand ------------------------------------------------------------------------------------


def two_layers():
    """1 input -> 3 hidden -> 1 output: y = sum over h of out[h] * relu(w[h] * x + b[h])."""
    model = nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [2.0], [3.0]]))
        model[0].bias.copy_(torch.tensor([0.1, 0.2, 0.3]))
        model[2].weight.copy_(torch.tensor([[10.0, 100.0, 1000.0]]))
        model[2].bias.fill_(0.5)
    return model


def plan_of(model, keep, inputs=None):
    inputs = torch.ones(2, 1) if inputs is None else inputs
    graph = analyse(model, batch(inputs), "channel")
    plan = random_plan(graph, 0)
    for name, mask in keep.items():
        plan.masks[name][:] = torch.tensor(mask)
    return plan


def test_a_removed_unit_takes_its_row_its_bias_and_its_column_along():
    model = two_layers()

    shrink_(model, plan_of(model, {"0": [True, False, True]}))

    assert model[0].weight.tolist() == [[1.0], [3.0]]
    assert model[0].bias.tolist() == pytest.approx([0.1, 0.3])
    assert model[2].weight.tolist() == [[10.0, 1000.0]]
    assert model[2].bias.tolist() == [0.5]


def test_masking_zeroes_the_same_entries_in_place():
    model = two_layers()

    mask_(model, plan_of(model, {"0": [True, False, True]}))

    assert model[0].weight.tolist() == [[1.0], [0.0], [3.0]]
    assert model[0].bias.tolist() == pytest.approx([0.1, 0.0, 0.3])
    assert model[2].weight.tolist() == [[10.0, 0.0, 1000.0]]


def test_masking_elements_zeroes_them_and_nothing_else():
    model = two_layers()
    graph = analyse(model, batch(torch.ones(2, 1)), "element")
    plan = random_plan(graph, 0)
    plan.masks["0"][:] = torch.tensor([[False], [True], [True]])
    plan.masks["2"][:] = torch.tensor([[True, True, False]])

    mask_(model, plan)

    assert model[0].weight.tolist() == [[0.0], [2.0], [3.0]]
    assert model[2].weight.tolist() == [[10.0, 100.0, 0.0]]
    assert model[0].bias.tolist() == pytest.approx([0.1, 0.2, 0.3])


def test_a_flattened_channel_takes_its_stripe_of_features_along():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(8, 1))  # 2 x 2 pixels
    with torch.no_grad():
        model[2].weight.copy_(torch.arange(8.0)[None])

    shrink_(model, plan_of(model, {"0": [False, True]}, torch.ones(2, 1, 2, 2)))

    assert model[2].weight.tolist() == [[4.0, 5.0, 6.0, 7.0]]
    assert model[2].in_features == 4


def test_a_depthwise_convolution_stays_one_group_a_channel():
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 1, 1))

    shrink_(model, plan_of(model, {"0": [True, False, True, True]}, torch.ones(2, 1, 5, 5)))

    assert (model[1].groups, model[1].in_channels, model[1].out_channels) == (3, 3, 3)
    assert model[1].weight.shape == (3, 1, 3, 3)


def test_frozen_parameters_stay_frozen_and_tied_ones_tied():
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
    model[2].weight = model[0].weight = nn.Parameter(torch.rand(4, 4))
    model[0].in_features = 4
    model[0].bias.requires_grad_(False)

    resize_(model, {"0.weight": torch.ones(3, 4), "0.bias": torch.ones(3)})

    assert model[0].weight is model[2].weight
    assert (model[2].out_features, model[2].in_features) == (3, 4)
    assert not model[0].bias.requires_grad
    assert model[0].weight.requires_grad


def test_a_tensor_of_other_axes_is_refused_and_nothing_is_changed():
    model = two_layers()
    before = bits(model)

    with pytest.raises(UsageError, match=r"2\.bias has 1 axes.*\(1, 1\)"):
        resize_(model, {"0.weight": torch.ones(2, 1), "2.bias": torch.ones(1, 1)})

    assert same_bits(bits(model), before)


def test_modules_of_a_cut_network_are_of_the_classes_they_were():
    model = two_layers()

    cut = apply(model, plan_of(model, {"0": [True, False, True]}))

    assert [type(m) for m in cut.modules()] == [type(m) for m in model.modules()]


# --- verify -------------------------------------------------------------------------------------


def test_a_wrong_cut_does_not_verify():
    model = two_layers()
    plan = plan_of(model, {"0": [True, False, True]})
    cut = apply(model, plan)
    verify(model, cut, plan, batch(torch.ones(2, 1)))

    with torch.no_grad():
        cut[2].weight[0, 0] += 0.025  # dense: 10 * 1.1 + 100 * 2.2 + 1000 * 3.3; share 7.8e-6 ...
    verify(model, cut, plan, batch(torch.ones(2, 1)))
    with torch.no_grad():
        cut[2].weight[0, 0] += 0.015  # ... and 1.2e-5

    with pytest.raises(ModelError, match=r"differ from the masked one's by a share of 1\.2"):
        verify(model, cut, plan, batch(torch.ones(2, 1)))


def test_a_cut_of_another_shape_does_not_verify():
    model = two_layers()
    plan = plan_of(model, {"0": [True, False, True]})
    wrong = nn.Sequential(nn.Linear(1, 2))

    with pytest.raises(ModelError, match=r"returns \[2, 2\], the masked one \[2, 1\]"):
        verify(model, wrong, plan, batch(torch.ones(2, 1)))


def test_outputs_in_dicts_and_tuples_are_verified_too():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = two_layers()

        def forward(self, x):
            return {"unused": None, "scores": (self.body(x),)}

    model = Named()
    plan = plan_of(model, {"body.0": [True, False, True]})
    cut = apply(model, plan)
    verify(model, cut, plan, batch(torch.ones(2, 1)))
    with torch.no_grad():
        cut.body[2].bias += 10

    with pytest.raises(ModelError, match="differ"):
        verify(model, cut, plan, batch(torch.ones(2, 1)))


def test_infinite_scores_that_agree_verify():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = two_layers()

        def forward(self, x):
            return torch.cat([self.body(x), torch.full_like(x, -torch.inf)], 1)

    model = Masked()
    plan = plan_of(model, {"body.0": [True, False, True]})

    verify(model, apply(model, plan), plan, batch(torch.ones(2, 1)))


def test_a_model_that_can_not_be_copied_is_a_model_error():
    model = two_layers()
    plan = plan_of(model, {"0": [True, False, True]})
    model.lock = torch.rand(2, requires_grad=True) * 2  # no leaf, so deepcopy refuses it

    with pytest.raises(ModelError, match="can't be copied"):
        apply(model, plan)


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
def test_a_wrong_cut_is_found_whatever_the_size_of_the_outputs(scale):
    """Dividing by the number of channels is right for no cut."""
    tail = nn.Linear(6, 2)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), Call(lambda x: x.mean((2, 3)) / x.shape[1]), tail
    )
    random_(model)
    with torch.no_grad():
        tail.weight.mul_(scale)
        tail.bias.zero_()

    with pytest.raises(ModelError, match="tried and failed"):
        analyse(model, batch(torch.randn(2, 1, 5, 5)), "channel")
