"""Layer-wise repair: what can be made up for is, in every kind of layer, and nothing else moves."""

import copy

import pytest
import torch
from torch import nn

import flexrel
from families import FAMILIES, family
from flexrel import Magnitude, Sparsity
from flexrel.repair import reconstruct_
from flexrel.structure import analyse, apply
from networks import batch, bits, random_, random_plan, same_bits
from repairs import KINDS, built, error, mlp, normal, outputs, plan_of, repaired


def test_a_channel_that_is_a_copy_of_another_is_made_up_for():
    model, inputs = mlp(), normal(300, 6)
    with torch.no_grad():
        model[0].weight[3], model[0].bias[3] = model[0].weight[5], model[0].bias[5]

    cut, network, made, refused = repaired(model, {"0": [3]}, inputs)

    assert error(cut, model, inputs) > 1e-2
    assert torch.allclose(outputs(network, inputs), outputs(model, inputs), atol=1e-4)
    fresh = normal(50, 6, seed=1)  # not only on what it was fitted to
    assert torch.allclose(outputs(network, fresh), outputs(model, fresh), atol=1e-4)
    assert not refused
    assert next(repair.layer for repair in made if repair.changed) == "2"


def test_a_channel_that_others_make_up_is_made_up_for_in_a_convolution():
    layers = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(45, 3)
    model, inputs = random_(nn.Sequential(*layers)).eval(), normal(60, 3, 8, 8)
    with torch.no_grad():
        layer = model[0]
        layer.weight[2] = 0.5 * layer.weight[0] - layer.weight[4]
        layer.bias[2] = 0.5 * layer.bias[0] - layer.bias[4]  # no constant: padding has none

    cut, network, *_ = repaired(model, {"0": [2]}, inputs)

    size = outputs(model, inputs).abs().max()
    assert error(cut, model, inputs) > 1e-2
    assert torch.allclose(outputs(network, inputs), outputs(model, inputs), atol=1e-4 * size)


@pytest.mark.parametrize("name", FAMILIES)
def test_where_nothing_was_removed_nothing_changes(name):
    model, inputs = family(name), normal(8, 3, 8, 8)
    plan = plan_of(model, inputs[:2])
    whole = apply(model, plan)
    before = bits(whole)

    made, _ = reconstruct_(whole, model, plan, [inputs])

    assert not any(repair.changed for repair in made)
    assert same_bits(bits(whole), before)


@pytest.mark.parametrize("name", FAMILIES)
def test_only_numbers_of_the_pruned_network_change(name):
    model, inputs = family(name), normal(8, 3, 8, 8)
    next(model.parameters()).requires_grad_(False)
    graph = analyse(model, batch(inputs[:2]), "channel")
    plan = random_plan(graph, 0)
    cut = apply(model, plan).train()
    model.train()
    dense, before, state = bits(model), bits(cut), torch.get_rng_state()

    reconstruct_(cut, model, plan, [inputs])

    assert same_bits(bits(model), dense)
    after = bits(cut)
    assert after[0].keys() == before[0].keys()
    assert [t.shape for t in after[0].values()] == [t.shape for t in before[0].values()]
    assert after[1:] == before[1:]
    assert torch.equal(torch.get_rng_state(), state)


# --- zeros stay zeros -----------------------------------------------------------------------------


@pytest.mark.parametrize("granularity", ["element", "2:4", "block:2x2"])
def test_zeros_stay_zeros(granularity):
    layers = nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.Flatten()
    model = random_(nn.Sequential(*layers, nn.Linear(128, 8), nn.ReLU(), nn.Linear(8, 3))).eval()
    inputs = normal(200, 4, 8, 8)
    done = {
        recover: flexrel.prune(
            model,
            calibration=[inputs],
            budgets=[Sparsity(0.5)],
            criterion=Magnitude(),
            granularity=granularity,
            recover=recover,
        )
        for recover in ("none", "closed-form")
    }
    cut, network = done["none"].model, done["closed-form"].model

    changed = 0
    for name, weight in cut.state_dict().items():
        now = network.state_dict()[name]
        if name.endswith("weight"):
            assert not now[weight == 0].any(), name
            assert not now[weight == 0].signbit().any(), name
            changed += not torch.equal(now, weight)
    assert sum(int((w == 0).sum()) for w in cut.state_dict().values()) > 400
    assert changed >= 2
    assert error(network, model, inputs) < 0.9 * error(cut, model, inputs)


# --- kinds of layers ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_layer_is_refitted(kind):
    model, shape, group, layer = built(kind)
    inputs = normal(300, *shape)

    cut, network, made, refused = repaired(model, {group: [0, 2, 3, 7]}, inputs)

    assert not refused
    assert layer in [repair.layer for repair in made if repair.changed]
    assert error(network, model, inputs) < 0.8 * error(cut, model, inputs)
    assert all(repair.after <= repair.before for repair in made)


