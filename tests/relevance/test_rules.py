"""Every rule, through layers and between them, against slow twins, by hand, and conservation."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from flexrel import calibrate
from flexrel.errors import UsageError
from flexrel.relevance import (
    RULES,
    Affine,
    AttnLRP,
    ByDepth,
    ByName,
    Epsilon,
    Gamma,
    GradientInput,
    ZPlus,
    rule_of,
)
from reference import lrp, toeplitz

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")  # torch's, even kernels

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
    statistics = calibrate(network, [named], EXACT, first_score)
    with torch.no_grad():
        outputs = operation(*(x.clone() for x in inputs))
    received = statistics["last"].input.view(outputs.shape[1:])
    torch.testing.assert_close(received, outputs[0] * network.last.weight[0].view(received.shape))
    layers = (statistics.layers.get(f"sources.{at}") for at in range(len(inputs)))
    sent = [
        torch.zeros(x.shape[1:]).double() if layer is None else layer.output.view(x.shape[1:])
        for layer, x in zip(layers, inputs, strict=True)
    ]
    return outputs[0], received, sent


def close(found, expected, tolerance=1e-9, of=None):
    """Compare relative to the largest term `of` the sums that were expected: terms may cancel."""
    size = float((expected if of is None else of).abs().max())
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * size)


def same_statistics(found, expected, names=None):
    assert list(found) == list(expected) or names
    for name in names or expected:
        close(found[name].input, expected[name].input)
        close(found[name].output, expected[name].output)
        close(found[name].input_absolute, expected[name].input_absolute)
        close(found[name].output_absolute, expected[name].output_absolute)


# ---- layers


TWINS = {
    "epsilon 0": (Epsilon(0.0), lrp.epsilon),
    "epsilon": ("epsilon", lambda *args: lrp.epsilon(*args, eps=1e-6)),
    "epsilon 0.5": (Epsilon(0.5), lambda *args: lrp.epsilon(*args, eps=0.5)),
    "share": (Epsilon(0.0, share=0.25), lambda *args: lrp.epsilon(*args, share=0.25)),
    "gamma": ("gamma", lambda *args: lrp.gamma(*args, factor=0.25)),
    "gamma 2": (Gamma(2.0), lambda *args: lrp.gamma(*args, factor=2.0)),
    "zplus": ("zplus", lambda *args: lrp.zplus(*args, eps=1e-9)),
    "zplus 0": (ZPlus(0.0), lrp.zplus),
    "attnlrp": (AttnLRP(), lambda *args: lrp.epsilon(*args, eps=1e-6)),
}
PAIRS = [(rule, numbers) for rule in TWINS for numbers in (normal, halves)]


def agrees_with_the_twin(layer, x, rule):
    """The layer, and a layer after it, send relevance on as the rule's twin does."""
    rule, twin = TWINS[rule]
    network = Probed(layer, [x], bias=True)
    outputs = layer(x).detach()
    matrix, bias = lrp.dense(layer, x.shape[1:])
    top, top_bias = lrp.dense(network.last, (outputs[0].numel(),))
    made, sent = torch.zeros_like(outputs), torch.zeros_like(x)
    for at, (sample, output) in enumerate(zip(x.flatten(1), outputs.flatten(1), strict=True)):
        close(sample @ matrix + bias, output)
        scores = output @ top + top_bias
        started = torch.tensor([scores[0], 0.0], dtype=torch.float64)
        made[at] = twin(output, top, top_bias, started).view_as(made[at])
        sent[at] = twin(sample, matrix, bias, made[at].flatten()).view_as(sent[at])

    statistics = calibrate(network, [{"x": x}], rule, first_score)

    sums = statistics["operation"]
    summed = made.sum(0).flatten(1).sum(1) if made.ndim > 2 else made.sum(0)
    terms = torch.cat([made.flatten(), sent.flatten()])
    close(statistics["last"].input, made.sum(0).flatten(), of=terms)
    close(sums.output, summed, of=terms)
    close(statistics["sources.0"].output, sent.sum(0).flatten(), of=terms)
    close(sums.parameter_relevance(), lrp.weight_relevance(layer, sent, made), of=terms)


KINDS = {
    (1, False): nn.Conv1d,
    (2, False): nn.Conv2d,
    (1, True): nn.ConvTranspose1d,
    (2, True): nn.ConvTranspose2d,
}


@st.composite
def convolutions(draw, axes, numbers, *, transposed):
    """A convolution, and a size of its input that makes few outputs, but at least one."""

    def each(low, high):
        return tuple(draw(st.integers(low, high)) for _ in range(axes))

    groups = draw(st.integers(1, 2))
    channels = [groups * draw(st.integers(1, 2)) for _ in range(2)]
    kernel, stride, dilation = each(1, 3), each(1, 2), each(1, 2)
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    padding = tuple(draw(st.integers(0, min(2, (r - 1) // 2))) for r in reach)
    given = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    if transposed:
        most = [max(s, d) - 1 for s, d in zip(stride, dilation, strict=True)]
        given["output_padding"] = tuple(draw(st.integers(0, m)) for m in most)
    layer = KINDS[axes, transposed](*channels, kernel, bias=draw(st.booleans()), **given)
    least = [1 if transposed else max(1, r - 2 * p) for r, p in zip(reach, padding, strict=True)]
    size = [n + draw(st.integers(0, 1)) for n in least]
    seed = draw(st.integers(0, 999))
    x = numbers(2, channels[0], *size, seed=seed + 1)
    return fill(layer, seed, numbers), x


@settings(max_examples=20)
@given(
    st.sampled_from(PAIRS),
    st.integers(1, 4),
    st.integers(1, 3),
    st.booleans(),
    st.integers(0, 999),
)
def test_a_linear_layer_shares_relevance_as_the_rule_says(pair, width, units, bias, seed):
    rule, numbers = pair
    layer = fill(nn.Linear(width, units, bias=bias), seed, numbers)

    agrees_with_the_twin(layer, numbers(3, width, seed=seed + 1), rule)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("axes", [1, 2])
def test_a_convolution_shares_relevance_as_its_explicit_matrix(axes, transposed):
    @settings(max_examples=12)
    @given(st.data())
    def check(data):
        rule, numbers = data.draw(st.sampled_from(PAIRS))
        layer, x = data.draw(convolutions(axes, numbers, transposed=transposed))
        agrees_with_the_twin(layer, x, rule)

    check()


@pytest.mark.parametrize("rule", TWINS)
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_every_rule_goes_through_groups_strides_and_padding(kind, rule):
    layer = fill(kind(4, 4, (3, 2), stride=(2, 1), padding=(1, 0), groups=2))

    agrees_with_the_twin(layer, normal(1, 4, 3, 2, seed=1), rule)


@pytest.mark.parametrize("rule", ["gamma", "zplus"])
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_what_padding_copies_contributes_once_for_each_copy(mode, rule):
    layer = fill(nn.Conv1d(2, 3, 3, padding=2, padding_mode=mode))
    bare = nn.Conv1d(2, 3, 3)
    bare.weight, bare.bias = layer.weight, layer.bias
    x = normal(1, 2, 4, seed=1)
    sources = [toeplitz.source(at, 4, mode) for at in range(-2, 6)]
    padded = torch.stack([x[..., at] if at is not None else 0 * x[..., 0] for at in sources], -1)

    statistics = calibrate(Probed(layer, [x]), [{"x": x}], TWINS[rule][0], first_score)
    wide = calibrate(Probed(bare, [padded]), [{"x": padded}], TWINS[rule][0], first_score)

    copies = wide["sources.0"].output.view(2, 8)
    expected = torch.zeros(2, 4, dtype=torch.float64)
    for column, at in enumerate(sources):
        if at is not None:
            expected[:, at] += copies[:, column]
    close(statistics["sources.0"].output.view(2, 4), expected)


@pytest.mark.parametrize("rule", ["epsilon", "gamma", "zplus"])
def test_uneven_same_padding_shares_relevance_as_its_explicit_matrix(rule):
    layer = nn.Conv1d(2, 3, 4, padding="same")

    agrees_with_the_twin(fill(layer), normal(2, 2, 5, seed=1), rule)


@pytest.mark.parametrize(
    "rule",
    [
        Epsilon(0.0),
        "epsilon",
        Epsilon(0.0, share=0.25),
        "gamma",
        Gamma(0.0),
    ],
)
def test_an_output_of_exactly_zero_sends_nothing(rule):
    layer = nn.Linear(2, 1, bias=False).double()
    layer.weight = nn.Parameter(torch.tensor([[1.0, -1.0]], dtype=torch.float64))

    sums = calibrate(layer, [torch.ones(1, 2).double(), normal(1, 2)], rule, first_score)[""]

    close(
        sums.input_absolute, calibrate(layer, [normal(1, 2)], rule, first_score)[""].input_absolute
    )


@pytest.mark.parametrize("rule", ["zplus", ZPlus(0.0)])
def test_zplus_sends_nothing_from_an_output_that_nothing_raises(rule):
    layer = nn.Linear(2, 2, bias=False).double()
    layer.weight = nn.Parameter(torch.tensor([[-1.0, -2.0], [1.0, 1.0]], dtype=torch.float64))
    x = torch.tensor([[1.0, 3.0]], dtype=torch.float64)  # outputs -7 and 4

    sums = calibrate(layer, [x], rule, lambda scores, _: scores.sum(1))[""]

    close(sums.input, torch.tensor([1.0, 3.0], dtype=torch.float64))
    assert sums.output.tolist() == [-7, 4]


def test_gamma_by_hand():
    layer = nn.Linear(3, 1).double()
    layer.weight = nn.Parameter(torch.tensor([[1.0, 2.0, -1.0]], dtype=torch.float64))
    layer.bias = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    x = torch.tensor([[2.0, 1.0, 3.0]], dtype=torch.float64)  # contributions 2, 2, -3; z = 2

    sums = calibrate(layer, [x], Gamma(1.0), first_score)[""]

    # favoured: 4, 4, -3 and the bias 2: of a total of 7
    close(sums.input, torch.tensor([8.0, 8.0, -6.0], dtype=torch.float64) / 7)


def test_zplus_by_hand():
    layer = nn.Linear(3, 1).double()
    layer.weight = nn.Parameter(torch.tensor([[1.0, -2.0, -1.0]], dtype=torch.float64))
    layer.bias = nn.Parameter(torch.tensor([4.0], dtype=torch.float64))
    x = torch.tensor([[2.0, -1.0, 3.0]], dtype=torch.float64)  # contributions 2, 2, -3; z = 5

    sums = calibrate(layer, [x], ZPlus(0.0), first_score)[""]

    # positive: 2, 2 and the bias 4: of a total of 8
    close(sums.input, torch.tensor([10.0, 10.0, 0.0], dtype=torch.float64) / 8)


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

    same_statistics(found, expected)


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

    same_statistics(found, expected)


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


# ---- elementwise functions


def gelu_written_out(x):
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3))))


