"""Relevance of parameters against explicit fully connected layers, unfolding, and conservation."""

import copy
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from flexrel import calibrate
from flexrel.relevance.layer import Window, reads, sum_patches
from flexrel.relevance.sums import sum_relevance
from reference import toeplitz

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")  # torch's, even kernels

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
MODES = ("zeros", "reflect", "replicate", "circular")


def fill(module, seed):
    """Replace every parameter by normal numbers of a seed, in float64."""
    draw = torch.Generator().manual_seed(seed)
    module.double().requires_grad_(False)
    for parameter in module.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
    return module


def normal(*shape, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=draw, dtype=torch.float64)


@st.composite
def convolutions(draw, axes):
    """A convolution of any settings, and an input size that it accepts."""

    def each(low, high):
        return tuple(draw(st.integers(low, high)) for _ in range(axes))

    kernel, dilation = each(1, 3 if axes < 3 else 2), each(1, 2)
    padding = draw(st.sampled_from(["each axis", "all axes", "same", "valid"]))
    stride = (1,) * axes if padding == "same" else each(1, 3)
    if padding == "each axis":
        padding = each(0, 2)
    elif padding == "all axes":
        padding = draw(st.integers(0, 2))
    mode = draw(st.sampled_from(MODES))
    groups = draw(st.integers(1, 3))  # one input channel a group: depthwise
    layer = CONVOLUTIONS[axes](
        groups * draw(st.integers(1, 2)),
        groups * draw(st.integers(1, 2)),
        kernel,
        stride,
        padding,
        dilation,
        groups,
        bias=draw(st.booleans()),
        padding_mode=mode,
    )
    size = []
    for axis in range(axes):
        sides = toeplitz.padding(layer, axis)
        reach = dilation[axis] * (kernel[axis] - 1) + 1
        least = max(1, reach - sum(sides), {"reflect": 1}.get(mode, 0) + max(sides))
        size.append(least + draw(st.integers(0, 2)))
    return fill(layer, draw(st.integers(0, 999))), tuple(size)


Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


def relevance_of_activations(network, x):
    """Each layer's `activation * gradient`, before and after it, by plain autograd."""
    activations = [x.clone().requires_grad_()]
    for module in network:
        activations.append(module(activations[-1]))
    top = activations[-1].amax(dim=1).sum()
    gradients = torch.autograd.grad(top, activations)
    relevance = [(a * g).detach() for a, g in zip(activations, gradients, strict=True)]
    return dict(enumerate(pairwise(relevance)))


def agrees_with_the_matrix(network, x):
    """Every layer's parameter relevance is that of its explicit matrix, for every part."""
    stats = calibrate(network, [x], output="predicted")
    relevance = relevance_of_activations(network, x)
    for name, sums in stats.items():
        layer = network.get_submodule(name)
        inputs = relevance[int(name)][0]
        channels_first = inputs if isinstance(layer, Convolution) else inputs.movedim(-1, 1)
        by_sample = channels_first.reshape(*channels_first.shape[:2], -1).sum(2)
        samples = by_sample.abs().sum(0)
        torch.testing.assert_close(sums.input_samples, samples, rtol=1e-9, atol=1e-9)
        for part in ("sum", "positive", "absolute"):
            slow = toeplitz.layer_relevance(layer, *relevance[int(name)], part)
            torch.testing.assert_close(
                sums.parameter_relevance(part), slow, rtol=1e-9, atol=1e-9 * float(slow.abs().max())
            )


def small_network(layer, size, samples=2):
    """Conv -> relu -> flatten -> linear around the layer, and an input for it."""
    x = normal(samples, layer.in_channels, *size, seed=1)
    features = layer(x).flatten(1).shape[1]
    last = fill(nn.Linear(features, 3), 2)
    return nn.Sequential(layer, nn.ReLU(), nn.Flatten(), last), x


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_the_explicit_matrix_is_the_convolution(axes):
    @settings(max_examples=20)
    @given(convolutions(axes))
    def check(drawn):
        layer, size = drawn
        x = normal(1, layer.in_channels, *size)

        torch.testing.assert_close(toeplitz.multiply(layer, x[0]), layer(x)[0])

    check()


@pytest.mark.parametrize(("axes", "examples"), [(1, 50), (2, 50), (3, 15)])
def test_a_convolution_has_the_relevance_of_its_explicit_matrix(axes, examples):
    @settings(max_examples=examples)
    @given(convolutions(axes))
    def check(drawn):
        agrees_with_the_matrix(*small_network(*drawn))

    check()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding", ["same", (2, 1)])
def test_every_padding_mode_has_the_relevance_of_its_explicit_matrix(mode, padding):
    layer = nn.Conv2d(2, 4, (4, 3), padding=padding, dilation=(1, 2), groups=2, padding_mode=mode)

    agrees_with_the_matrix(*small_network(fill(layer, 0), (7, 5)))


