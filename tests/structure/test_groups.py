"""What of a network can be cut and what goes with it, by hand, and why the rest stays."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from flexrel import ModelError
from flexrel.core.batches import read_batches
from flexrel.structure import analyse
from networks import (
    COLOURS,
    Call,
    Owner,
    Residual,
    Several,
    bits,
    images,
    networks,
    random_,
    same_bits,
    wild_networks,
)
from reading import (
    LAYERS,
    chain,
    check_that_every_layer_is_accounted_for,
    members_of,
    named_groups,
    read,
    reasons,
    stripes,
)

examples = settings(max_examples=60, derandomize=True)


VECTORS = ("weight", "bias", "running_mean", "running_var")


# --- nothing is skipped in silence, nothing forbidden is offered ---------------------------------


@examples
@given(st.one_of(networks(), wild_networks()))
def test_every_layer_is_a_group_or_protected_with_a_reason(model):
    try:
        graph = read(model, images())
    except ModelError as error:
        assert error.exit_code == 4  # noqa: PT017 - not every network is refused
        return

    check_that_every_layer_is_accounted_for(model, graph)


@examples
@given(st.one_of(networks(), wild_networks()))
def test_reading_a_network_changes_nothing_of_it(model):
    model.train()
    list(model.modules())[-1].eval()
    before, random = bits(model), torch.get_rng_state()

    for granularity in ("element", "channel"):
        try:
            read(model, images(), granularity)
        except ModelError:
            continue

    assert same_bits(bits(model), before)
    assert torch.equal(torch.get_rng_state(), random)


@examples
@given(networks())
def test_channels_of_the_input_and_the_output_are_never_cut(model):
    try:
        graph = read(model, images())
    except ModelError:
        return
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, LAYERS)]
    last = f"{layers[-1][0]}.weight"
    cut = {(part.tensor, part.axis) for group in graph.groups for part in group.members}

    assert (last, 0) not in cut
    for name, layer in layers:
        if name.split(".")[0] == "0" and getattr(layer, "in_channels", None) == COLOURS:
            assert (f"{name}.weight", 1) not in cut or "second" in name
    assert reasons(graph)[layers[-1][0]] == "it is the network's output"


def test_the_members_of_a_group_by_hand():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False),  # 8 x 8 -> 6 x 6
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 4, 3, groups=4),  # -> 4 x 4
        nn.MaxPool2d(2),  # -> 2 x 2
        nn.Flatten(),
        nn.BatchNorm1d(16),
        nn.Linear(16, 2),
    )

    graph = read(model)

    (group,) = graph.groups
    assert (group.name, group.shape, group.units) == ("0", (4,), 4)
    one, four = [[unit] for unit in range(4)], stripes(4, 4)
    assert members_of(group) == {
        ("0.weight", 0): ("producer", one),
        **{(f"1.{v}", 0): ("follower", one) for v in VECTORS},
        **{(f"2.{v}", 0): ("follower", one) for v in ("weight", "bias")},
        **{(f"5.{v}", 0): ("follower", four) for v in VECTORS},
        ("6.weight", 1): ("consumer", four),
    }
    assert graph.shapes["2.weight"] == (4, 1, 3, 3)
    assert dict(graph.uses) == {"0.weight": 36, "2.weight": 16, "6.weight": 1}


def test_a_stripe_of_features_grows_when_it_is_flattened_again():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1),  # 4 channels of 2 x 2
        Owner((3,), lambda w, x: (x.flatten(1)[:, :, None] * w).flatten(1)),
        nn.Linear(4 * 4 * 3, 2),
    )

    graph = read(model, torch.zeros(2, 3, 2, 2))

    assert members_of(named_groups(graph)["0"])["2.weight", 1] == ("consumer", stripes(4, 4 * 3))


def test_a_residual_path_is_one_group_of_all_that_add_to_it():
    graph = read(chain(*(Residual(4, 5, 4, 1, "identity", norm=True) for _ in range(3))))

    stream = named_groups(graph)["0"]
    assert stream.units == 4
    makers = {name for (name, _), (role, _) in members_of(stream).items() if role == "producer"}
    readers = {name for (name, _), (role, _) in members_of(stream).items() if role == "consumer"}
    assert makers == {"0.weight", *(f"{block}.second.weight" for block in (1, 2, 3))}
    assert readers == {"4.weight", *(f"{block}.first.weight" for block in (1, 2, 3))}
    assert {f"{block}.first" for block in (1, 2, 3)} == set(named_groups(graph)) - {"0"}


def test_a_convolution_on_the_shortcut_makes_a_path_of_its_own():
    graph = read(chain(Residual(4, 5, 6, 2, "conv", norm=True), out=6))

    assert {name: group.units for name, group in named_groups(graph).items()} == {
        "0": 4,
        "1.first": 5,
        "1.second": 6,  # and the shortcut
    }


def test_padded_channels_of_a_shortcut_stay_and_the_others_are_cut_with_the_path():
    graph = read(chain(Residual(4, 5, 6, 2, "option A", norm=True), out=6))

    stream = named_groups(graph)["0"]
    assert stream.units == 4  # of six behind the block: the zeros padded in are of fixed number
    before = (6 - 4) // 2
    entries = [[unit + before] for unit in range(4)]
    assert members_of(stream)["1.second.weight", 0] == ("producer", entries)
    assert members_of(stream)["2.weight", 1] == ("consumer", entries)
    assert "1.second" not in reasons(graph)


def test_the_stream_before_a_convolution_shortcut_can_be_cut():
    graph = read(chain(Residual(4, 5, 6, 2, "conv", norm=False), out=6))

    assert {
        part.tensor for part in named_groups(graph)["0"].members if part.role == "consumer"
    } == {
        "1.first.weight",
        "1.shortcut.weight",
    }


CAUSES = {
    "cumsum": "torch.cumsum (",
    "cumsum in place": "Tensor.cumsum_ (",
    "custom operation": "flexrel_tests.relu (",
    "softmax": "softmax (",
    "flip": "torch.flip (",
    "shift by padding": "padding (",
    "every other channel": "a slice (",
    "channels by index": "an index of numbers (",
    "first channel zeroed": "an index (",
    "written into zeros": "an assignment to entries (",
    "group norm": "group norm (",
    "layer norm": "layer norm (",
    "channel mean": "torch.mean (",
    "channel maximum": "torch.amax (",
    "weight norm": "normalised together on the way, by weight norm (",
    "a layer fed with a constant too": "a tensor that is no parameter, buffer or input",
    "a size written down": "was tried and failed",
}


@pytest.mark.parametrize("name", CAUSES)
def test_a_layer_is_protected_with_the_cause_named(name):
    graph = read(random_(Several([name])))

    assert CAUSES[name] in reasons(graph)["parts.0.1"]
    assert {"stem", "head"} <= set(named_groups(graph))


@pytest.mark.parametrize(
    "name",
    [
        *("scale and shift", "tensor bound", "batch statistics", "instance norm", "prelu"),
        *("cat with itself", "cat with a layer", "chunk", "gated halves", "channel shuffle"),
        *("permute there and back", "einsum", "squeeze and excite", "transposed convolution"),
        *("upsampling", "pixel unshuffle", "where", "a weight first copied"),
    ],
)
def test_what_works_channel_by_channel_is_followed(name):
    assert "parts.0.1" in named_groups(read(random_(Several([name]))))


@pytest.mark.parametrize(
    ("groups", "inside", "units"),
    [
        (2, (3, 5), {"0": 3, "1": 5}),  # as much of each group: what it reads, and what it makes
        (8, (2, 2), {"0": 8}),  # more groups than there is in them: whole groups
        (4, (1, 3), {"0": 4}),  # three made of each channel
        (1, (4, 6), {"0": 4, "1": 6}),
    ],
)
def test_of_a_grouped_convolution_the_finer_half_is_cut(groups, inside, units):
    reads, makes = (groups * width for width in inside)
    model = nn.Sequential(
        nn.Conv2d(3, reads, 1), nn.Conv2d(reads, makes, 1, groups=groups), nn.Conv2d(makes, 2, 1)
    )

    graph = read(model)

    assert {name: found.units for name, found in named_groups(graph).items()} == units


def test_depthwise_on_the_input_and_one_channel_are_protected_too():
    model = nn.Sequential(
        nn.Conv2d(3, 3, 1, groups=3), nn.Conv2d(3, 1, 1), nn.Conv2d(1, 4, 1), nn.Conv2d(4, 1, 1)
    )

    why = reasons(read(model))

    assert why["0"] == "it goes together with the network's input"
    assert why["1"] == "it has one channel"


def test_all_tensors_that_come_out_are_outputs():
    class Features(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(5))

        def forward(self, x):
            made = [x := layer(x).relu() for layer in self.layers]
            return {"scores": made[4], "features": (made[1], [made[2]]), "loss": None}

    graph = read(Features(), torch.zeros(2, 4))

    assert set(named_groups(graph)) == {"layers.0", "layers.3"}
    assert {reasons(graph)[f"layers.{i}"] for i in (1, 2, 4)} == {"it is the network's output"}


def test_a_model_that_returns_no_tensor_is_refused():
    with pytest.raises(ModelError, match="returns a str in which no tensor"):
        read(nn.Sequential(nn.Conv2d(3, 2, 1), Call(str)))


# --- other networks -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pool",
    [
        nn.MaxPool1d(2),
        nn.AvgPool1d(2),
        nn.AdaptiveAvgPool1d(4),
        nn.AdaptiveMaxPool1d(4),
    ],
)
def test_networks_of_one_dimension_can_be_cut(pool):
    model = nn.Sequential(
        nn.Conv1d(2, 4, 3, padding=1), pool, nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(16, 2)
    )

    graph = read(model, torch.zeros(2, 2, 8))

    (group,) = graph.groups
    assert members_of(group)["4.weight", 1] == ("consumer", stripes(4, 4))


def test_networks_of_three_dimensions_can_be_cut():
    model = nn.Sequential(
        nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4), nn.MaxPool3d(2), nn.Flatten(), nn.Linear(32, 2)
    )

    graph = read(model, torch.zeros(2, 1, 6, 6, 6))

    assert members_of(graph.groups[0])["4.weight", 1] == ("consumer", stripes(4, 8))
    assert dict(graph.uses) == {"0.weight": 64, "4.weight": 1}


@pytest.mark.parametrize("samples", [1, 2, 3])
def test_linear_layers_on_tokens_are_followed_and_counted_for_each(samples):
    model = nn.Sequential(nn.Linear(3, 6), nn.GELU(), nn.Linear(6, 2))

    graph = read(model, torch.zeros(samples, 5, 3))

    assert list(named_groups(graph)) == ["0"]
    assert dict(graph.uses) == {"0.weight": 5, "2.weight": 5}


def test_batches_of_named_arguments_are_read():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.out = nn.Linear(3, 4), nn.Linear(2, 5), nn.Linear(9, 2)

        def forward(self, *, a, b, scale=1.0):
            return self.out(torch.cat([self.one(a), self.two(b)], 1)) * scale

    inputs = {"a": torch.zeros(2, 3), "b": torch.zeros(2, 2), "scale": 2.0, "labels": [0, 1]}
    (example,) = read_batches([inputs], Named())

    graph = analyse(Named(), example, "element")

    assert set(named_groups(graph)) == {"one", "two", "out"}


def test_control_flow_on_shapes_and_in_place_operations_are_followed_as_they_run():
    class Curly(nn.Module):
        def __init__(self):
            super().__init__()
            self.small, self.large = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 1)
            self.out = nn.Linear(4, 2)

        def forward(self, x):
            x = self.small(x) if x.shape[-1] < 10 else self.large(x)
            x += 1
            x.mul_(2).relu_()
            while x.shape[-1] > 2:
                x = functional.max_pool2d(x, 2)
            return self.out(x.mean((2, 3)))

    graph = read(Curly())

    assert list(named_groups(graph)) == ["small"]
    assert reasons(graph)["large"] == "it is never called on the example input"