class Swish(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x)


ELEMENTWISE = {
    "relu": functional.relu,
    "relu method": torch.Tensor.relu,
    "relu6": functional.relu6,
    "gelu": functional.gelu,
    "gelu tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "silu": functional.silu,
    "mish": functional.mish,
    "hardswish": functional.hardswish,
    "hardsigmoid": functional.hardsigmoid,
    "hardtanh": functional.hardtanh,
    "leaky_relu": functional.leaky_relu,
    "prelu": fill(nn.PReLU()),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "elu": functional.elu,
    "selu": functional.selu,
    "celu": functional.celu,
    "softplus": functional.softplus,
    "softsign": functional.softsign,
    "tanhshrink": functional.tanhshrink,
    "clamp": lambda x: x.clamp(-0.5, 0.75),
    "clamp by name": lambda x: torch.clamp(input=x, min=-0.5),
    "exp": torch.exp,
    "square": torch.square,
    "power": lambda x: x**3,
    "abs": abs,
    "gelu written out": gelu_written_out,
    "gelu by erf": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    "swish": Swish(),
    "hardswish written out": lambda x: x * functional.relu6(x + 3) / 6,
    "hardswish in place": lambda x: x * functional.relu6(x + 3, inplace=True) / 6,
    "shifted and scaled": lambda x: 2 * torch.tanh(3 - x.sigmoid() / 2),
    "sum of two": lambda x: torch.tanh(x) + x,
    "product with itself": lambda x: x * x,
    "quotient by itself": lambda x: x / (1 + torch.exp(-x)),
    "dropout": functional.dropout,
}


def but_for_its_constant(operation, outputs, x):
    """The share of an elementwise function's output that is not what it gives without an input."""
    constant = operation(torch.zeros_like(x))[0].detach()
    return torch.where(outputs == 0, 0, (outputs - constant) / outputs)


@pytest.mark.parametrize("function", ELEMENTWISE)
def test_an_elementwise_function_passes_relevance_on_but_for_its_value_at_zero(function):
    operation = ELEMENTWISE[function]
    if function == "dropout":
        operation = nn.Dropout().eval()
    x = normal(1, 3, 4, seed=1)

    outputs, received, (sent,) = relevance_through(operation, x)

    assert outputs.abs().max() > 0
    close(sent, received * but_for_its_constant(operation, outputs, x))


@pytest.mark.parametrize("function", ["relu", "gelu", "tanh", "silu", "hardswish", "leaky_relu"])
def test_a_chain_of_elementwise_functions_may_be_cut_anywhere(function):
    def chain(x):
        return torch.tanh(ELEMENTWISE[function](x) * 2)

    _, received, (sent,) = relevance_through(chain, normal(1, 3, 4, seed=1))

    close(sent, received)


def test_a_constant_that_is_added_takes_its_part():
    for shift in (lambda x: x + 3, lambda x: 3 + x, lambda x: x.clone().add_(3.0)):
        outputs, received, (sent,) = relevance_through(shift, normal(1, 3, 4, seed=1))

        close(sent, received * (outputs - 3) / outputs)


def test_an_elementwise_function_of_zero_sends_nothing():
    x = torch.tensor([[0.0, 1.0, -1.0, 0.0]], dtype=torch.float64)

    for function in (torch.sigmoid, torch.exp, functional.gelu, functional.relu):
        outputs, received, (sent,) = relevance_through(function, x)

        assert torch.equal(sent == 0, (x[0] == 0) | (outputs == 0))
        close(sent, received * but_for_its_constant(function, outputs, x))


def tanh_of_a_part(x):
    x[:, :1].tanh_()
    return x


IN_PLACE = {
    "relu": (lambda x: functional.relu(x, inplace=True), functional.relu),
    "relu_": (torch.relu_, torch.relu),
    "relu6": (nn.ReLU6(inplace=True), nn.ReLU6()),
    "hardswish": (nn.Hardswish(inplace=True), nn.Hardswish()),
    "hardtanh": (nn.Hardtanh(inplace=True), nn.Hardtanh()),
    "silu": (nn.SiLU(inplace=True), nn.SiLU()),
    "elu": (nn.ELU(inplace=True), nn.ELU()),
    "leaky_relu": (nn.LeakyReLU(inplace=True), nn.LeakyReLU()),
    "sigmoid_": (torch.Tensor.sigmoid_, torch.sigmoid),
    "clamp_": (lambda x: x.clamp_(-0.5, 0.5), lambda x: x.clamp(-0.5, 0.5)),
    "pow_": (lambda x: x.pow_(3), lambda x: x.pow(3)),
    "a part": (tanh_of_a_part, lambda x: torch.cat([x[:, :1].tanh(), x[:, 1:]], 1)),
    "add_ a number": (lambda x: x.add_(1.0), lambda x: x + 1),
    "mul_ a number": (lambda x: x.mul_(3.0), lambda x: x * 3),
}