@pytest.mark.parametrize("kind", KINDS)
def test_the_layer_behind_a_cut_gives_what_the_dense_one_gave(kind):
    """Its outputs, and not those of the network alone, as hooks see them."""
    model, shape, group, layer = built(kind)
    inputs = normal(300, *shape)

    cut, network, *_ = repaired(model, {group: [0, 2, 3, 7]}, inputs)

    seen = []
    behind = layer[:-1] + "1" if kind == "norm" else layer.removesuffix(".kernel")
    for one in (model, cut, network):
        twin = copy.deepcopy(one)
        twin.get_submodule(behind).register_forward_hook(lambda _, given, made: seen.append(made))
        outputs(twin, inputs)
    want, had, has = seen
    before, after = (float((one - want).square().mean()) for one in (had, has))
    assert after < 0.8 * before


def test_the_norm_behind_a_layer_without_bias_takes_its_shift():
    model, shape, group, _ = built("norm")
    inputs = normal(300, *shape)
    cut, network, *_ = repaired(model, {group: [0, 2, 3, 7]}, inputs)

    shift = outputs(network[:3], inputs) - outputs(model[:3], inputs)
    assert shift.mean((0, 2, 3)).abs().max() < 1e-4  # as if the layer had a bias
    assert network[2][0].bias is None
    assert not torch.equal(network[2][1].running_mean, cut[2][1].running_mean)
    for name in ("running_var", "weight", "bias"):
        assert torch.equal(getattr(network[2][1], name), getattr(cut[2][1], name))


@pytest.mark.parametrize("kind", KINDS)
def test_several_batches_of_different_size_are_as_good_as_one(kind):
    model, shape, group, _ = built(kind)
    inputs = normal(240, *shape)
    removed = {group: [0, 2, 3, 7]}

    _, whole, *_ = repaired(model, removed, inputs)
    parts = [inputs[:1], inputs[1:100], inputs[100:103], inputs[103:]]
    cut, network, *_ = repaired(model, removed, inputs, batches=parts)

    lost = error(cut, model, inputs) - error(whole, model, inputs)
    assert lost > 0
    assert error(network, model, inputs) < error(whole, model, inputs) + 0.1 * lost


@pytest.mark.parametrize("kind", sorted({*KINDS} - {"transposed weight", "attention"}))
def test_one_sample_is_too_few_to_hold_any_out_so_nothing_changes(kind):
    model, shape, group, _ = built(kind)
    inputs = normal(1, *shape)
    cut, network, made, _ = repaired(model, {group: [1]}, inputs)

    assert not any(repair.changed for repair in made)
    assert same_bits((bits(network)[0], *bits(cut)[1:]), bits(cut))


class Tokens(nn.Module):
    """Its second layer sees all tokens of all samples in one axis, or tokens first."""

    def __init__(self, first):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 8), nn.Linear(8, 7), nn.Linear(7, 3)
        self.tokens_first = first

    def forward(self, x):
        hidden = self.first(x).relu()
        hidden = hidden.transpose(0, 1) if self.tokens_first else hidden.flatten(0, 1)
        hidden = self.second(hidden).tanh()
        hidden = hidden.transpose(0, 1) if self.tokens_first else hidden.unflatten(0, x.shape[:2])
        return self.third(hidden)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(("samples", "changes"), [(3, False), (60, True)])
def test_tokens_of_a_sample_are_held_out_together(first, samples, changes):
    model = random_(Tokens(first)).eval()
    inputs = normal(samples, 9, 6)

    _, _, made, _ = repaired(model, {"first": [1, 4]}, inputs)

    assert any(repair.changed for repair in made) is changes


def test_batches_of_one_sample_each_are_fitted_together():
    model, inputs = mlp(), normal(60, 6)
    cut, network, *_ = repaired(model, {"0": [3]}, inputs, batches=[x[None] for x in inputs])

    assert error(network, model, inputs) < 0.5 * error(cut, model, inputs)


@pytest.mark.parametrize("kind", ["convolution", "norm", "tokens", "depthwise"])
def test_an_exported_program_is_repaired(kind):
    model, shape, _, _ = built(kind)
    inputs = normal(64, *shape)

    result = flexrel.prune(
        model,
        calibration=[inputs],
        budgets=[Sparsity(0.3)],
        criterion=Magnitude(),
        options=flexrel.PruneOptions(form="exported"),
    )

    step = result.recovery[0]
    assert step.kept
    assert step.after < step.before
