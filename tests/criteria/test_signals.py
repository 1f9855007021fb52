"""What is known of units, against its definition: magnitude and relevance of channels and heads."""

import torch
from torch import nn

from flexrel import RelevanceStats, calibrate
from flexrel.core.graph import GroupMember, PruningGraph, PruningGroup, ResidualBlock
from flexrel.criteria import GroupSignals, without_unmeasured
from flexrel.relevance import LayerRelevance


def stripes(tensor, axis, inner, role, units):
    """The part of a tensor in which each unit has `inner` entries in a row."""
    return GroupMember(tensor, axis, torch.arange(units * inner).view(units, inner), role)


def channels(units, *members, name="a"):
    return PruningGroup(name, (units,), tuple(stripes(*part, units) for part in members))


def channel_signals(group, tensors=None, sums=None):
    layers = {
        name: LayerRelevance(inputs, torch.ones(1).double(), inputs.abs(), torch.ones(1).double())
        for name, inputs in (sums or {}).items()
    }
    stats = RelevanceStats(layers, 1.0, "gradient-input", "norm")
    return GroupSignals(group, tensors or {}, stats)


PRODUCER, BIAS = ("a.weight", 0, 1, "producer"), ("a.bias", 0, 1, "follower")
CONV, LINEAR = ("b.weight", 1, 1, "consumer"), ("c.weight", 1, 3, "consumer")


def test_a_channels_magnitude_is_the_root_mean_square_of_the_weights_that_make_it():
    weight = torch.tensor([[[3.0, 4.0]], [[0.0, 0.0]], [[-1.0, 7.0]]])  # [3 out, 1 in, 2 wide]
    tensors = {"a.weight": weight, "a.bias": torch.full((3,), 1e6), "b.weight": torch.ones(9, 3)}
    group = channels(3, PRODUCER, BIAS, CONV)

    magnitude = channel_signals(group, tensors).magnitude()

    torch.testing.assert_close(magnitude, torch.tensor([12.5, 0, 25]).sqrt())


def test_mean_squares_of_several_makers_add_up():
    tensors = {
        "a.weight": torch.tensor([[3.0], [0.0]]),  # mean squares 9, 0
        "d.weight": torch.tensor([[4.0, 4.0], [2.0, 0.0]]),  # 16, 2
    }
    group = channels(2, PRODUCER, ("d.weight", 0, 1, "producer"))

    magnitude = channel_signals(group, tensors).magnitude()

    torch.testing.assert_close(magnitude, torch.tensor([25.0, 2]).sqrt())


def test_a_channel_read_by_a_convolution_has_the_mean_over_kernel_positions():
    inputs = torch.tensor([[[1.0, 2.0], [3.0, 6.0]], [[0.0, 0.0], [0.0, -8.0]]]).double()

    signals = channel_signals(channels(2, PRODUCER, CONV), sums={"b": inputs})

    assert signals.relevance("sum").tolist() == [3, -2]
    assert signals.relevance("positive").tolist() == [3, 0]
    assert signals.relevance("absolute").tolist() == [3, 2]


def test_a_channel_read_by_a_linear_layer_has_the_sum_over_its_stripe():
    inputs = torch.tensor([1.0, 2, 4, 8, -16, 32]).double()  # stripes of three features

    signals = channel_signals(channels(2, PRODUCER, LINEAR), sums={"c": inputs})

    assert signals.relevance("sum").tolist() == [1 + 2 + 4, 8 - 16 + 32]
    assert signals.relevance("positive").tolist() == [7, 40]
    assert signals.relevance("absolute").tolist() == [7, 56]


def test_a_channel_with_two_readers_has_the_larger_relevance():
    sums = {
        "b": torch.tensor([[2.0, 4.0], [1.0, 1.0]]).double(),  # means 3, 1
        "c": torch.tensor([1.0, 1, 1, 5, 5, 5]).double(),  # stripes 3, 15
    }

    signals = channel_signals(channels(2, PRODUCER, BIAS, CONV, LINEAR), sums=sums)

    assert signals.relevance("sum").tolist() == [3, 15]