@pytest.mark.parametrize("function", IN_PLACE)
def test_an_operation_in_place_does_what_it_does_out_of_place(function):
    x = normal(1, 3, 4, seed=1)

    results = [relevance_through(lambda x, op=op: op(x * 1), x)[2][0] for op in IN_PLACE[function]]

    close(*results)


def test_a_chain_in_place_is_one_function():
    x = normal(1, 3, 4, seed=1)

    def chain(x):
        return (x * 1).sigmoid_().mul_(2).add_(1).tanh_()

    outputs, received, (sent,) = relevance_through(chain, x)

    close(sent, received * but_for_its_constant(chain, outputs, x))


class Overwriting(nn.Module):
    """A layer whose own output is overwritten, in one way or another."""

    def __init__(self, operation):
        super().__init__()
        self.layer, self.operation = fill(nn.Conv1d(3, 4, 1), 5), operation

    def forward(self, x):
        return self.operation(self.layer(x))


@pytest.mark.parametrize("function", IN_PLACE)
def test_a_layers_output_may_be_overwritten(function):
    x = normal(1, 3, 4, seed=1)
    found, expected = (
        calibrate(Probed(Overwriting(op), [x]), [{"x": x}], "gamma", first_score)
        for op in IN_PLACE[function]
    )

    same_statistics(found, expected)


def added(x, y):
    x = x * 1
    x += y
    return x


def multiplied(x, y):
    x = x * 1
    x *= y
    return x


def divided(x, y):
    x = x * 1
    x /= y
    return x


@pytest.mark.parametrize(
    ("in_place", "out_of_place"),
    [
        (added, lambda x, y: x + y),
        (multiplied, lambda x, y: x * y),
        (divided, lambda x, y: x / y),
        (lambda x, y: added(x, y).relu_(), lambda x, y: functional.relu(x + y)),
        (lambda x, y: multiplied(x, torch.sigmoid(y)), lambda x, y: x * torch.sigmoid(y)),
    ],
)
def test_two_tensors_in_place_share_relevance_as_out_of_place(in_place, out_of_place):
    inputs = normal(1, 3, 4, seed=1), normal(1, 3, 4, seed=2)

    found, expected = (relevance_through(op, *inputs)[2] for op in (in_place, out_of_place))

    for one, other in zip(found, expected, strict=True):
        close(one, other)


def gated_by_its_own_past(x, y):
    x = x.flip(1)
    gate = torch.sigmoid(x)
    x.add_(y)
    return x * gate


def gated_by_its_own_past_out_of_place(x, y):
    x = x.flip(1)
    return (x + y) * torch.sigmoid(x)


def silu_after_overwriting(x, y):
    z = x * 2
    z[:, 0] = y[:, 0]
    return functional.silu(z)


def silu_after_joining(x, y):
    z = x * 2
    return functional.silu(torch.cat([y[:, :1], z[:, 1:]], 1))


def silu_after_masking(x, y):
    z = x * 2
    z.masked_fill_(y > 0, 2.0)
    return functional.silu(z)


def silu_of_a_choice(x, y):
    return functional.silu(torch.where(y > 0, 2.0, x * 2))


@pytest.mark.parametrize(
    ("in_place", "out_of_place"),
    [
        (gated_by_its_own_past, gated_by_its_own_past_out_of_place),
        (silu_after_overwriting, silu_after_joining),
        (silu_after_masking, silu_of_a_choice),
    ],
)
def test_a_tensor_that_was_overwritten_is_no_longer_a_function_of_what_it_was(
    in_place, out_of_place
):
    inputs = normal(1, 3, 4, seed=1), normal(1, 3, 4, seed=2)

    found, expected = (relevance_through(op, *inputs)[2] for op in (in_place, out_of_place))

    for one, other in zip(found, expected, strict=True):
        close(one, other)


# ---- sums, products, quotients, softmax, attention


def test_a_sum_sends_each_summand_its_part():
    x, y = normal(1, 3, 4, seed=1), normal(1, 3, 4, seed=2)

    _, received, sent = relevance_through(torch.add, x, y)

    for found, expected in zip(sent, lrp.addition(x[0], y[0], received), strict=True):
        close(found, expected)


@pytest.mark.parametrize(
    "operation",
    [
        lambda x, y: torch.cat([x, y], 1),
        lambda x, y: torch.cat([*torch.cat([x, y], 1).split([1, 2, 3], 1)], 1),
        lambda x, y: torch.cat([*torch.cat([x, y], 1).chunk(3, 1)], 1),
        lambda x, y: torch.stack([*x.unbind(1), *y.unbind(1)], 1),
        lambda x, y: functional.pad(torch.cat([x, y], 1), (0, 0, 0, 0)),
    ],
)
def test_joining_and_cutting_move_relevance_with_its_values(operation):
    x, y = normal(1, 3, 4, seed=1), normal(1, 3, 4, seed=2)

    _, received, sent = relevance_through(operation, x, y)

    close(torch.cat(sent), received)


def test_a_slice_sends_relevance_to_what_it_reads():
    _, received, (sent,) = relevance_through(lambda x: x[:, ::2, 1:], normal(1, 3, 4))

    close(sent[::2, 1:], received)
    assert not sent[1].any()
    assert not sent[:, 0].any()


def test_padding_takes_no_relevance():
    _, received, (sent,) = relevance_through(lambda x: functional.pad(x, (1, 2)), normal(1, 3, 4))

    close(sent, received[:, 1:5])


@pytest.mark.parametrize("operation", [torch.mul, lambda x, y: torch.mul(input=x, other=y)])
def test_a_product_shares_relevance_equally(operation):
    _, received, sent = relevance_through(operation, normal(1, 3, 4, seed=1), normal(1, 3, 4))

    close(sent[0], received / 2)
    close(sent[1], received / 2)


@pytest.mark.parametrize("gate", [torch.sigmoid, functional.hardsigmoid])
def test_a_gate_of_channels_has_half_of_the_relevance(gate):
    def excite(x, y):
        return x * gate(y).unsqueeze(2)

    y = normal(1, 3, seed=2)
    _, received, (values, gates) = relevance_through(excite, normal(1, 3, 4, seed=1), y)

    close(values, received / 2)
    close(gates, received.sum(1) / 2 * but_for_its_constant(gate, gate(y)[0], y))


def test_a_product_with_a_constant_sends_all_to_the_other_factor():
    mask = normal(3, 4, seed=3)

    _, received, (sent,) = relevance_through(lambda x: torch.tanh(x) * mask, normal(1, 3, 4))

    close(sent, received)


def test_a_quotient_sends_all_relevance_to_the_numerator():
    x, y = normal(1, 3, 4, seed=1), normal(1, 3, 4, seed=2)

    for operation in (torch.div, lambda x, y: x / y, lambda x, y: x * y.reciprocal()):
        _, received, (numerator, denominator) = relevance_through(
            lambda x, y, op=operation: op(x, y) + 0 * y, x, y
        )

        close(numerator, received)
        assert not denominator.any()


