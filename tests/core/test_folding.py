"""Weights that are made of other parameters, but always the same: plain in all that we return."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils import prune as torch_prune

import flexrel_edge
from flexrel import ModelError, Sparsity, UsageError, apply, calibrate, prune
from flexrel.core.network import plain_network
from flexrel.core.running import fingerprint
from flexrel.io import load
from flexrel.pruning import pack


class Symmetric(nn.Module):
    """A parametrization as torch's own tutorial writes it."""

    def forward(self, weight):
        return weight.triu() + weight.triu(1).transpose(-1, -2)


class Jitter(nn.Module):
    """A parametrization that is another at each call, in evaluation mode too."""

    def forward(self, weight):
        return weight + torch.randn_like(weight)


def old(norm):
    def normed(layer, name="weight"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch deprecates these
            return norm(layer, name)

    return normed


def symmetric(layer):
    square = isinstance(layer, nn.Linear) and layer.in_features == layer.out_features
    return parametrize.register_parametrization(layer, "weight", Symmetric()) if square else layer


def unparametrized(layer):
    if parametrize.is_parametrized(layer):
        parametrize.remove_parametrizations(layer, "weight")


NORMS = {  # name -> what puts it on a layer, and what torch takes it off with
    "weight norm": (parametrizations.weight_norm, unparametrized),
    "spectral norm": (parametrizations.spectral_norm, unparametrized),
    "orthogonal": (parametrizations.orthogonal, unparametrized),
    "Symmetric": (symmetric, unparametrized),
    "old weight norm": (old(nn.utils.weight_norm), nn.utils.remove_weight_norm),
    "old spectral norm": (old(nn.utils.spectral_norm), nn.utils.remove_spectral_norm),
}
every = pytest.mark.parametrize("name", NORMS)


def plain():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 6, 2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 6),
        nn.ReLU(),
        nn.Linear(6, 6),
        nn.ReLU(),
        nn.Linear(6, 3),
    )


def layers(model):
    return [m for m in model if isinstance(m, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)]


def normed(name):
    """A network in train mode with the norm in every layer, after two steps."""
    model = plain()
    for layer in layers(model):
        NORMS[name][0](layer)
    model(images())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.25)
    model(images())  # keeps tensors that hang on a graph
    return model


def own_fold(name):
    """The same with the norms taken off by torch itself, in evaluation mode."""
    model = normed(name).eval()
    for layer in layers(model):
        NORMS[name][1](layer)
    model(images())
    return model.train()


def images(n=64):
    return torch.randn(n, 2, 5, 5, generator=torch.Generator().manual_seed(1))


def asked(granularity="channel"):
    return {
        "calibration": [images()],
        "budgets": [Sparsity(0.4)],
        "criterion": "magnitude",
        "granularity": granularity,
    }


def same(one, other):
    assert {*one.state_dict()} == {*other.state_dict()}
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)


@every
def test_norms_are_folded_as_torch_does_and_the_model_stays_as_it_was(name):
    model = normed(name)
    state, kinds = copy.deepcopy(model.state_dict()), [type(m) for m in model.modules()]

    found = plain_network(model)

    same(found.network, own_fold(name))
    assert [type(m) for m in found.network.modules()] == [type(m) for m in plain().modules()]
    assert all(m.training for m in found.network.modules())
    assert [type(m) for m in model.modules()] == kinds
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    (line,) = found.warnings
    count = 2 if name == "Symmetric" else 5
    assert f"{count} weights" in line
    assert name.removeprefix("old ").split()[0] in line
    twin = normed(name)
    torch.testing.assert_close(model(images()), twin(images()))  # trained on as if never seen