def test_a_convolution_that_no_window_of_fits_twice_reads_just_what_it_reads():
    layer = nn.Conv1d(1, 1, 2, stride=3)  # reads positions 0 1, 3 4, and never 2
    window = Window(kernel=2, stride=3, dilation=1, before=0, after=0, mode="zeros")

    agrees_with_the_matrix(*small_network(fill(layer, 0), (5,)))
    assert reads(window, 5).tolist() == [[1, 0, 0, 1, 0], [0, 1, 0, 0, 1]]


def test_reads_counts_copies_that_padding_makes():
    window = Window(kernel=3, stride=1, dilation=1, before=1, after=1, mode="replicate")

    # padded: 0 | 0 1 2 | 2; kernel position 0 reads 0 0 1, then 0 1 2, then 1 2 2
    assert reads(window, 3).tolist() == [[2, 1, 0], [1, 1, 1], [0, 1, 2]]


def test_reads_counts_no_zeros_that_padding_adds():
    window = Window(kernel=3, stride=1, dilation=1, before=1, after=1, mode="zeros")

    assert reads(window, 3).tolist() == [[1, 1, 0], [1, 1, 1], [0, 1, 1]]


@settings(max_examples=40)
@given(
    shape=st.lists(st.integers(1, 3), min_size=1, max_size=3),  # samples, then any tokens
    width=st.integers(1, 4),
    bias=st.booleans(),
    seed=st.integers(0, 999),
)
def test_a_linear_layer_has_the_relevance_of_its_rows(shape, width, bias, seed):
    first = fill(nn.Linear(width, 3, bias=bias), seed)
    second = fill(nn.Linear(3 * torch.Size(shape[1:]).numel(), 2), seed + 1)
    network = nn.Sequential(first, nn.Tanh(), nn.Flatten(), second)

    agrees_with_the_matrix(network, normal(*shape, width, seed=seed + 2))


