"""Activations that are read and overwritten in unusual ways, against retained gradients."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from flexrel import ModelError, UsageError, calibrate
from flexrel.core.running import fingerprint


def normal(*shape, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


class Net(nn.Module):
    """Three layers, put together by a function `(net, x) -> output`."""

    def __init__(self, forward, *, convolutions=False):
        super().__init__()
        torch.manual_seed(1)
        for name in "abc":
            layer = nn.Conv1d(4, 4, 3) if convolutions else nn.Linear(4, 4)
            setattr(self, name, layer.double())
        self.of = forward

    def forward(self, x):
        return self.of(self, x)


def first(output, _):
    return output.flatten(1).sum(1)


def same(found, expected):
    assert list(found) == list(expected)
    for name, layer in expected.items():
        for field in ("input", "output", "input_absolute", "output_absolute"):
            torch.testing.assert_close(
                getattr(found[name], field), getattr(layer, field), rtol=1e-9, atol=1e-9
            )


class Seen(torch.autograd.Function):
    """Reads its input where no mode sees it."""

    @staticmethod
    def forward(ctx, x):
        return x * 3

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 3


def before_its_activation(net, x):
    h = x + net.a(x).tanh()
    return net.c(h) + functional.relu(h)


def beside_its_activation(net, x):
    return net.c(net.b(x) + functional.relu(x))


def returned_beside_its_activation(net, x):
    z = net.c(x)
    functional.relu(z)
    return z


def read_unseen(net, x):
    z = net.a(x)
    return net.c(net.b(functional.relu(z)) + Seen.apply(z))


@pytest.mark.parametrize("rule", ["gradient-input", "epsilon"])
@pytest.mark.parametrize(
    "forward",
    [
        before_its_activation,
        beside_its_activation,
        returned_beside_its_activation,
        read_unseen,
    ],
)
def test_what_a_relu_reads_too_keeps_its_own_value(forward, rule):
    def without_stand_ins(net, x):
        """Read every layer's output once before anything else does."""
        real = functional.relu
        functional.relu = lambda z: z.clamp(min=0)
        try:
            return forward(net, x)
        finally:
            functional.relu = real

    x = normal(3, 4)

    found = calibrate(Net(forward), [x], rule, first)

    same(found, calibrate(Net(without_stand_ins), [x], rule, first))


@pytest.mark.parametrize(
    ("in_place", "out_of_place"),
    [
        (lambda p: p.mul_(2), lambda p: p * 2),
        (lambda p: p.add_(1), lambda p: p + 1),
        (lambda p: p[:, :, 1:-1].mul_(2) is not None and p, lambda p: p * 2),
    ],
)
def test_padding_that_is_overwritten_is_padding_no_more(in_place, out_of_place):
    def with_pad(change):
        return Net(
            lambda n, x: n.b(change(functional.pad(n.a(x).tanh(), (1, 1)))), convolutions=True
        )

    x = normal(2, 4, 7)

    same(
        calibrate(with_pad(in_place), [x], output=first),
        calibrate(with_pad(out_of_place), [x], output=first),
    )


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_padding_is_the_same_by_either_of_its_operations(value):
    def with_pad(pad):
        return Net(lambda n, x: n.b(pad(n.a(x).tanh())), convolutions=True)

    x = normal(2, 4, 7)

    same(
        calibrate(with_pad(lambda p: torch.constant_pad_nd(p, (1, 1), value)), [x], output=first),
        calibrate(with_pad(lambda p: functional.pad(p, (1, 1), value=value)), [x], output=first),
    )


@pytest.mark.parametrize("rule", ["epsilon", "gamma"])
@pytest.mark.parametrize(
    ("in_place", "out_of_place"),
    [
        (lambda h: h.mul_(h.sigmoid()), lambda h: h * h.sigmoid()),
        (lambda h: h.div_(1 + h.exp()), lambda h: h / (1 + h.exp())),
        (lambda h: h.add_(h.tanh()), lambda h: h + h.tanh()),
    ],
)
def test_a_chain_may_end_in_place_where_it_began(in_place, out_of_place, rule):
    x = normal(3, 4)

    found, expected = (
        calibrate(Net(lambda n, x, op=op: n.c(op(n.b(n.a(x))))), [x], rule, first)
        for op in (in_place, out_of_place)
    )

    same(found, expected)


