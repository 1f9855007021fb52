"""Sums, products, quotients, softmax, attention and pooling, between layers."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from probes import (
    LOWER,
    but_for_its_constant,
    close,
    halves,
    normal,
    relevance_through,
    written_out_attention,
)
from reference import lrp

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
