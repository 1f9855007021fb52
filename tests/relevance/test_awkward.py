"""Awkward networks: each against the same network written without the awkwardness."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from flexrel import calibrate
from networks import Witness
from probes import IMAGES, assert_same, classifier, fill, normal


class Network(nn.Module):
    """Layers that all variants share, and a forward that is given to it."""

    def __init__(self, forward):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.again = nn.Conv2d(2, 2, 3, padding=1)
        self.linear = nn.Linear(5, 5)
        self.last = nn.Linear(5, 3)
        self.run = forward
        fill(self)

    def forward(self, x):
        return self.run(self, x)


def head(net, x):
    return net.last(x.mean((1, 2)))


def plain(net, x):
    y = functional.relu(net.conv(x * 2))
    z = functional.relu(net.again(y) + y)
    return head(net, torch.tanh(functional.relu(net.linear(z))))


def overwriting(net, x):
    x.mul_(2)  # the batch itself
    y = net.conv(x).relu_()
    z = net.again(y)
    z += y
    z = functional.relu(z, inplace=True)
    w = net.linear(z)  # a view, made of a matrix product
    w.relu_()
    return head(net, w.tanh())


def overwriting_a_slice(net, x):
    y = functional.relu(net.conv(x * 2))
    z = net.again(y)
    z[:, 0] += y[:, 0]
    z[:, 1:].add_(y[:, 1:])
    w = net.linear(z.relu())
    torch.relu_(w[:])
    return head(net, w.tanh())


def overwriting_what_a_layer_read(net, x):
    y = functional.relu(net.conv(x * 2))
    z = functional.relu(net.again(y) + y) + 0
    w = net.linear(z)
    z.zero_()
    return head(net, torch.tanh(functional.relu(w)))


@pytest.mark.parametrize(
    "forward", [overwriting, overwriting_a_slice, overwriting_what_a_layer_read]
)
def test_activations_overwritten_in_place_count_with_the_value_they_had(forward):
    batches = [normal(3, 2, 4, 5), normal(2, 2, 4, 5, seed=1)]
    before = copy.deepcopy(batches)

    found = calibrate(Network(forward), batches)

    assert_same(found, calibrate(Network(plain), batches))
    assert list(found) == ["again", "conv", "last", "linear"]
    assert all(map(torch.equal, batches, before))


class Tokenwise(nn.Module):
    """Linear layers over [samples, tokens, features], whose outputs are views."""

    def __init__(self, activation):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)
        self.activation, self.witness = activation, Witness()
        fill(self)

    def forward(self, x):
        self.witness.see()
        return self.last(self.activation(self.first(x))).mean(1)


def test_a_view_that_alone_is_overwritten_is_not_lost():
    # Autograd forgets a view once it is overwritten: no gradient of it ever comes.
    x = normal(2, 5, 3)

    found = calibrate(Tokenwise(torch.relu_), [x])

    assert list(found) == ["first", "last"]
    assert_same(found, calibrate(Tokenwise(torch.relu), [x]))


@pytest.mark.parametrize(("activation", "again"), [(torch.relu, 0), (torch.relu_, 1)])
def test_only_a_model_that_overwrites_a_view_runs_a_batch_again_and_only_the_first(
    activation, again
):
    model = Tokenwise(activation)

    calibrate(model, [normal(2, 5, 3)] * 3)

    assert model.witness.calls == 3 + again


def test_an_inplace_relu_module_changes_nothing():
    inplace, plain = classifier(), classifier()
    inplace[1].inplace = True

    assert_same(calibrate(inplace, [IMAGES]), calibrate(plain, [IMAGES]))


def test_whole_number_inputs_that_the_model_overwrites_are_the_callers_no_more():
    class Clamps(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(3, 2)
            self.layer = nn.Linear(2, 2)

        def forward(self, x, index):
            return self.layer(x + self.table(index.clamp_(max=2)))

    index = torch.tensor([0, 9])

    calibrate(Clamps(), [{"x": torch.ones(2, 2), "index": index}])

    assert index.tolist() == [0, 9]


def test_a_layer_that_is_called_twice_has_the_sum_of_both_calls():
    # The twin calls a copy instead, so each call has its own stats.
    def twice(net, x):
        return head(net, net.linear(net.conv(net.conv(x).relu()).relu()))

    def once_each(net, x):
        return head(net, net.linear(net.again(net.conv(x).relu()).relu()))

    model, twin = Network(twice), Network(once_each)
    twin.again.load_state_dict(model.conv.state_dict())
    x = normal(3, 2, 4, 5)

    found, apart = calibrate(model, [x]), calibrate(twin, [x])

    both = apart["conv"] + apart["again"]
    torch.testing.assert_close(found["conv"].input, both.input)
    torch.testing.assert_close(found["conv"].output, both.output)
    torch.testing.assert_close(found["conv"].input_absolute, both.input_absolute)
    assert "again" not in found


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_layer_may_be_called_on_inputs_of_different_sizes(size):
    # A size of 1 would broadcast: its relevance must not count at every position.
    def pyramid(second):
        def forward(net, x):
            coarse = functional.adaptive_avg_pool2d(x, size)
            return head(net, net.conv(x)) + second(net)(coarse).mean((1, 2, 3))[:, None]

        return forward

    model = Network(pyramid(lambda net: net.conv))
    twin = Network(pyramid(lambda net: net.again))
    twin.again.load_state_dict(model.conv.state_dict())
    x = normal(3, 2, 4, 5)

    found, apart = calibrate(model, [x]), calibrate(twin, [x])

    both = apart["conv"] + apart["again"]
    torch.testing.assert_close(found["conv"].input, both.input)
    torch.testing.assert_close(found["conv"].output, both.output)


def test_batches_may_differ_in_spatial_size():
    model = fill(nn.Sequential(nn.Conv1d(1, 2, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten()))
    wide, narrow = normal(2, 1, 9), normal(3, 1, 5)

    both = calibrate(model, [wide, narrow])

    assert_same(both, calibrate(model, [wide]) + calibrate(model, [narrow]))


def test_layers_that_the_output_does_not_depend_on_have_no_stats():
    def forward(net, x):
        net.again(x)  # called in vain
        return head(net, net.conv(x))  # `linear` is never called

    assert list(calibrate(Network(forward), [normal(2, 2, 4, 5)])) == ["conv", "last"]


def test_a_layer_fed_with_a_constant_has_the_relevance_of_its_output_alone():
    def forward(net, x):
        return net.last(x.mean((1, 2))) + net.linear(torch.ones(1, 5, dtype=x.dtype))[:, :3]

    x = normal(4, 2, 3, 5)
    model = Network(forward)
    made = model.linear(torch.ones(1, 5, dtype=x.dtype))[0, :3].detach()
    winners = model(x).argmax(dim=1)

    layer = calibrate(model, [x], output="predicted")["linear"]

    assert not layer.input.any()
    expected = [float(made[c]) * int((winners == c).sum()) for c in range(3)]
    torch.testing.assert_close(layer.output[:3], torch.tensor(expected, dtype=torch.float64))
    assert not layer.output[3:].any()


def test_a_constant_may_be_overwritten_by_the_model():
    def forward(net, x):
        made = net.linear(torch.ones(1, 2, 5, dtype=x.dtype)).relu_()
        return net.last(x.mean((1, 2))) + made[:, 0, :3]

    assert list(calibrate(Network(forward), [normal(4, 2, 3, 5)])) == ["last", "linear"]


def test_a_frozen_part_under_no_grad_does_not_matter_to_the_rest():
    def forward(net, x):
        with torch.no_grad():
            frozen = net.conv(x)
        return head(net, net.linear(x) + frozen)

    assert list(calibrate(Network(forward), [normal(2, 2, 4, 5)])) == ["last", "linear"]


def test_an_operation_that_lets_no_gradient_back_hides_what_is_before_it():
    class Wall(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return None

    def forward(net, x):
        return head(net, net.linear(x) + Wall.apply(net.conv(x)))

    assert list(calibrate(Network(forward), [normal(2, 2, 4, 5)])) == ["last", "linear"]


def test_an_input_used_twice_has_its_whole_gradient_in_each_layer():
    # R(a) is the relevance of the activation, however many operations read it: a * (w1 + w2)
    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
            self.one.weight = nn.Parameter(torch.tensor([[2.0]]))
            self.two.weight = nn.Parameter(torch.tensor([[5.0]]))

        def forward(self, x):
            return self.one(x) + self.two(x)

    stats = calibrate(Fork(), [torch.tensor([[3.0]])], output=lambda out, labels: out[:, 0])

    assert stats["one"].input.tolist() == stats["two"].input.tolist() == [3 * (2 + 5)]
    assert stats["one"].output.tolist() == [6]
    assert stats["two"].output.tolist() == [15]


def test_evaluation_mode_is_what_counts():
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.9), nn.Flatten(), nn.Linear(18, 3)
    ).double()
    expected = calibrate(model.eval(), [IMAGES])

    assert_same(calibrate(model.train(), [IMAGES]), expected)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float32, 1e-5)])
def test_narrow_floats_come_close_and_are_summed_in_float64(dtype, tolerance):
    narrow = classifier().to(dtype)
    x = IMAGES.to(dtype)
    exact = calibrate(copy.deepcopy(narrow).double(), [x.double()], output="norm")

    found = calibrate(narrow, [x], output="norm")

    assert found["0"].input.dtype == torch.float64
    assert_same(found, exact, tolerance)


def test_a_model_that_is_one_layer_is_named_by_the_empty_name():
    assert list(calibrate(nn.Linear(2, 2), [torch.ones(1, 2)])) == [""]


def test_a_layer_under_two_names_counts_under_the_first():
    layer = fill(nn.Linear(3, 3))
    twice = calibrate(nn.Sequential(layer, nn.Tanh(), layer), [normal(4, 3)])

    assert list(twice) == ["0"]
