"""Recurrent layers, GRN, gMLP, standardised weights: cut exactly, or left with the reason."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

import flexrel
from flexrel import ModelError
from networks import masked, random_


class Recurrent(nn.Module):
    """A layer before a recurrent one, and two behind it."""

    def __init__(self, kind, **options):
        super().__init__()
        self.first = nn.Linear(5, 12)
        self.rnn = kind(12, 16, batch_first=True, **options)
        width = 32 if options.get("bidirectional") else 16
        self.middle, self.last = nn.Linear(width, 20), nn.Linear(20, 3)

    def forward(self, x):
        return self.last(self.middle(self.rnn(self.first(x))[0][:, -1]).relu())


class Stepwise(nn.Module):
    """A recurrent cell in a loop of one's own."""

    def __init__(self, kind):
        super().__init__()
        self.first, self.cell, self.last = nn.Linear(5, 12), kind(12, 16), nn.Linear(16, 3)

    def forward(self, x):
        state = None
        for step in self.first(x).unbind(1):
            state = self.cell(step, state)
        return self.last(state[0] if isinstance(state, tuple) else state)


class GRN(nn.Module):
    """Global response normalisation, as ConvNeXt V2 (arXiv 2301.00808) defines it."""

    def __init__(self, width):
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, width))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, width))

    def forward(self, x):
        size = x.norm(p=2, dim=(1, 2), keepdim=True)
        return self.gamma * (x * (size / (size.mean(-1, keepdim=True) + 1e-6))) + self.beta + x


class ConvNeXt(nn.Module):
    """A block of ConvNeXt V2, and a branch that can be cut."""

    def __init__(self):
        super().__init__()
        self.stem, self.depth = nn.Conv2d(3, 8, 2, 2), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm, self.up, self.grn = nn.LayerNorm(8), nn.Linear(8, 32), GRN(32)
        self.down = nn.Linear(32, 8)
        self.head = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))

    def forward(self, x):
        x = self.stem(x)
        y = self.up(self.norm(self.depth(x).permute(0, 2, 3, 1)))
        y = self.down(self.grn(functional.gelu(y))).permute(0, 3, 1, 2)
        return self.head((x + y).mean((2, 3)))


class Gated(nn.Module):
    """A block of gMLP (arXiv 2105.08050), and a head that can be cut."""

    def __init__(self, tokens=6):
        super().__init__()
        self.first, self.norm, self.up = nn.Linear(5, 12), nn.LayerNorm(12), nn.Linear(12, 32)
        self.gate_norm, self.along = nn.LayerNorm(16), nn.Linear(tokens, tokens)
        self.down = nn.Linear(16, 12)
        self.head = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3))

    def forward(self, x):
        x = self.first(x)
        u, v = functional.gelu(self.up(self.norm(x))).chunk(2, -1)
        v = self.along(self.gate_norm(v).transpose(1, 2)).transpose(1, 2)
        return self.head((x + self.down(u * v)).mean(1))


class Standardised(nn.Conv2d):
    """A convolution as NFNets have it: its weight is standardised in `forward`."""

    def forward(self, x):
        rows = self.weight.reshape(1, self.out_channels, -1)
        rows = functional.batch_norm(rows, None, None, training=True, momentum=0.0, eps=1e-6)
        return functional.conv2d(x, rows.reshape_as(self.weight), self.bias, padding=self.padding)


class ByMoments(nn.Conv2d):
    """The same, by mean and variance."""

    def forward(self, x):
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True)
        weight = (self.weight - mean) * (variance + 1e-6).rsqrt()
        return functional.conv2d(x, weight, self.bias, padding=self.padding)


class NFNet(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.stem, self.inner = kind(3, 8, 3, padding=1), kind(8, 12, 3, padding=1)
        self.head = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4))

    def forward(self, x):
        return self.head(self.inner(self.stem(x).relu()).relu().mean((2, 3)))


def steps():
    return torch.randn(64, 6, 5, generator=torch.Generator().manual_seed(0))


def images():
    return torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def pruned(model, data, budget="parameters=90%"):
    asked = {"budgets": [budget], "criterion": "magnitude", "recover": "none"}
    return flexrel.prune(model, calibration=[data], **asked)


def check(model, result, data):
    """Compare with the dense network in which what is gone reads as zero."""
    want = masked(model, result.plan).eval()(data)
    torch.testing.assert_close(result.model.eval()(data), want, rtol=1e-4, atol=1e-5)