@pytest.mark.parametrize(
    "operation",
    [
        functional.glu,
        lambda x: functional.glu(x, dim=-1),
        nn.GLU(),
    ],
)
def test_a_gated_linear_unit_is_a_product(operation):
    x = normal(1, 3, 4)
    _, received, (sent,) = relevance_through(operation, x)

    gate = x[:, :, 2:]
    share = but_for_its_constant(torch.sigmoid, torch.sigmoid(gate)[0], gate)
    close(sent, torch.cat([received, received * share], 1) / 2)


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: functional.softmax(x, dim=2),
        lambda x: x.softmax(-1),
        nn.Softmax(2),
    ],
)
def test_a_softmax_sends_relevance_by_its_expansion(operation):
    x = normal(1, 3, 4)

    _, received, (sent,) = relevance_through(operation, x)

    close(sent, torch.stack([lrp.softmax(*row) for row in zip(x[0], received, strict=True)]))


@pytest.mark.parametrize(
    "operation",
    [
        torch.bmm,
        torch.matmul,
        lambda x, y: x @ y,
        lambda x, y: torch.matmul(input=x, other=y),
        lambda x, y: torch.einsum("bij,bjk->bik", x, y),
        lambda x, y: torch.einsum("bij,bjk->bik", [x, y]),
        lambda x, y: torch.tensordot(x[0], y[0], 1)[None],
        lambda x, y: torch.mm(x[0], y[0])[None],
        lambda x, y: functional.linear(x[0], y[0].T)[None],
        lambda x, y: torch.baddbmm(torch.zeros(1, 1, 1, dtype=x.dtype), x, y),
        lambda x, y: torch.addmm(torch.zeros(2, dtype=x.dtype), x[0], y[0])[None],
    ],
)
def test_a_product_of_matrices_shares_relevance_equally(operation):
    x, y = normal(1, 3, 4, seed=1), normal(1, 4, 2, seed=2)

    _, received, sent = relevance_through(operation, x, y)

    for found, expected in zip(sent, lrp.matmul(x[0], y[0], received), strict=True):
        close(found, expected)


def test_a_product_of_three_shares_relevance_in_three():
    inputs = [normal(1, 4, seed=seed) for seed in range(3)]

    _, received, sent = relevance_through(
        lambda x, y, z: torch.einsum("bi,bi,bi->bi", x, y, z), *inputs
    )

    for found in sent:
        close(found, received / 3)


def written_out_attention(q, k, v, mask=0.0, scale=None):
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    return torch.softmax(q @ k.transpose(-2, -1) * scale + mask, dim=-1) @ v


LOWER = torch.ones(3, 3).tril().bool()
BIAS = torch.linspace(-1, 1, 9, dtype=torch.float64).view(3, 3)
ATTENTIONS = {
    "plain": ((), {}, 0.0, None),
    "bias": ((BIAS,), {}, BIAS, None),
    "bias by name": ((), {"attn_mask": BIAS}, BIAS, None),
    "mask": ((), {"attn_mask": LOWER}, torch.where(LOWER, 0.0, -math.inf), None),
    "causal": ((), {"is_causal": True}, torch.where(LOWER, 0.0, -math.inf), None),
    "all by position": ((BIAS, 0.0, False), {}, BIAS, None),
    "bias and scale": ((BIAS,), {"scale": 0.3}, BIAS, 0.3),
    "scale": ((), {"scale": 0.3}, 0.0, 0.3),
}


@pytest.mark.parametrize("kind", ATTENTIONS)
def test_attention_in_one_call_is_attention_written_out(kind):
    args, kwargs, mask, scale = ATTENTIONS[kind]
    inputs = [normal(1, 2, 3, 4, seed=seed) for seed in range(3)]

    found, expected = (
        relevance_through(operation, *inputs)
        for operation in (
            lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, *args, **kwargs),
            lambda q, k, v: written_out_attention(q, k, v, mask, scale),
        )
    )

    close(found[0], expected[0])
    for one, other in zip(found[2], expected[2], strict=True):
        close(one, other)


@pytest.mark.parametrize("mask", [torch.zeros(3, 3), BIAS])
def test_attention_shares_relevance_as_its_parts_do(mask):
    inputs = [normal(1, 1, 3, 4, seed=seed) for seed in range(3)]

    _, received, sent = relevance_through(
        lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, mask.double()), *inputs
    )

    expected = lrp.attention(*(x[0, 0] for x in inputs), mask.double(), received[0])
    for found, slow in zip(sent, expected, strict=True):
        close(found[0], slow)


def test_attention_of_a_tensor_to_itself_is_attention_written_out():
    x = normal(1, 1, 3, 4)

    found, expected = (
        relevance_through(lambda x, op=op: op(x, x, x), x)[2][0]
        for op in (functional.scaled_dot_product_attention, written_out_attention)
    )

    close(found, expected)


@pytest.mark.parametrize("active", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)])
def test_what_of_attention_is_constant_gets_nothing(active):
    inputs = [normal(1, 1, 3, 4, seed=seed) for seed in range(3)]

    def of_some(op, *given):
        parts = list(inputs)
        for at, value in zip(active, given, strict=True):
            parts[at] = value
        return op(*parts)

    found, expected = (
        relevance_through(lambda *given, op=op: of_some(op, *given), *(inputs[at] for at in active))
        for op in (functional.scaled_dot_product_attention, written_out_attention)
    )

    for one, other in zip(found[2], expected[2], strict=True):
        close(one, other)


def test_a_mask_made_of_an_input_gets_the_relevance_that_it_gets_written_out():
    inputs = [normal(1, 1, 3, n, seed=seed) for seed, n in enumerate((4, 4, 4, 3))]

    found, expected = (
        relevance_through(op, *inputs)
        for op in (functional.scaled_dot_product_attention, written_out_attention)
    )

    for one, other in zip(found[2], expected[2], strict=True):
        close(one, other)


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


# ---- pooling


@pytest.mark.parametrize("numbers", [normal, halves])
def test_the_winner_of_max_pooling_takes_all(numbers):
    x = numbers(1, 2, 6)

    for operation in (nn.MaxPool1d(2), nn.AdaptiveMaxPool1d(3)):
        _, received, (sent,) = relevance_through(operation, x)

        expected = [lrp.max_pool(*row, 2) for row in zip(x[0], received, strict=True)]
        close(sent, torch.stack(expected))


@pytest.mark.parametrize(
    "operation",
    [nn.AvgPool1d(2), nn.AdaptiveAvgPool1d(3), lambda x: x.unflatten(2, (3, 2)).mean(3)],
)
def test_average_pooling_shares_relevance_in_proportion(operation):
    x = normal(1, 2, 6)

    _, received, (sent,) = relevance_through(operation, x)

    expected = [lrp.average_pool(*row, 2) for row in zip(x[0], received, strict=True)]
    close(sent, torch.stack(expected))


@pytest.mark.parametrize("operation", [nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1)])
def test_pooling_conserves_relevance(operation):
    _, received, (sent,) = relevance_through(operation, normal(1, 2, 4, 4))

    close(sent.sum((1, 2)), received.sum((1, 2)))


# ---- conservation


class Residual(nn.Module):
    def __init__(self, *branch):
        super().__init__()
        self.branch = nn.Sequential(*branch)

    def forward(self, x):
        return x + self.branch(x)


class Joined(nn.Module):
    def __init__(self, *branches):
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x):
        return torch.cat([branch(x) for branch in self.branches], 1)


class Shown(nn.Module):
    """Hands its input on, as a layer whose output is the whole cut through the network."""

    def __init__(self, size):
        super().__init__()
        self.all = identity(size)

    def forward(self, x):
        return self.all(x.flatten(1)).view_as(x)