def test_a_linear_layer_by_hand():
    layer = nn.Linear(2, 2, bias=False)
    layer.weight = nn.Parameter(torch.tensor([[1.0, -2.0], [3.0, 4.0]]))
    x = torch.tensor([[1.0, 2.0], [-1.0, 1.0]])  # outputs [-3, 11] and [-3, 1]: class 1 wins twice

    sums = calibrate(layer, [x], output="predicted")[""]

    # R(b) = [0, 11], [0, 1]; R(a) = a * [3, 4] = [3, 8], [-3, 4]
    assert sums.output.tolist() == [0, 12]
    assert sums.input.tolist() == [0, 12]
    assert sums.input_absolute.tolist() == [6, 12]
    assert sums.parameter_relevance().tolist() == [[0, 12], [12, 24]]
    assert sums.parameter_relevance("positive").tolist() == [[3, 12], [15, 24]]
    assert sums.parameter_relevance("absolute").tolist() == [[6, 12], [18, 24]]


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_convolution_has_the_relevance_of_its_unfolded_patches(groups):
    layer = fill(nn.Conv2d(4, 8, (3, 2), (2, 1), (1, 0), (1, 2), groups), 0)
    network, x = small_network(layer, (7, 6), samples=3)
    given, made = relevance_of_activations(network, x)[0]
    patches = functional.unfold(given, (3, 2), (1, 2), (1, 0), (2, 1))  # [samples, C kh kw, L]
    columns = patches.sum((0, 2)).view(groups, 1, 4 // groups, 3, 2)
    rows = made.sum((0, 2, 3)).view(groups, 8 // groups, 1, 1, 1)

    sums = calibrate(network, [x], output="predicted")["0"]

    torch.testing.assert_close(sums.parameter_relevance(), (columns + rows).flatten(0, 1))


@settings(max_examples=30)
@given(convolutions(2), st.integers(0, 99))
def test_summed_patches_are_the_sum_of_the_unfolded_tensor(drawn, seed):
    layer, size = drawn
    relevance = normal(layer.in_channels, *size, seed=seed)
    (top, bottom), (left, right) = (toeplitz.padding(layer, axis) for axis in (0, 1))
    mode = {"zeros": "constant"}.get(layer.padding_mode, layer.padding_mode)
    padded = functional.pad(relevance[None], (left, right, top, bottom), mode=mode)
    windows = [
        Window(kernel, stride, dilation, *sides, layer.padding_mode)
        for kernel, stride, dilation, sides in zip(
            layer.kernel_size,
            layer.stride,
            layer.dilation,
            ((top, bottom), (left, right)),
            strict=True,
        )
    ]
    unfolded = functional.unfold(
        padded, layer.kernel_size, dilation=layer.dilation, stride=layer.stride
    )

    summed = sum_patches(relevance, windows)

    torch.testing.assert_close(summed, unfolded.sum((0, 2)).view_as(summed))


@pytest.mark.parametrize("output", ["predicted", "label", "norm"])
def test_relevance_is_conserved_by_relu_networks_without_biases(output):
    # Each kernel tiles its input, so that every input unit of a layer is read exactly once.
    network = nn.Sequential(
        nn.Conv2d(3, 6, 2, stride=2, bias=False),
        nn.ReLU(),
        nn.Conv2d(6, 4, 1, bias=False, groups=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 8, bias=False),
        nn.ReLU(),
        nn.Linear(8, 5, bias=False),
    )
    fill(network, 0)
    x, labels = normal(7, 3, 8, 8, seed=1), torch.arange(7) % 5
    scores = network(x)
    started = {
        "predicted": scores.amax(1).sum(),
        "label": scores[torch.arange(7), labels].sum(),
        # R(b) of the last layer is b * dy/db = b * b
        "norm": scores.square().sum(),
    }[output]

    stats = calibrate(network, [(x, labels)], output=output)

    assert list(stats) == ["0", "2", "6", "8"]
    for layer in stats.values():
        torch.testing.assert_close(layer.input.sum(), started)
        torch.testing.assert_close(layer.output.sum(), started)


def test_output_relevance_is_conserved_where_windows_overlap():
    network = nn.Sequential(
        nn.Conv1d(2, 3, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv1d(3, 4, 5, stride=2, padding=2, bias=False),
        nn.Flatten(),
        nn.Linear(16, 3, bias=False),
    )
    fill(network, 0)
    x = normal(4, 2, 7, seed=1)

    stats = calibrate(network, [x], output="predicted")

    for layer in stats.values():
        torch.testing.assert_close(layer.output.sum(), network(x).amax(1).sum())


def test_relevance_does_not_depend_on_how_the_input_lies_in_memory():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2))
    fill(network, 0)
    x = normal(2, 3, 5, 5)
    strided = torch.zeros(2, 3, 5, 10, dtype=torch.float64)[..., ::2].copy_(x)
    channels_last = copy.deepcopy(network).to(memory_format=torch.channels_last)

    expected = calibrate(network, [x])

    for model, image in [
        (network, strided),
        (network, x.transpose(2, 3).contiguous().transpose(2, 3)),
        (channels_last, x.to(memory_format=torch.channels_last)),
    ]:
        found = calibrate(model, [image])
        for name, layer in expected.items():
            torch.testing.assert_close(found[name].input, layer.input, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(found[name].output, layer.output, rtol=1e-12, atol=1e-12)


def test_relevance_is_summed_over_all_but_the_axis_of_units():
    activation = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
    gradient = torch.tensor([[2.0, 1.0], [-1.0, 0.5]])  # products [2, -2], [-3, 2]

    sums, samples = sum_relevance(activation, gradient, 1, {})

    assert sums.tolist() == [[-1, 0], [5, 4]]  # plain, absolute
    assert samples.tolist() == [5, 4]  # one position: what they are in absolute


def test_a_samples_positions_add_up_before_their_absolute_value_is_taken():
    activation = torch.tensor([[[1.0, -3.0], [2.0, 2.0]], [[1.0, 1.0], [0.0, -5.0]]])
    ones = torch.ones(2, 2, 2)  # two samples of two channels of two positions

    by_channel = sum_relevance(activation, ones, 1, {})
    by_position = sum_relevance(activation, ones, 1, {}, by_position=True)
    channels_last = sum_relevance(activation.mT, ones, 2, {})

    for _, samples in (by_channel, by_position, channels_last):
        assert samples.tolist() == [2 + 2, 4 + 5]
    assert by_channel[0].tolist() == [[0, -1], [6, 9]]
    assert by_position[0][0].tolist() == [[2, -2], [2, -3]]


def test_sums_use_the_same_memory_again_and_mix_nothing_up():
    scratch = {}
    first, _ = sum_relevance(torch.full((3, 4), 2.0), torch.ones(3, 4), 1, scratch)
    smaller, _ = sum_relevance(torch.full((2, 1), 5.0), torch.ones(2, 1), 1, scratch)
    larger, _ = sum_relevance(torch.full((9, 2), -1.0), torch.ones(9, 2), 1, scratch)

    assert first.tolist() == [[6] * 4] * 2
    assert smaller.tolist() == [[10], [10]]
    assert larger.tolist() == [[-9, -9], [9, 9]]
    assert [memory.numel() for memory in scratch.values()] == [18]


def test_products_of_halves_neither_overflow_nor_are_rounded():
    large = torch.full((2, 1), 300.0, dtype=torch.float16)  # 90,000 is no float16
    odd = torch.full((1, 1), 1 + 2**-7, dtype=torch.bfloat16)  # its square is no bfloat16

    assert sum_relevance(large, large, 1, {})[0].tolist() == [[180_000], [180_000]]
    assert sum_relevance(odd, odd, 1, {})[0][0].item() == (1 + 2**-7) ** 2
