"""What tests of relevance share: networks that show what each element has, and comparisons."""

import math

import torch
from torch import nn

from flexrel import calibrate
from flexrel.relevance import RULES, Epsilon

EXACT = Epsilon(0.0)
LRP_RULES = [name for name in RULES if name != "gradient-input"]


def normal(*shape, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=draw, dtype=torch.float64)


def halves(*shape, seed=0):
    """Few distinct values, so that ties, zeros and sums of exactly 0 are common."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(-3, 4, shape, generator=draw).double() / 2


def fill(module, seed=0, numbers=normal):
    """Replace every parameter by numbers of a seed, and every running statistic too."""
    module.double().eval()
    with torch.no_grad():
        for at, (name, tensor) in enumerate([*module.named_parameters(), *module.named_buffers()]):
            if tensor.is_floating_point():
                values = numbers(*tensor.shape, seed=1000 * seed + at)
                tensor.copy_(values.abs() + 0.5 if name.endswith("running_var") else values)
    return module


def identity(size):
    layer = nn.Linear(size, size, bias=False).double()
    nn.init.eye_(layer.weight)
    return layer


def first_score(scores, _):
    return scores[:, 0]


class Probed(nn.Module):
    """An operation between layers that show what relevance each element of it has."""

    def __init__(self, operation, inputs, *, bias=False):
        super().__init__()
        self.operation = operation
        self.sources = nn.ModuleList(identity(x[0].numel()) for x in inputs)
        with torch.no_grad():
            size = operation(*(x.clone() for x in inputs))[0].numel()
        self.last = fill(nn.Linear(size, 2, bias=bias), 7)

    def forward(self, **inputs):
        sources = [
            source(x.flatten(1)).view_as(x)
            for source, x in zip(self.sources, inputs.values(), strict=True)
        ]
        return self.last(self.operation(*sources).flatten(1))


def relevance_through(operation, *inputs):
    """Return the operation's output of one sample, its relevance, and that of each input."""
    network = Probed(operation, inputs)
    named = {f"x{at}": x for at, x in enumerate(inputs)}
    stats = calibrate(network, [named], EXACT, first_score)
    with torch.no_grad():
        outputs = operation(*(x.clone() for x in inputs))
    received = stats["last"].input.view(outputs.shape[1:])
    torch.testing.assert_close(received, outputs[0] * network.last.weight[0].view(received.shape))
    layers = (stats.layers.get(f"sources.{at}") for at in range(len(inputs)))
    sent = [
        torch.zeros(x.shape[1:]).double() if layer is None else layer.output.view(x.shape[1:])
        for layer, x in zip(layers, inputs, strict=True)
    ]
    return outputs[0], received, sent


def close(found, expected, tolerance=1e-9, of=None):
    """Compare relative to the largest term `of` the sums that were expected: terms may cancel."""
    size = float((expected if of is None else of).abs().max())
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * size)


def same_stats(found, expected, names=None):
    assert list(found) == list(expected) or names
    for name in names or expected:
        close(found[name].input, expected[name].input)
        close(found[name].output, expected[name].output)
        close(found[name].input_absolute, expected[name].input_absolute)
        close(found[name].output_absolute, expected[name].output_absolute)


def but_for_its_constant(operation, outputs, x):
    """The share of an elementwise function's output that is not what it gives without an input."""
    constant = operation(torch.zeros_like(x))[0].detach()
    return torch.where(outputs == 0, 0, (outputs - constant) / outputs)


def gated_by_its_own_past(x, y):
    x = x.flip(1)
    gate = torch.sigmoid(x)
    x.add_(y)
    return x * gate


def gated_by_its_own_past_out_of_place(x, y):
    x = x.flip(1)
    return (x + y) * torch.sigmoid(x)


def written_out_attention(q, k, v, mask=0.0, scale=None):
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    return torch.softmax(q @ k.transpose(-2, -1) * scale + mask, dim=-1) @ v


LOWER = torch.ones(3, 3).tril().bool()


class Shown(nn.Module):
    """Hands its input on, as a layer whose output is the whole cut through the network."""

    def __init__(self, size):
        super().__init__()
        self.all = identity(size)

    def forward(self, x):
        return self.all(x.flatten(1)).view_as(x)


def assert_same(one, two, tolerance=1e-12):
    """The same layers have the same sums, to a share of each vector's largest value."""
    assert list(one) == list(two)
    assert one.samples == two.samples
    for name in one:
        for field in ("input", "output", "input_absolute", "output_absolute"):
            a, b = getattr(one[name], field), getattr(two[name], field)
            assert a.shape == b.shape
            assert (a - b).abs().max() <= tolerance * b.abs().max(), (name, field)


def classifier():
    return fill(
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 3, bias=False))
    )


IMAGES = normal(4, 1, 5, 5, seed=9)