BLOCKS = {
    "conv": lambda: [nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.ReLU()],
    "strided": lambda: [nn.Conv2d(4, 4, 2, stride=2, padding=1, bias=False), nn.ReLU()],
    "depthwise": lambda: [nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False), nn.ReLU6()],
    "transposed": lambda: [nn.ConvTranspose2d(4, 4, 2, groups=2, bias=False), nn.ReLU()],
    "residual": lambda: [Residual(nn.Conv2d(4, 4, 1, bias=False), nn.ReLU())],
    "joined": lambda: [
        Joined(*(nn.Sequential(nn.Conv2d(4, 2, 1, bias=False), nn.ReLU()) for _ in range(2)))
    ],
    "max": lambda: [nn.MaxPool2d(2, stride=1)],
    "average": lambda: [nn.AvgPool2d(2, stride=1, padding=1)],
    "curved": lambda: [nn.Conv2d(4, 4, 1, bias=False), nn.GELU()],
}
STRAIGHT = [name for name in BLOCKS if name not in {"depthwise", "curved"}]  # ReLU or linear
CONSERVING = [Epsilon(0.0), Gamma(), Gamma(3.0), ZPlus(0.0), ZPlus()]
LAWS = [  # z⁺ loses what comes to an output that nothing raises; a ReLU lets none come
    (rule, [*BLOCKS] if not isinstance(rule, ZPlus) else STRAIGHT) for rule in CONSERVING
]


def network_of(blocks, seed, *, last="linear"):
    """A network without biases, the cuts between its blocks shown, and its input."""
    x = normal(2, 4, 4, 4, seed=seed).abs()
    parts, shown = [], x
    for name in blocks:
        block = fill(nn.Sequential(*BLOCKS[name]()), seed := seed + 1)
        with torch.no_grad():
            shown = block(shown)
        parts += [block, Shown(shown[0].numel())]
    head = fill(nn.Linear(shown[0].numel(), 6, bias=False), seed + 1)
    return nn.Sequential(Shown(64), *parts, nn.Flatten(), head), x


def blocks_of(names):
    return st.lists(st.sampled_from(names), min_size=1, max_size=3)


@settings(max_examples=20)
@given(st.data(), st.integers(0, 999))
def test_every_cut_through_a_network_without_biases_has_the_outputs_relevance(data, seed):
    rule, names = data.draw(st.sampled_from(LAWS))
    blocks = data.draw(blocks_of(names))
    network, x = network_of(blocks, seed)
    assume(bool(network(x).any()))  # not all of it is dead
    started = network(x).amax(1).sum().detach()

    statistics = calibrate(network, [x], {"*.all": Epsilon(0.0), "*": rule}, "predicted")

    cuts = [layer for name, layer in statistics.items() if name.endswith(".all")]
    assert len(cuts) == len(blocks) + 1
    for layer in cuts:
        handled = max(layer.output_absolute.sum(), started.abs())
        assert abs(layer.output.sum() - started) <= 1e-6 * handled


@settings(max_examples=8)
@given(blocks_of(STRAIGHT), st.integers(0, 999))
def test_epsilon_0_is_gradient_times_input_in_relu_networks_without_biases(blocks, seed):
    network, x = network_of(blocks, seed)
    assume(bool(network(x).any()))  # not all of it is dead

    same_statistics(calibrate(network, [x], Epsilon(0.0)), calibrate(network, [x]))


@settings(max_examples=6)
@given(blocks_of([*BLOCKS]), st.integers(0, 999))
def test_gamma_0_is_epsilon_0(blocks, seed):
    network, x = network_of(blocks, seed)
    assume(bool(network(x).any()))  # not all of it is dead

    same_statistics(calibrate(network, [x], Gamma(0.0)), calibrate(network, [x], Epsilon(0.0)))


@pytest.mark.parametrize("block", [name for name in STRAIGHT if name != "average"])
def test_a_large_gamma_comes_near_zplus_where_inputs_are_not_negative(block):
    network, x = network_of([block], 1)
    network.append(nn.ReLU())
    rules = [{"*.all": Epsilon(0.0), "*": rule} for rule in (Gamma(1e9), ZPlus(0.0))]

    found, expected = (calibrate(network, [x], rule, "predicted") for rule in rules)

    for name, layer in expected.items():
        close(found[name].input, layer.input, 1e-6)


# ---- which rule a layer takes


class Recorded:
    """A rule of the user's own: plain gradients, and a list of what it was called with."""

    name = "recorded"

    def __init__(self):
        self.calls = []

    def __call__(self, layer, inputs, outputs, gradient):
        self.calls.append((layer, inputs.clone(), outputs.clone(), gradient.clone()))
        return layer.backward(gradient, layer.weight, inputs)


def three_layers(seed=0, *, bias=True):
    parts = [fill(nn.Linear(3, 3, bias=bias), seed + at) for at in range(3)]
    return nn.Sequential(parts[0], nn.Tanh(), parts[1], nn.Tanh(), parts[2])


def test_a_users_rule_is_called_with_each_layers_inputs_outputs_and_gradient():
    network, rule = three_layers(), Recorded()
    x = normal(2, 3)

    statistics = calibrate(network, [x], rule, first_score)

    assert statistics.rule == "recorded"
    assert [call[0].name for call in rule.calls] == ["4", "2", "0"]
    values = x
    for name, (layer, inputs, outputs, gradient) in zip("024", rule.calls[::-1], strict=True):
        part = network[int(name)]
        assert isinstance(layer, Affine)
        assert (layer.geometry, layer.groups) == (None, 1)
        assert torch.equal(layer.weight, part.weight)
        assert torch.equal(layer.bias, part.bias)
        close(inputs, values)
        close(outputs, part(values).detach())
        close((outputs * gradient).sum(0), statistics[name].output)
        close(layer.forward(inputs, layer.weight, layer.bias), outputs)
        values = torch.tanh(outputs)
    assert rule.calls[0][3].tolist() == [[1, 0, 0]] * 2


def test_a_users_rule_decides_what_an_input_gets():
    class Half(Recorded):
        def __call__(self, layer, inputs, outputs, gradient):
            return super().__call__(layer, inputs, outputs, gradient) / 2

    network = nn.Sequential(fill(nn.Linear(3, 3)), fill(nn.Linear(3, 2), 1))
    x = normal(2, 3)

    found = calibrate(network, [x], Half(), first_score)
    expected = calibrate(network, [x], "gradient-input", first_score)

    close(found["1"].input, expected["1"].input / 2)
    close(found["0"].input, expected["0"].input / 4)


def test_a_convolution_tells_a_rule_its_geometry():
    layer = fill(nn.ConvTranspose1d(4, 2, 3, stride=2, padding=1, output_padding=1, groups=2))
    rule = Recorded()

    calibrate(layer, [normal(2, 4, 3)], rule)

    geometry = rule.calls[0][0].geometry
    assert (geometry.stride, geometry.padding, geometry.dilation) == ((2,), ((1, 1),), (1,))
    assert (geometry.output_padding, geometry.transposed, geometry.groups) == ((1,), True, 2)


def test_a_layer_takes_the_rule_of_the_first_pattern_that_fits():
    one, two, rest = Recorded(), Recorded(), Recorded()
    rule = ByName((("0", one), ("[02]", two)), rest)

    calibrate(three_layers(), [normal(2, 3)], rule)

    assert [[layer.name for layer, *_ in r.calls] for r in (one, two, rest)] == [
        ["0"],
        ["2"],
        ["4"],
    ]


def test_a_mapping_of_patterns_is_a_rule_by_name_with_epsilon_for_the_rest():
    network, x = three_layers(), normal(2, 3)
    mapping = {"0": "zplus", "2": Gamma(2.0)}
    by_name = ByName((("0", RULES["zplus"]), ("2", Gamma(2.0))), RULES["epsilon"])

    found, expected = (calibrate(network, [x], rule) for rule in (mapping, by_name))

    same_statistics(found, expected)
    assert rule_of(mapping) == by_name
    assert found.rule == expected.rule == by_name.name
    assert all(rule in found.rule for rule in ("0: zplus", "2: gamma(2)", "epsilon"))


