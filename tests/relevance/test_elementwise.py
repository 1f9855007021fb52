"""Elementwise functions, chains of them, and operations in place."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from flexrel import calibrate
from probes import (
    Probed,
    but_for_its_constant,
    close,
    fill,
    first_score,
    gated_by_its_own_past,
    gated_by_its_own_past_out_of_place,
    normal,
    relevance_through,
    same_stats,
)


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

    same_stats(found, expected)


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