@pytest.mark.parametrize("rule", ["epsilon", "gamma", "zplus"])
def test_autocast_comes_close_to_float32(rule):
    def cast(net, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return net.c(functional.relu(net.a(x))).float()

    def plain(net, x):
        return net.c(functional.relu(net.a(x)))

    x = normal(8, 4).float()
    found, expected = (calibrate(Net(f).float(), [x], rule, first) for f in (cast, plain))

    for name, layer in expected.items():
        scale = layer.output_absolute.max().item()
        torch.testing.assert_close(found[name].output, layer.output, rtol=0, atol=0.05 * scale)


@pytest.mark.parametrize(
    ("by_name", "by_place"),
    [
        (
            lambda n, x: torch.div(input=n.a(x), other=n.b(x).exp()),
            lambda n, x: torch.div(n.a(x), n.b(x).exp()),
        ),
        (lambda n, x: torch.pow(input=n.a(x), exponent=2), lambda n, x: n.a(x) ** 2),
        (
            lambda n, x: torch.pow(n.a(x).abs(), torch.tensor(2.0)),
            lambda n, x: n.a(x).abs() ** 2,
        ),
        (lambda n, x: 2 ** n.a(x), lambda n, x: torch.exp2(n.a(x))),
    ],
)
def test_the_spelling_of_an_operation_changes_nothing(by_name, by_place):
    x = normal(3, 4)

    found, expected = (
        calibrate(Net(lambda n, x, f=f: n.c(f(n, x))), [x], "epsilon", first)
        for f in (by_name, by_place)
    )

    same(found, expected)


def test_a_logarithm_has_finite_relevance():
    found = calibrate(
        Net(lambda n, x: n.c(torch.log(functional.softmax(n.a(x), 1)))), [normal(3, 4)], "epsilon"
    )

    assert list(found) == ["a", "c"]


def test_checkpoints_that_can_not_be_followed_say_so():
    def forward(net, x):
        return net.c(checkpoint(net.a, x, use_reentrant=True))

    with pytest.raises(ModelError, match="turn its checkpointing off"):
        calibrate(Net(forward), [normal(3, 4)])


def test_a_layer_inside_vmap_is_refused_by_name():
    forward = lambda n, x: torch.vmap(lambda row: n.c(n.a(row)))(x)  # noqa: E731

    with pytest.raises(ModelError, match=r"'a' is called inside torch\.vmap"):
        calibrate(Net(forward), [normal(3, 4)])


def test_complex_numbers_can_be_checked():
    def forward(net, x):
        turned = torch.view_as_real(torch.fft.fft(torch.view_as_complex(net.a(x).view(3, 2, 2))))
        return net.c(turned.reshape(3, 4))

    net, x = Net(forward), normal(3, 4)

    same(calibrate(net, [x], "epsilon", check=True), calibrate(net, [x], "epsilon"))


def test_what_a_rule_raises_passes_as_it_is():
    class Broken:
        name = "broken"

        def __call__(self, layer, inputs, outputs, gradient):
            raise RuntimeError(layer.name)

    with pytest.raises(RuntimeError, match=r"^c$"):
        calibrate(Net(lambda n, x: n.c(n.a(x))), [normal(3, 4)], Broken())


def test_samples_are_those_that_labels_are_of():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3).double()

        def forward(self, scale, x):
            return self.layer(x * scale[0])

    labels = torch.tensor([0, 1, 2])
    batch = {"scale": normal(2), "x": normal(3, 4), "labels": labels}

    assert calibrate(Two(), [batch], output="label").samples == 3


@pytest.mark.parametrize("limit", [1.5, 0])
def test_a_limit_that_is_no_count_is_refused(limit, unchecked):
    with pytest.raises(UsageError, match="must be a whole number"):
        calibrate(Net(lambda n, x: n.a(x)), [normal(3, 4)], max_batches=limit)


def test_settings_of_layers_are_part_of_the_fingerprint():
    strided = [nn.Sequential(nn.Conv2d(4, 4, 3, stride=s)) for s in (1, 2)]

    assert fingerprint(strided[0]) != fingerprint(strided[1])
