"""Every rule through layers with weights, against slow twins and by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flexrel import calibrate
from flexrel.relevance import AttnLRP, Epsilon, Gamma, ZPlus
from probes import Probed, close, fill, first_score, halves, normal
from reference import lrp, toeplitz

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")  # torch's, even kernels


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

    stats = calibrate(network, [{"x": x}], rule, first_score)

    sums = stats["operation"]
    summed = made.sum(0).flatten(1).sum(1) if made.ndim > 2 else made.sum(0)
    terms = torch.cat([made.flatten(), sent.flatten()])
    close(stats["last"].input, made.sum(0).flatten(), of=terms)
    close(sums.output, summed, of=terms)
    close(stats["sources.0"].output, sent.sum(0).flatten(), of=terms)
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

    stats = calibrate(Probed(layer, [x]), [{"x": x}], TWINS[rule][0], first_score)
    wide = calibrate(Probed(bare, [padded]), [{"x": padded}], TWINS[rule][0], first_score)

    copies = wide["sources.0"].output.view(2, 8)
    expected = torch.zeros(2, 4, dtype=torch.float64)
    for column, at in enumerate(sources):
        if at is not None:
            expected[:, at] += copies[:, column]
    close(stats["sources.0"].output.view(2, 4), expected)


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