def test_a_channels_entries_may_lie_anywhere():
    weight = torch.tensor([[3.0], [1.0], [4.0], [1.0]])
    where = torch.tensor([[0, 2], [3, 1]])
    group = PruningGroup("a", (2,), (GroupMember("a.weight", 0, where, "producer"),))
    read = PruningGroup("a", (2,), (GroupMember("c.weight", 1, where, "consumer"),))

    magnitude = channel_signals(group, {"a.weight": weight}).magnitude()
    relevance = channel_signals(read, sums={"c": torch.tensor([1.0, 2, 4, 8]).double()})

    torch.testing.assert_close(magnitude, torch.tensor([12.5, 1.0]).sqrt())
    assert relevance.relevance("sum").tolist() == [5, 10]


def test_a_channels_relevance_is_that_of_its_activations_where_each_is_read_once():
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2)
    ).double()
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(5, 2, 5, 5, generator=draw, dtype=torch.float64)
    first = model[:2](x)  # what the 1 x 1 convolution reads
    second = model[2:4](first)  # what the linear layer reads, flattened
    top = model[4:](second).amax(1).sum()
    by_hand = [
        (a * g).sum((0, 2, 3))
        for a, g in zip((first, second), torch.autograd.grad(top, (first, second)), strict=True)
    ]
    stats = calibrate(model, [x], output="predicted")
    groups = [
        channels(3, ("2.weight", 1, 1, "consumer"), name="0"),
        channels(4, ("5.weight", 1, 9, "consumer"), name="2"),
    ]

    for group, expected in zip(groups, by_hand, strict=True):
        found = GroupSignals(group, {}, stats).relevance("sum")
        torch.testing.assert_close(found, expected.detach().float())


def test_the_positive_part_of_real_stats_is_never_negative():
    # A root of -1e-20 would be NaN: rounding must not make one, in whatever order sums are made.
    draw = torch.Generator().manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10)
    )
    batches = [torch.randn(5, 2, 4, 4, generator=draw) * 10.0**k for k in range(-3, 4)]

    stats = calibrate(model, batches) + calibrate(model, batches[2:]).scaled(0.1)

    for layer in stats.values():
        assert all((vector >= 0).all() for vector in layer.vectors("positive"))
        assert all((vector >= 0).all() for vector in layer.vectors("absolute"))


def test_relevance_without_a_part_is_positive_of_weights_and_by_sample_of_channels():
    ones, inputs = torch.ones(1).double(), torch.tensor([3.0, -1.0]).double()
    layer = LayerRelevance(inputs, ones, inputs.abs(), ones, input_samples=2 * inputs.abs())
    stats = RelevanceStats({"b": layer}, 1.0, "gradient-input", "norm")

    weights = GroupSignals(PruningGroup("b", (1, 2)), {}, stats)
    read = GroupSignals(channels(2, ("b.weight", 1, 1, "consumer")), {}, stats)

    assert weights.relevance().tolist() == [[3 + 1, 0 + 1]]
    assert read.relevance().tolist() == [6, 2]


# --- what was not measured ----------------------------------------------------------------------


def test_groups_and_blocks_whose_relevance_was_not_measured_are_left_alone_and_named():
    ones = torch.ones(1).double()
    stats = RelevanceStats({"b": LayerRelevance(ones, ones, ones, ones)}, 1.0, "gamma", "norm")
    known = channels(2, PRODUCER, CONV)
    lost = channels(2, ("d.weight", 0, 1, "producer"), ("c.weight", 1, 1, "consumer"), name="d")
    blocks = tuple(
        ResidualBlock(name, (f"{name}.weight",), (maker,), 1, None)
        for name, maker in (("first", "b"), ("second", "c"))
    )
    depth = PruningGroup("blocks", (2,), blocks=blocks)

    found = without_unmeasured(PruningGraph("channel", (known, lost, depth), (), {}, ()), stats)

    assert found.groups[0] is known
    assert found.groups[1].blocks == blocks[:1]
    assert found.groups[1].shape == (1,)
    assert [(p.name, p.reason) for p in found.protected] == [
        ("d", "the relevance of c was not measured: none came to it"),
        ("second", "the relevance of c was not measured: none came to it"),
    ]