def test_patterns_decide_by_layer_what_each_rule_alone_does_there():
    network, x = three_layers(), normal(2, 3)

    mixed = calibrate(network, [x], {"4": "zplus", "*": "gamma"})
    top = calibrate(network, [x], "zplus")

    close(mixed["4"].input, top["4"].input)
    with pytest.raises(AssertionError):
        close(mixed["2"].input, top["2"].input)


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ("sigma", "'sigma' is not known; there are: gradient-input, epsilon"),
        ({"0": "sigma"}, "'sigma' is not known"),
        ({"0": {"0": "gamma"}}, "one rule, not a mapping"),
        (0.25, "but is a float"),
        ({"layer4.*": "gamma"}, "no layer fits the pattern 'layer4.\\*'"),
    ],
)
def test_what_is_no_rule_is_refused(rule, told, unchecked):
    with pytest.raises(UsageError, match=told):
        calibrate(three_layers(), [normal(2, 3)], rule)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Epsilon(-1.0),
        lambda: Epsilon(share=math.nan),
        lambda: Gamma(-0.1),
        lambda: Gamma(math.inf),
        lambda: ZPlus(-1.0),
        lambda: ByDepth((), "none"),
        lambda: ByDepth(((0.5, Gamma()),), "half"),
        lambda: ByDepth(((1.0, Gamma()), (0.5, Gamma())), "falling"),
    ],
)
def test_a_rule_of_impossible_numbers_is_refused(make):
    with pytest.raises(UsageError):
        make()


def test_a_rule_by_depth_goes_from_0_at_the_first_layer_to_1_at_the_last():
    near, middle, far = Recorded(), Recorded(), Recorded()
    rule = ByDepth(((0.3, near), (0.5, middle), (1.0, far)), "three")

    calibrate(three_layers(), [normal(2, 3)], rule)

    told = [[(layer.name, layer.depth) for layer, *_ in r.calls] for r in (near, middle, far)]
    assert told == [[("0", 0.0)], [("2", 0.5)], [("4", 1.0)]]


def test_depth_counts_calls_of_layers_in_the_order_that_they_run():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.late, self.norm, self.early = nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3)

        def forward(self, x):
            return self.late(self.norm(self.early(self.early(x))))

    rule = Recorded()

    calibrate(fill(Backwards()), [normal(2, 3)], rule)

    assert [(layer.name, layer.depth) for layer, *_ in rule.calls] == [
        ("late", 1.0),
        ("early", 0.5),
        ("early", 0.0),
    ]


def test_the_composite_is_gamma_then_epsilon_of_a_share_then_0():
    network, x = three_layers(), normal(4, 3)

    same_statistics(
        calibrate(network, [x], "composite"),
        calibrate(
            network, [x], {"0": Gamma(0.25), "2": Epsilon(0.0, share=0.25), "4": Epsilon(0.0)}
        ),
    )


SPLIT_NETWORKS = {
    "linear": (lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), (6, 3)),
    "conv": (lambda: nn.Sequential(nn.Conv1d(3, 2, 2), nn.ReLU(), nn.Flatten()), (6, 3, 4)),
    "tokens": (lambda: nn.Sequential(nn.Linear(3, 4), nn.Flatten()), (6, 5, 3)),
    "attention": (
        lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, dropout=0.0),
        (6, 5, 4),
    ),
}


@pytest.mark.parametrize("rule", [Epsilon(0.0, share=0.25), "composite"])
@pytest.mark.parametrize("kind", SPLIT_NETWORKS)
def test_statistics_of_parts_of_a_batch_add_up_to_those_of_the_batch(kind, rule):
    make, shape = SPLIT_NETWORKS[kind]
    network, x = fill(make()), normal(*shape, seed=1)

    same_statistics(
        calibrate(network, x.split([1, 3, 2]), rule, "norm"), calibrate(network, [x], rule, "norm")
    )


# ---- kinds of layers


class Words(nn.Module):
    """A language model of one layer, whose head may be its embedding."""

    def __init__(self, *, tied):
        super().__init__()
        self.words = nn.Embedding(5, 3)
        self.middle = nn.Linear(3, 3)
        self.head = nn.Linear(3, 5, bias=False)
        if tied:
            self.head.weight = self.words.weight

    def forward(self, x):
        return self.head(torch.tanh(self.middle(self.words(x))).mean(1))


TOKENS = torch.tensor([[0, 3, 3], [1, 0, 3]])


def relevance_of_elements(network, x, rule):
    """Return what relevance each element of a floating-point input has, sample by sample."""
    shown = nn.Sequential(Shown(x[0].numel()), network)
    samples = [calibrate(shown, [sample], rule)["0.all"].output for sample in x.split(1)]
    return torch.stack(samples).view_as(x)


@pytest.mark.parametrize("rule", [name for name in RULES if name != "composite"])
def test_an_embeddings_relevance_is_that_of_its_rows_and_features(rule):
    network = fill(Words(tied=False))
    looked_up = network.words(TOKENS).detach()
    layer = calibrate(network, [TOKENS], rule)["words"]
    network.words = nn.Identity()

    sent = relevance_of_elements(network, looked_up, rule)

    rows, absolute = torch.zeros(2, 5, dtype=torch.float64)
    for token, relevance in zip(TOKENS.flatten(), sent.view(-1, 3), strict=True):
        rows[token] += relevance.sum()
        absolute[token] += relevance.sum().abs()
    close(layer.input, rows)
    close(layer.input_absolute, absolute)
    close(layer.output, sent.sum((0, 1)))
    close(layer.output_absolute, sent.abs().sum((0, 1)))
    assert layer.transposed
    close(layer.parameter_relevance(), layer.input[:, None] + layer.output[None, :])


@pytest.mark.parametrize("rule", RULES)
def test_a_tied_weight_counts_once_with_what_both_of_its_uses_got(rule):
    tied, untied = fill(Words(tied=True)), fill(Words(tied=False))
    untied.load_state_dict({**tied.state_dict()})

    found, expected = (calibrate(network, [TOKENS], rule) for network in (tied, untied))

    assert list(found) == ["middle", "words"]
    assert found["words"].tied == ("head",)
    assert found["words"].transposed
    close(found["words"].input, expected["words"].input + expected["head"].output)
    close(found["words"].output, expected["words"].output + expected["head"].input)
    same_statistics(found, expected, ["middle"])


class Conv1D(nn.Module):
    """A linear layer as Hugging Face writes it: its weight is `[in, out]`."""

    def __init__(self, units, width):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, units))
        self.bias = nn.Parameter(torch.empty(units))

    def forward(self, x):
        made = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return made.view(*x.shape[:-1], len(self.bias))


@pytest.mark.parametrize("rule", RULES)
def test_a_transposed_linear_layer_is_a_linear_layer(rule):
    layer, linear = fill(Conv1D(3, 4)), nn.Linear(4, 3)
    linear.weight = nn.Parameter(layer.weight.detach().T)
    linear.bias = layer.bias
    x = normal(2, 5, 4, seed=1)
    last = fill(nn.Linear(15, 2), 2)
    ends = [nn.GELU(), nn.Flatten(), last]

    found, expected = (calibrate(nn.Sequential(part, *ends), [x], rule) for part in (layer, linear))

    same_statistics(found, expected)
    assert found["0"].transposed
    assert not expected["0"].transposed
    close(found["0"].parameter_relevance(), expected["0"].parameter_relevance().T)


class Raw(nn.Module):
    """A linear layer without a module."""

    def __init__(self, spelling, *shape):
        super().__init__()
        self.mixing = nn.Parameter(torch.empty(shape))
        self.spelling = spelling

    def forward(self, x):
        return self.spelling(x, self.mixing)


