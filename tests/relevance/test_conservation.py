"""Relevance adds up to the output at every cut, and the report says where it does not."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from flexrel import calibrate
from flexrel.relevance import RULES, Epsilon, Gamma, ZPlus
from probes import (
    EXACT,
    LOWER,
    Probed,
    Shown,
    close,
    fill,
    first_score,
    gated_by_its_own_past,
    gated_by_its_own_past_out_of_place,
    identity,
    normal,
    same_stats,
)

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

    stats = calibrate(network, [x], {"*.all": Epsilon(0.0), "*": rule}, "predicted")

    cuts = [layer for name, layer in stats.items() if name.endswith(".all")]
    assert len(cuts) == len(blocks) + 1
    for layer in cuts:
        handled = max(layer.output_absolute.sum(), started.abs())
        assert abs(layer.output.sum() - started) <= 1e-6 * handled


@settings(max_examples=8)
@given(blocks_of(STRAIGHT), st.integers(0, 999))
def test_epsilon_0_is_gradient_times_input_in_relu_networks_without_biases(blocks, seed):
    network, x = network_of(blocks, seed)
    assume(bool(network(x).any()))  # not all of it is dead

    same_stats(calibrate(network, [x], Epsilon(0.0)), calibrate(network, [x]))


@settings(max_examples=6)
@given(blocks_of([*BLOCKS]), st.integers(0, 999))
def test_gamma_0_is_epsilon_0(blocks, seed):
    network, x = network_of(blocks, seed)
    assume(bool(network(x).any()))  # not all of it is dead

    same_stats(calibrate(network, [x], Gamma(0.0)), calibrate(network, [x], Epsilon(0.0)))


@pytest.mark.parametrize("block", [name for name in STRAIGHT if name != "average"])
def test_a_large_gamma_comes_near_zplus_where_inputs_are_not_negative(block):
    network, x = network_of([block], 1)
    network.append(nn.ReLU())
    rules = [{"*.all": Epsilon(0.0), "*": rule} for rule in (Gamma(1e9), ZPlus(0.0))]

    found, expected = (calibrate(network, [x], rule, "predicted") for rule in rules)

    for name, layer in expected.items():
        close(found[name].input, layer.input, 1e-6)


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
    stats = calibrate(cnn(), [normal(2, 2, 4, 4).abs()], rule, check=True)

    told = Counter(balance.layer for balance in stats.balances)
    inside = ["2.branch.0", "2.branch.1", "4.branches.0", "4.branches.1"]
    assert told == Counter([*"0123456", "8", *inside])
    assert [balance for balance in stats.balances if not balance.holds] == []


@pytest.mark.parametrize("rule", RULES)
def test_the_report_changes_no_stats(rule):
    network, x = cnn(bias=True, norm=True), normal(2, 2, 4, 4)

    checked = calibrate(network, [x], rule, check=True)
    unchecked = calibrate(network, [x], rule)

    same_stats(checked, unchecked)
    assert checked.balances
    assert unchecked.balances == ()


@pytest.mark.parametrize("rule", ["gradient-input", "gamma"])
def test_the_report_changes_no_stats_of_a_transformer(rule):
    layer = nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True, activation="gelu")

    found, expected = (
        calibrate(fill(layer), [normal(2, 3, 4)], rule, "norm", check=check)
        for check in (True, False)
    )

    same_stats(found, expected)


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

    stats = calibrate(fill(network), [normal(2, 4)], "epsilon", check=True)

    told = {(b.layer, b.operation): b for b in stats.balances}
    assert set(told) == {("1", "batch_norm"), ("2", "layer_norm"), ("3", "linear")}
    assert not told["1", "batch_norm"].holds
    assert told["2", "layer_norm"].holds


def test_the_report_balances_masked_attention():
    def masked(x):
        scores = (x @ x.transpose(1, 2)).masked_fill(~LOWER, -math.inf)
        return scores.softmax(-1) @ x

    network = Probed(masked, [normal(1, 3, 4)])

    stats = calibrate(network, [{"x": normal(1, 3, 4)}], EXACT, first_score, check=True)

    told = {balance.operation: balance for balance in stats.balances}
    assert {"matmul", "masked_fill", "softmax"} <= set(told)
    assert all(math.isfinite(balance.lost) for balance in told.values())


@pytest.mark.parametrize(
    ("operation", "other"),
    [(torch.mul, (3, 4)), (torch.matmul, (4, 2)), (torch.add, (3, 4)), (torch.div, (3, 4))],
)
def test_the_report_says_that_an_operation_of_two_tensors_conserves_relevance(operation, other):
    inputs = normal(1, 3, 4, seed=1), normal(1, *other, seed=2)
    named = {f"x{at}": x for at, x in enumerate(inputs)}

    stats = calibrate(Probed(operation, inputs), [named], EXACT, first_score, check=True)

    (balance,) = (b for b in stats.balances if b.operation == operation.__name__)
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
