"""Which layers there are: embeddings, tied and computed weights, attention, exported programs."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from flexrel import calibrate
from flexrel.relevance import RULES, GradientInput
from probes import (
    LRP_RULES,
    Probed,
    Shown,
    close,
    fill,
    identity,
    normal,
    relevance_through,
    same_stats,
    written_out_attention,
)


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
    same_stats(found, expected, ["middle"])


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

    same_stats(found, expected)
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

    stats = calibrate(network, [{"x": normal(2, 3, 4), "y": normal(2, 3, 4)}], rule, "norm")

    names = ["k_proj_weight", "out_proj", "q_proj_weight", "v_proj_weight"]
    assert list(stats) == [f"attention.{name}" for name in names]


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("rule", ["gradient-input", "gamma", "composite"])
def test_every_layer_of_a_transformer_gets_relevance(rule, norm_first):
    layer = nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True, norm_first=norm_first)
    network = nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))

    stats = calibrate(fill(network), [normal(2, 3, 4)], rule, "norm")

    parts = ["linear1", "linear2", "self_attn.in_proj_weight", "self_attn.out_proj"]
    assert list(stats) == [f"0.layers.{at}.{part}" for at in range(2) for part in parts]
    assert all(sums.output_absolute.any() for sums in stats.values())
    assert all(sums.input_absolute.any() for sums in stats.values())


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

    same_stats(found, expected)


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

    same_stats(calibrate(exported, [x], rule), calibrate(network, [x], rule))


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