@pytest.mark.parametrize("shape", [(4, 3), (4, 4), (4, 1)])
@pytest.mark.parametrize(
    ("spelling", "transposed"),
    [
        (lambda x, w: x @ w, True),
        (torch.matmul, True),
        (lambda x, w: torch.mm(x.flatten(0, 1), w).view(*x.shape[:2], -1), True),
        (lambda x, w: x @ w.T, False),
        (lambda x, w: x.matmul(w.t()), False),
        (lambda x, w: x @ w.transpose(0, 1), False),
        (functional.linear, False),
    ],
)
def test_a_parameter_that_no_layer_has_is_a_layer_of_its_own_name(spelling, transposed, shape):
    raw = fill(Raw(spelling, *(shape if transposed else shape[::-1])))
    linear = nn.Linear(*shape, bias=False)
    linear.weight = nn.Parameter(raw.mixing.detach().T if transposed else raw.mixing.detach())
    x, last = normal(2, 5, 4, seed=1), fill(nn.Linear(5 * shape[1], 2), 2)

    found, expected = (
        calibrate(nn.Sequential(part, nn.Flatten(), last), [x], "gamma") for part in (raw, linear)
    )

    assert list(found) == ["0.mixing", "2"]
    assert found["0.mixing"].transposed == transposed or shape == (4, 1)
    assert found["0.mixing"].parameter_relevance().shape == raw.mixing.shape
    close(found["0.mixing"].input, expected["0"].input)
    close(found["0.mixing"].output, expected["0"].output)


class Attending(nn.Module):
    def __init__(self, *, cross, batch_first, need_weights, own_widths=False):
        super().__init__()
        widths = {"kdim": 6, "vdim": 6} if own_widths else {}
        self.attention = nn.MultiheadAttention(4, 2, batch_first=batch_first, **widths)
        self.cross, self.need_weights, self.own_widths = cross, need_weights, own_widths

    def forward(self, x, y):
        if self.own_widths:
            y = functional.pad(y, (0, 2), value=1.0)
        other = y if self.cross else x
        return self.attention(x, other, other, need_weights=self.need_weights)[0]


class WrittenOut(nn.Module):
    """Attention of two heads by separate layers with the rows of another's weights."""

    def __init__(self, attention, *, batch_first, cross):
        super().__init__()
        weights = attention.in_proj_weight.detach().chunk(3)
        biases = attention.in_proj_bias.detach().chunk(3)
        self.parts = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        for part, weight, bias in zip(self.parts, weights, biases, strict=True):
            part.weight, part.bias = nn.Parameter(weight), nn.Parameter(bias)
        self.out = attention.out_proj
        self.batch_first, self.cross = batch_first, cross

    def forward(self, x, y):
        if not self.batch_first:
            x, y = x.transpose(0, 1), y.transpose(0, 1)
        other = y if self.cross else x
        q, k, v = (
            part(given).unflatten(2, (2, 2)).transpose(1, 2)
            for part, given in zip(self.parts, (x, other, other), strict=True)
        )
        made = self.out(written_out_attention(q, k, v).transpose(1, 2).flatten(2))
        return made if self.batch_first else made.transpose(0, 1)


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("cross", [True, False])
def test_multi_head_attention_is_its_layers_written_out(cross, batch_first, need_weights):
    whole = fill(Attending(cross=cross, batch_first=batch_first, need_weights=need_weights))
    parts = WrittenOut(whole.attention, batch_first=batch_first, cross=cross)
    inputs = {"x": normal(3, 3, 4, seed=1), "y": normal(3, 3, 4, seed=2)}

    found, expected = (calibrate(network, [inputs], "gamma", "norm") for network in (whole, parts))

    name = "attention.in_proj_weight"
    made = [expected[f"parts.{at}"].output for at in range(3)]
    if cross:
        assert list(found) == [f"{name}[0:4]", f"{name}[4:12]", "attention.out_proj"]
        close(found[f"{name}[0:4]"].output, made[0])
        close(found[f"{name}[4:12]"].output, torch.cat(made[1:]))
        close(found[f"{name}[0:4]"].input, expected["parts.0"].input)
        close(found[f"{name}[4:12]"].input, expected["parts.1"].input)
    else:
        assert list(found) == [name, "attention.out_proj"]
        close(found[name].output, torch.cat(made))
        close(found[name].input, expected["parts.0"].input)
    close(found["attention.out_proj"].input, expected["out"].input)
    close(found["attention.out_proj"].output, expected["out"].output)


@pytest.mark.parametrize("rule", RULES)
def test_attention_with_widths_of_its_own_names_each_projection(rule):
    network = fill(Attending(cross=True, batch_first=True, need_weights=False, own_widths=True))

    statistics = calibrate(network, [{"x": normal(2, 3, 4), "y": normal(2, 3, 4)}], rule, "norm")

    names = ["k_proj_weight", "out_proj", "q_proj_weight", "v_proj_weight"]
    assert list(statistics) == [f"attention.{name}" for name in names]


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("rule", ["gradient-input", "gamma", "composite"])
def test_every_layer_of_a_transformer_gets_relevance(rule, norm_first):
    layer = nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True, norm_first=norm_first)
    network = nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))

    statistics = calibrate(fill(network), [normal(2, 3, 4)], rule, "norm")

    parts = ["linear1", "linear2", "self_attn.in_proj_weight", "self_attn.out_proj"]
    assert list(statistics) == [f"0.layers.{at}.{part}" for at in range(2) for part in parts]
    assert all(sums.output_absolute.any() for sums in statistics.values())
    assert all(sums.input_absolute.any() for sums in statistics.values())


class Reusing(nn.Module):
    def __init__(self, layer, *, functional_call=False, copies=False):
        super().__init__()
        self.layer = layer
        self.again = fill(nn.Linear(4, 4), 1) if copies else None
        if copies:
            self.again.load_state_dict(layer.state_dict())
        self.functional_call = functional_call

    def forward(self, x):
        x = torch.tanh(self.layer(x))
        if self.functional_call:
            return functional.linear(x, self.layer.weight, self.layer.bias)
        return (self.again or self.layer)(x)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("functional_call", [True, False])
def test_a_layer_that_is_called_twice_gets_the_sum_of_its_calls(functional_call, rule):
    layer, x = fill(nn.Linear(4, 4)), normal(2, 4)

    found = calibrate(Reusing(layer, functional_call=functional_call), [x], rule)
    apart = calibrate(Reusing(layer, copies=True), [x], rule)

    assert list(found) == ["layer"]
    close(found["layer"].input, apart["layer"].input + apart["again"].input)
    close(found["layer"].output, apart["layer"].output + apart["again"].output)


@pytest.mark.parametrize("rule", ["gradient-input", "epsilon", "gamma"])
def test_a_weight_that_is_computed_belongs_to_the_layer_that_uses_it(rule):
    layer = parametrizations.weight_norm(fill(nn.Linear(3, 4)))
    plain = nn.Linear(3, 4)
    plain.weight, plain.bias = nn.Parameter(layer.weight.detach()), layer.bias

    found, expected = (
        calibrate(nn.Sequential(part, nn.Tanh(), fill(nn.Linear(4, 2), 1)), [normal(2, 3)], rule)
        for part in (layer, plain)
    )

    same_statistics(found, expected)