@every
@pytest.mark.parametrize("granularity", ["channel", "element"])
def test_a_network_of_norms_is_pruned_as_the_folded_one(name, granularity):
    model = normed(name)

    found, goal = prune(model, **asked(granularity)), prune(own_fold(name), **asked(granularity))

    assert found.form == "module"
    assert not found.plan.graph.protected or granularity == "channel"
    assert found.plan.removed == goal.plan.removed
    assert found.plan.graph.fingerprint == goal.plan.graph.fingerprint
    same(found.model, goal.model)
    assert any(str(2 if name == "Symmetric" else 5) + " weights" in w for w in found.warnings)
    again = apply(model, found.plan)
    assert {n: t.shape for n, t in again.state_dict().items()} == {
        n: t.shape for n, t in found.model.state_dict().items()
    }
    assert parametrize.is_parametrized(model[8]) or "old" in name
    result = apply(plain(), found.plan)  # the class as it is written takes the plan too
    assert fingerprint(result) == fingerprint(again)


@every
def test_what_was_packed_loads_into_the_network_with_and_without_norms(name, tmp_path):
    found = prune(normed(name), **asked())
    path = tmp_path / "m"
    path.write_bytes(found.packed)

    for into in (normed(name), plain()):
        loaded = load(path, into=into)
        assert loaded is into
        assert not any(parametrize.is_parametrized(m) for m in loaded.modules())
        same(loaded, found.model)
        with torch.no_grad():
            want = found.model.eval()(images())
            torch.testing.assert_close(loaded.eval()(images()), want)
            loaded.load_state_dict(found.model.state_dict())


@every
def test_a_file_that_does_not_fit_leaves_the_norms_where_they_are(name, tmp_path):
    model = normed(name)
    state, kinds = copy.deepcopy(model.state_dict()), [type(m) for m in model.modules()]
    pack(nn.Sequential(nn.Linear(3, 3)), tmp_path / "m")

    with pytest.raises(UsageError, match="does not fit the model"):
        load(tmp_path / "m", into=model)

    assert [type(m) for m in model.modules()] == kinds
    assert [*model.state_dict()] == [*state]
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    twin = normed(name)
    with torch.no_grad():
        next(twin.parameters()).add_(1.0)
    torch.testing.assert_close(model(images()), twin(images()))


@every
def test_pack_writes_plain_weights_and_stats_are_of_plain_layers(name, tmp_path):
    done = pack(normed(name), tmp_path / "m")

    goal = own_fold(name)
    assert set(flexrel_edge.read(tmp_path / "m")) == set(goal.state_dict())
    assert "weights" in done.warnings[0]
    stats = calibrate(normed(name), [images()])
    assert set(stats) == {"0", "2", "6", "8", "10"}
    twin = calibrate(goal, [images()])
    for layer in stats:
        torch.testing.assert_close(stats[layer].input, twin[layer].input, rtol=1e-4, atol=1e-6)


def test_masks_and_norms_in_one_network_and_in_one_layer():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = nn.Sequential(
            nn.utils.weight_norm(nn.Linear(8, 8)),
            parametrizations.weight_norm(nn.Linear(8, 8)),
            nn.Linear(8, 8),
            nn.Linear(8, 4),
        )
    torch_prune.l1_unstructured(model[0], "weight_v", 0.5)
    torch_prune.l1_unstructured(model[1].parametrizations.weight, "original1", 0.25)
    torch_prune.l1_unstructured(model[3], "weight", 0.5)
    x = torch.randn(5, 8)
    want = model(x).detach()

    found = plain_network(model)

    network = found.network
    assert [(n, (p == 0).sum().item()) for n, p in network.named_parameters() if "w" in n] == [
        ("0.weight", 32),
        ("1.weight", 16),
        ("2.weight", 0),
        ("3.weight", 16),
    ]
    torch.testing.assert_close(network(x), want)
    masks, norms = found.warnings
    assert "3 masks of torch.nn.utils.prune" in masks
    assert "2 weights" in norms
    assert "weight norm: 1.weight, 0.weight" in norms  # what is under a mask comes last


