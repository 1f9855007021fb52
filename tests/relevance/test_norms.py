"""Norms: of a batch, folded into the layer before, and those whose scale counts as a constant."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from flexrel import calibrate
from probes import close, fill, normal, relevance_through, same_stats
from reference import lrp

# ---- batch norm


def folded(layer, norm):
    """The layer with the norm multiplied into it, one output channel at a time."""
    made = type(layer)(**settings_of(layer)).double()
    with torch.no_grad():
        made.weight.copy_(layer.weight)
        for channel in range(norm.num_features):
            scale = norm.weight[channel] / math.sqrt(norm.running_var[channel] + norm.eps)
            bias = 0.0 if layer.bias is None else layer.bias[channel]
            made.bias[channel] = (bias - norm.running_mean[channel]) * scale + norm.bias[channel]
            if isinstance(layer, nn.ConvTranspose2d):
                group, row = divmod(channel, layer.weight.shape[1])
                inputs = layer.in_channels // layer.groups
                made.weight[group * inputs : (group + 1) * inputs, row] *= scale
            else:
                made.weight[channel] *= scale
    return made


def settings_of(layer):
    names = ["in_features", "out_features"]
    if not isinstance(layer, nn.Linear):
        names = [
            "in_channels",
            "out_channels",
            "kernel_size",
            "stride",
            "padding",
            "dilation",
            "groups",
        ]
    return {name: getattr(layer, name) for name in names}


LAYERS = {
    "linear": (lambda: nn.Linear(4, 4), nn.BatchNorm1d, (3, 4)),
    "linear, no bias": (lambda: nn.Linear(4, 4, bias=False), nn.BatchNorm1d, (3, 4)),
    "conv1d": (lambda: nn.Conv1d(2, 4, 3, padding=1), nn.BatchNorm1d, (3, 2, 5)),
    "conv2d": (lambda: nn.Conv2d(2, 4, 3, stride=2), nn.BatchNorm2d, (3, 2, 5, 5)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d, (3, 4, 4, 4)),
    "transposed": (
        lambda: nn.ConvTranspose2d(4, 4, 2, stride=2, groups=2, bias=False),
        nn.BatchNorm2d,
        (3, 4, 2, 2),
    ),
}


@pytest.mark.parametrize("rule", ["epsilon", "gamma", "zplus"])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_batch_norm_is_folded_into_the_layer_before_it(kind, rule):
    make, norm, shape = LAYERS[kind]
    layer, norm = fill(make(), 1), fill(norm(4), 2)
    x = normal(*shape, seed=3)
    last = fill(nn.Linear(layer(x)[0].numel(), 3), 4)
    ends = [nn.ReLU(), nn.Flatten(), last]

    found = calibrate(nn.Sequential(layer, norm, *ends), [x], rule)
    expected = calibrate(nn.Sequential(folded(layer, norm), nn.Identity(), *ends), [x], rule)

    same_stats(found, expected)


@pytest.mark.parametrize("change", ["relu_ through a view", "relu_"])
def test_a_batch_norm_is_folded_whatever_is_done_with_its_result(change):
    layer, norm = fill(nn.Conv1d(2, 4, 3), 1), fill(nn.BatchNorm1d(4), 2)
    last = fill(nn.Linear(12, 3), 4)

    class Network(nn.Module):
        def __init__(self, *parts):
            super().__init__()
            self.layer, self.norm, self.last = parts

        def forward(self, x):
            y = self.norm(self.layer(x))
            if change == "relu_ through a view":
                y[:, :2].relu_()
                return self.last(y.flatten(1))
            return self.last(y.relu_().flatten(1))

    found = calibrate(Network(layer, norm, last), [normal(2, 2, 5)], "gamma")
    expected = calibrate(
        Network(folded(layer, norm), nn.Identity(), last), [normal(2, 2, 5)], "gamma"
    )

    same_stats(found, expected)


def test_a_batch_norm_that_no_layer_precedes_shares_relevance_with_its_shift():
    norm = fill(nn.BatchNorm1d(4))
    x = normal(1, 4, 3, seed=1)
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()

    outputs, received, (sent,) = relevance_through(norm, x)

    close(sent, x[0] * scale[:, None].detach() / outputs * received)


@pytest.mark.parametrize("features", [4, 5])
def test_a_batch_norm_over_another_axis_than_the_layers_features_is_not_folded(features):
    layer, norm = fill(nn.Linear(3, features)), fill(nn.BatchNorm1d(4), 1)
    x = normal(1, 4, 3, seed=2)

    outputs, received, (sent,) = relevance_through(nn.Sequential(layer, norm), x)

    scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()
    between = layer(x)[0].detach()
    inner = between * scale[:, None] / outputs * received
    rows = zip(x[0], inner, strict=True)
    expected = [
        lrp.epsilon(row, layer.weight.detach().T, layer.bias.detach(), r) for row, r in rows
    ]
    close(sent, torch.stack(expected))


# ---- norms


def rms_written_out(x):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)


def rms_by_power(x):
    return x * (x.square().mean(-1, keepdim=True) + 1e-5) ** -0.5


def layer_norm_by_deviation(x):
    return (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, correction=0, keepdim=True) + 1e-5)


def layer_norm_by_squares(x):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()


def layer_norm_by_both(x):
    variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + 1e-5)


ONES, ZEROS = torch.ones(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
AFFINE = normal(4, seed=8), normal(4, seed=9)
ROW_NORMS = {
    "layer_norm": (fill(nn.LayerNorm(4), 1), True, *fill(nn.LayerNorm(4), 1).parameters()),
    "function": (lambda x: functional.layer_norm(x, (4,), *AFFINE), True, *AFFINE),
    "no weight": (lambda x: functional.layer_norm(x, [4]), True, ONES, ZEROS),
    "no bias": (nn.LayerNorm(4, bias=False).double(), True, ONES, ZEROS),
    "by deviation": (layer_norm_by_deviation, True, ONES, ZEROS),
    "by squares": (layer_norm_by_squares, True, ONES, ZEROS),
    "by both": (layer_norm_by_both, True, ONES, ZEROS),
    "rms_norm": (nn.RMSNorm(4, eps=1e-5).double(), False, ONES, ZEROS),
    "rms function": (
        lambda x: functional.rms_norm(x, (4,), AFFINE[0], 1e-5),
        False,
        AFFINE[0],
        ZEROS,
    ),
    "rms written out": (rms_written_out, False, ONES, ZEROS),
    "rms by power": (rms_by_power, False, ONES, ZEROS),
}


@pytest.mark.parametrize("kind", ROW_NORMS)
def test_a_norm_of_rows_holds_their_deviation_constant(kind):
    operation, centred, weight, bias = ROW_NORMS[kind]
    x = normal(1, 3, 4)

    _, received, (sent,) = relevance_through(operation, x)

    expected = [
        lrp.norm(row, r, weight.detach(), bias.detach(), 1e-5, centred=centred)
        for row, r in zip(x[0], received, strict=True)
    ]
    close(sent, torch.stack(expected))


def test_an_rms_norm_without_eps_takes_the_smallest_one():
    x = normal(1, 3, 4)

    _, received, (sent,) = relevance_through(nn.RMSNorm(4).double(), x)

    close(sent, received)


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_group_norm_holds_the_deviation_of_each_group_constant(groups, axes):
    norm = fill(nn.GroupNorm(groups, 4))
    x = normal(1, 4, *(3, 2)[:axes], seed=1)

    _, received, (sent,) = relevance_through(norm, x)

    close(sent, grouped(x[0], received, groups, norm))


def grouped(x, received, groups, norm):
    weight, bias = (
        torch.ones_like(x) * p.detach().view(-1, *[1] * (x.ndim - 1))
        for p in (norm.weight, norm.bias)
    )
    parts = [t.reshape(groups, -1) for t in (x, received, weight, bias)]
    sent = [lrp.norm(*rows, norm.eps, centred=True) for rows in zip(*parts, strict=True)]
    return torch.stack(sent).view_as(x)


def test_an_instance_norm_is_a_group_norm_of_each_channel():
    norm = fill(nn.InstanceNorm1d(4, affine=True))
    x = normal(1, 4, 3, seed=1)

    _, received, (sent,) = relevance_through(norm, x)

    close(sent, grouped(x[0], received, 4, norm))


def test_an_instance_norm_without_weights_conserves_relevance_by_channel():
    _, received, (sent,) = relevance_through(nn.InstanceNorm2d(3, eps=0), normal(1, 3, 2, 2))

    close(sent.sum((1, 2)), received.sum((1, 2)))


@pytest.mark.parametrize("order", [1.0, 2.0])
def test_normalising_sends_all_relevance_to_what_is_normalised(order):
    _, received, (sent,) = relevance_through(
        lambda x: functional.normalize(x, order, dim=2), normal(1, 3, 4)
    )

    close(sent, received)


def test_standardising_weights_of_a_sum_holds_them_constant():
    x = normal(1, 3, 4).abs()

    _, received, (sent,) = relevance_through(lambda x: x / x.sum(-1, keepdim=True), x)

    close(sent, received)