class Small(nn.Module):
    """A network of the operations that an exported program spells in its own way."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.up = nn.ConvTranspose2d(4, 4, 2, stride=2)
        self.act, self.pool = nn.Hardswish(inplace=True), nn.AdaptiveAvgPool2d(2)
        self.gate, self.rows, self.head = nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(16, 3)

    def forward(self, x):
        x = self.act(self.norm(self.conv(x)))
        x = self.pool(functional.gelu(self.up(x)))
        x = x * torch.sigmoid(self.gate(x.mean((2, 3))))[:, :, None, None]
        x = self.rows(x.flatten(2).transpose(1, 2))
        x = functional.scaled_dot_product_attention(x, x, x) + x / (1 + x.norm())
        return self.head(x.flatten(1))


@pytest.mark.parametrize("rule", ["gradient-input", "epsilon", "gamma"])
def test_an_exported_program_has_the_relevance_of_the_module(rule):
    network, x = fill(Small()), normal(2, 2, 4, 4)
    exported = torch.export.export(network, (x,)).module()

    same_statistics(calibrate(exported, [x], rule), calibrate(network, [x], rule))


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.cells, self.head = kind(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.cells(x)[0][:, -1])


@pytest.mark.parametrize("rule", ["epsilon", "zplus", "composite"])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_what_no_rule_knows_has_its_plain_gradient(kind, rule):
    network, x = fill(Recurrent(kind)), normal(2, 5, 3)
    first = nn.Sequential(identity(3), network)

    layer = calibrate(first, [x], {"0": "gamma", "*": GradientInput()})["0"]

    x.requires_grad_()
    network(x).amax(1).sum().backward()
    close(layer.output, (x * x.grad).detach().sum((0, 1)))
    assert list(calibrate(network, [x.detach()], rule)) == ["head"]


@pytest.mark.parametrize("rule", LRP_RULES)
def test_operations_that_the_table_does_not_name_run(rule):
    def unusual(x):
        x = torch.cumsum(x, 1).sort(1).values.roll(1, 1)
        x = functional.cosine_similarity(x, x.flip(1), 0)[None] + torch.logsumexp(x, 1)
        return functional.log_softmax(torch.where(x > 0, x, -x).maximum(x.sin()), 1)

    _, _, (sent,) = relevance_through(unusual, normal(1, 3, 4))
    network = Probed(unusual, [normal(1, 3, 4)])

    assert sent.any()
    assert calibrate(network, [{"x": normal(1, 3, 4)}], rule)


# ---- the report of conservation


def cnn(*, bias=False, norm=False):
    parts = [
        nn.Conv2d(2, 4, 3, padding=1, bias=bias),
        *([nn.BatchNorm2d(4)] if norm else []),
        nn.ReLU(inplace=True),
        Residual(nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=bias), nn.ReLU6()),
        nn.MaxPool2d(2),
        Joined(nn.Conv2d(4, 2, 1, bias=bias), nn.Conv2d(4, 2, 1, bias=bias)),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3, bias=bias),
    ]
    return fill(nn.Sequential(*parts))


@pytest.mark.parametrize("rule", [*CONSERVING, "epsilon", "gamma", "zplus", "attnlrp"])
def test_every_operation_of_a_network_without_biases_conserves_relevance(rule):
    statistics = calibrate(cnn(), [normal(2, 2, 4, 4).abs()], rule, check=True)

    told = Counter(balance.layer for balance in statistics.balances)
    inside = ["2.branch.0", "2.branch.1", "4.branches.0", "4.branches.1"]
    assert told == Counter([*"0123456", "8", *inside])
    assert [balance for balance in statistics.balances if not balance.holds] == []


@pytest.mark.parametrize("rule", RULES)
def test_the_report_changes_no_statistics(rule):
    network, x = cnn(bias=True, norm=True), normal(2, 2, 4, 4)

    checked = calibrate(network, [x], rule, check=True)
    unchecked = calibrate(network, [x], rule)

    same_statistics(checked, unchecked)
    assert checked.balances
    assert unchecked.balances == ()


@pytest.mark.parametrize("rule", ["gradient-input", "gamma"])
def test_the_report_changes_no_statistics_of_a_transformer(rule):
    layer = nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True, activation="gelu")

    found, expected = (
        calibrate(fill(layer), [normal(2, 3, 4)], rule, "norm", check=check)
        for check in (True, False)
    )

    same_statistics(found, expected)


def test_relevance_that_a_bias_takes_is_reported_as_lost():
    layer = nn.Linear(2, 2).double()
    layer.weight = nn.Parameter(torch.tensor([[1.0, 2.0], [1.0, 1.0]], dtype=torch.float64))
    layer.bias = nn.Parameter(torch.tensor([4.0, 1.0], dtype=torch.float64))
    x = torch.tensor([[3.0, 1.0], [1.0, 0.0]], dtype=torch.float64)  # outputs 9 and 5 of class 0

    (balance,) = calibrate(
        nn.Sequential(identity(2), layer), [x], Epsilon(0.0), first_score, check=True
    ).balances[-1:]

    assert (balance.layer, balance.operation, balance.rule) == ("1", "linear", "epsilon(0)")
    assert balance.received == pytest.approx(14)
    assert balance.passed == pytest.approx(14 - 8)
    assert balance.lost == pytest.approx(8)
    assert balance.handled == pytest.approx(14)
    assert not balance.holds


def test_the_report_adds_up_over_batches():
    network, x = cnn(bias=True), normal(4, 2, 4, 4)

    whole = calibrate(network, [x], "epsilon", check=True).balances
    parts = calibrate(network, x.split([1, 3]), "epsilon", check=True).balances

    for one, other in zip(whole, parts, strict=True):
        assert (one.layer, one.operation, one.rule) == (other.layer, other.operation, other.rule)
        assert one.received == pytest.approx(other.received)
        assert one.passed == pytest.approx(other.passed)


def test_the_report_tells_a_folded_norm_and_a_norm_that_holds():
    network = nn.Sequential(
        nn.Linear(4, 4), nn.BatchNorm1d(4), nn.LayerNorm(4, bias=False), nn.Linear(4, 2)
    )

    statistics = calibrate(fill(network), [normal(2, 4)], "epsilon", check=True)

    told = {(b.layer, b.operation): b for b in statistics.balances}
    assert set(told) == {("1", "batch_norm"), ("2", "layer_norm"), ("3", "linear")}
    assert not told["1", "batch_norm"].holds
    assert told["2", "layer_norm"].holds


def test_the_report_balances_masked_attention():
    def masked(x):
        scores = (x @ x.transpose(1, 2)).masked_fill(~LOWER, -math.inf)
        return scores.softmax(-1) @ x

    network = Probed(masked, [normal(1, 3, 4)])

    statistics = calibrate(network, [{"x": normal(1, 3, 4)}], EXACT, first_score, check=True)

    told = {balance.operation: balance for balance in statistics.balances}
    assert {"matmul", "masked_fill", "softmax"} <= set(told)
    assert all(math.isfinite(balance.lost) for balance in told.values())


@pytest.mark.parametrize(
    ("operation", "other"),
    [(torch.mul, (3, 4)), (torch.matmul, (4, 2)), (torch.add, (3, 4)), (torch.div, (3, 4))],
)
def test_the_report_says_that_an_operation_of_two_tensors_conserves_relevance(operation, other):
    inputs = normal(1, 3, 4, seed=1), normal(1, *other, seed=2)
    named = {f"x{at}": x for at, x in enumerate(inputs)}

    statistics = calibrate(Probed(operation, inputs), [named], EXACT, first_score, check=True)

    (balance,) = (b for b in statistics.balances if b.operation == operation.__name__)
    assert balance.received == pytest.approx(balance.passed)
    assert balance.holds


def test_the_report_books_an_operation_in_place_as_out_of_place():
    inputs = {f"x{at}": normal(1, 3, 4, seed=at) for at in range(2)}
    found, expected = (
        calibrate(Probed(op, [*inputs.values()]), [inputs], EXACT, first_score, check=True)
        for op in (gated_by_its_own_past, gated_by_its_own_past_out_of_place)
    )

    (one,) = (balance for balance in found.balances if balance.operation == "add_")
    (other,) = (balance for balance in expected.balances if balance.operation == "add")
    assert one.passed == pytest.approx(other.passed)