class OwnState(nn.Module):
    """A recurrent cell whose first state the network's own code makes, by a number or not."""

    def __init__(self, *, told):
        super().__init__()
        self.first, self.cell, self.last = nn.Linear(5, 12), nn.GRUCell(12, 16), nn.Linear(16, 3)
        self.width = 16 if told else None

    def forward(self, x):
        state = x.new_zeros(len(x), self.width or 16)
        for step in self.first(x).unbind(1):
            state = self.cell(step, state)
        return self.last(state)


RECURRENT = {
    "GRU": lambda: Recurrent(nn.GRU),
    "GRU of two layers, both ways": lambda: Recurrent(nn.GRU, num_layers=2, bidirectional=True),
    "RNN": lambda: Recurrent(nn.RNN),
    "LSTM": lambda: Recurrent(nn.LSTM),
    "LSTM of two layers, both ways": lambda: Recurrent(nn.LSTM, num_layers=2, bidirectional=True),
    "LSTM without biases": lambda: Recurrent(nn.LSTM, bias=False),
    "LSTM cell": lambda: Stepwise(nn.LSTMCell),
    "GRU cell": lambda: Stepwise(nn.GRUCell),
    "state of the network's own": lambda: OwnState(told=True),
}


@pytest.mark.parametrize("name", RECURRENT)
def test_units_and_inputs_of_recurrent_layers_are_cut_exactly(name, tmp_path):
    model = random_(RECURRENT[name]()).eval()

    result = pruned(model, steps(), "parameters=45%")

    assert result.form == "module"
    check(model, result, steps())
    inside = next(m for n, m in result.model.named_modules() if n in ("rnn", "cell"))
    assert inside.input_size == result.model.first.out_features < 12
    assert inside.hidden_size < 16
    (tmp_path / "m").write_bytes(result.packed)
    loaded = flexrel.load(tmp_path / "m", into=RECURRENT[name]()).eval()
    assert torch.equal(loaded(steps()), result.model.eval()(steps()))


def test_states_and_outputs_of_an_lstm_with_projections_are_cut_each_for_itself():
    model = Recurrent(nn.LSTM, proj_size=10)
    model.middle = nn.Linear(10, 20)
    random_(model).eval()

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "LSTM with projections")
        result = pruned(model, steps(), "parameters=40%")
        check(model, result, steps())

    rnn = result.model.rnn
    assert 1 <= rnn.proj_size < 10
    assert rnn.proj_size < rnn.hidden_size < 16
    assert rnn.weight_hr_l0.shape == (rnn.proj_size, rnn.hidden_size)


def test_a_state_whose_size_stands_in_the_code_keeps_its_units_and_says_why():
    model = random_(OwnState(told=False)).eval()

    result = pruned(model, steps())

    check(model, result, steps())
    assert result.model.cell.hidden_size == 16
    (why,) = (p.reason for p in result.plan.graph.protected if "weight_hh" in p.name)
    assert why.startswith("it goes together with a tensor that Tensor.new_zeros (test_families.py:")


LEFT = {  # layers, and a part of the reason
    "ConvNeXt V2": (
        ConvNeXt,
        images,
        {
            "stem": "layer norm (module 'norm'",
            "depth": "layer norm (module 'norm'",
            "up": "torch.mean (module 'grn', test_families.py:",
        },
    ),
    "gMLP": (
        Gated,
        steps,
        {
            "first": "layer norm (module 'norm'",
            "up": "layer norm (module 'gate_norm'",
            "along": "it goes together with the network's input",
        },
    ),
    "NFNet": (
        lambda: NFNet(Standardised),
        images,
        {"stem": "are standardised together on the way, by batch norm (module"},
    ),
    "by moments": (
        lambda: NFNet(ByMoments),
        images,
        {"stem": "the weights along it are standardised together on the way, by torch.var_mean ("},
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_can_not_be_cut_exactly_is_left_with_a_reason_and_the_rest_is_cut(name):
    make, data, left = LEFT[name]
    model = random_(make()).eval()

    result = pruned(model, data(), "parameters=96%")

    check(model, result, data())
    assert result.plan.removed
    why = {p.name: p.reason for p in result.plan.graph.protected}
    for layer, said in left.items():
        assert said in why[layer]


def test_where_nothing_can_be_cut_the_refusal_says_each_reason_once():
    class Bare(NFNet):
        def __init__(self):
            super().__init__(Standardised)
            self.inner, self.head = Standardised(8, 4, 3, padding=1), nn.Identity()

    with pytest.raises(
        ModelError, match=r"; nor as an exported program; granularity 'element'"
    ) as refused:
        pruned(Bare().eval(), images())
    assert str(refused.value).count("standardised") == 1