def test_weights_that_share_all_they_are_made_of_stay_one_tensor(tmp_path):
    model = nn.Sequential(*(parametrizations.weight_norm(nn.Linear(6, 6)) for _ in range(3)))
    for own, first in (
        (m.parametrizations.weight, model[0].parametrizations.weight) for m in model[1:]
    ):
        own.original1 = first.original1
    model[1].parametrizations.weight.original0 = model[0].parametrizations.weight.original0
    with torch.no_grad():
        first = model[0].parametrizations.weight.original0
        model[2].parametrizations.weight.original0.copy_(2 * first)

    network = plain_network(model).network

    assert network[0].weight is network[1].weight
    assert network[2].weight is not network[0].weight
    torch.testing.assert_close(network[2].weight, 2 * network[0].weight)
    pack(model, tmp_path / "m")
    assert "1.weight" not in flexrel_edge.read(tmp_path / "m")
    load(tmp_path / "m", into=model)
    assert model[0].weight is model[1].weight


def test_frozen_norms_stay_frozen_and_parametrized_buffers_stay_buffers():
    layer = nn.Linear(6, 6)
    layer.register_buffer("bias_scale", torch.rand(6, 6))
    parametrize.register_parametrization(layer, "bias_scale", Symmetric())
    parametrize.register_parametrization(layer, "weight", Symmetric())
    layer.requires_grad_(requires_grad=False)
    want = layer.bias_scale

    network = plain_network(nn.Sequential(layer)).network

    assert not network[0].weight.requires_grad
    assert torch.equal(network.get_buffer("0.bias_scale"), want)


def test_weights_that_are_others_at_each_call_are_left_and_named():
    model = plain()
    parametrize.register_parametrization(model[8], "weight", Jitter())
    parametrize.register_parametrization(model[6], "weight", Symmetric())

    found = plain_network(model)

    assert parametrize.is_parametrized(found.network[8])
    assert not parametrize.is_parametrized(found.network[6])
    assert any("8.weight" in w and "anew" in w for w in found.warnings)


def test_a_parametrization_that_makes_nan_or_fails_is_refused_in_one_line():
    zero = parametrizations.weight_norm(nn.Linear(4, 4))
    with torch.no_grad():
        zero.parametrizations.weight.original1[1] = 0

    with pytest.raises(ModelError, match=r"0\.weight has 4 NaN of 16 values"):
        plain_network(nn.Sequential(zero))

    class Fails(Symmetric):
        def forward(self, weight):
            raise RuntimeError("not today")

    layer = nn.Linear(4, 4)
    parametrize.register_parametrization(layer, "weight", Fails(), unsafe=True)
    with pytest.raises(ModelError, match=r"0\.weight can't be made by Fails: not today"):
        plain_network(nn.Sequential(layer))


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, old(nn.utils.weight_norm)])
def test_a_norm_in_a_recurrent_layer_is_folded_where_it_reads_its_weights(norm):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(3, 4, batch_first=True)

        def forward(self, x):
            return self.lstm(x)[0]

    torch.manual_seed(0)
    model = Net()
    layer = model.lstm
    norm(layer, "weight_hh_l0")
    with torch.no_grad():
        next(p for n, p in layer.named_parameters() if n.endswith(("original0", "_g"))).mul_(2)
    x = torch.randn(2, 5, 3)
    want = model.eval()(x)

    network = plain_network(model).network

    assert set(dict(network.named_parameters())) == set(
        dict(nn.ModuleDict({"lstm": nn.LSTM(3, 4)}).named_parameters())
    )
    torch.testing.assert_close(network(x), want)


def test_a_network_on_the_meta_device_loads_with_its_norms_in_place(tmp_path):
    found = prune(normed("weight norm"), **asked())
    (tmp_path / "m").write_bytes(found.packed)

    loaded = load(tmp_path / "m", into=normed("weight norm").to("meta"))

    same(loaded, found.model)
