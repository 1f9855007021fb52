"""Reading a network: what can be cut, what goes with it, what is left alone, and why."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from flexrel import ModelError, UsageError
from flexrel.core.batches import read_batches
from flexrel.structure import analyse
from flexrel.structure.trace import trace
from networks import (
    COLOURS,
    Call,
    Mixer,
    Owner,
    Residual,
    Several,
    batch,
    bits,
    images,
    networks,
    random_,
    same_bits,
    unchecked,
    wild_networks,
)

LAYERS = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
examples = settings(max_examples=60, derandomize=True)
image = torch.zeros(2, COLOURS, 8, 8)


def read(model, inputs=image, granularity="channel", keep=()):
    return analyse(model, batch(inputs), granularity, keep)


def named_groups(graph):
    return {group.name: group for group in graph.groups}


VECTORS = ("weight", "bias", "running_mean", "running_var")


def parts(group):
    """Return (tensor, axis) -> role, and the entries of each unit."""
    return {(p.tensor, p.axis): (p.role, p.index.tolist()) for p in group.members}


def stripes(units, inner):
    """Return the entries of each unit where it has `inner` in a row."""
    return [list(range(unit * inner, (unit + 1) * inner)) for unit in range(units)]


def reasons(graph):
    found = {p.name: p.reason for p in graph.protected}
    assert len(found) == len(graph.protected), "a layer is protected twice"
    return found


def chain(*between, out=4):
    """A network whose first layer could be cut if what stands between were harmless."""
    return nn.Sequential(nn.Conv2d(COLOURS, 4, 3, 1, 1), *between, nn.Conv2d(out, 2, 1))


# --- nothing is skipped in silence, nothing forbidden is offered ---------------------------------


def check_that_every_layer_is_accounted_for(model, graph):
    tensors = {id(p): name for name, p in model.named_parameters()}
    layers = {
        n: tensors.get(id(m.weight)) for n, m in model.named_modules() if isinstance(m, LAYERS)
    }
    members = [part for group in graph.groups for part in group.members]
    cut = {part.tensor for part in members if part.axis == 0 or part.makes}
    alone = reasons(graph)
    for name, weight in layers.items():
        assert (name in alone) != (weight in cut), f"{name} must be cut or protected, not both"
    assert all(alone.values())


@examples
@given(st.one_of(networks(), wild_networks()))
def test_every_layer_is_a_site_or_protected_with_a_reason(model):
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


def test_the_slices_of_a_site_by_hand():
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
    assert parts(group) == {
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

    assert parts(named_groups(graph)["0"])["2.weight", 1] == ("consumer", stripes(4, 4 * 3))


def test_a_residual_path_is_one_site_of_all_that_add_to_it():
    graph = read(chain(*(Residual(4, 5, 4, 1, "identity", norm=True) for _ in range(3))))

    stream = named_groups(graph)["0"]
    assert stream.units == 4
    makers = {name for (name, _), (role, _) in parts(stream).items() if role == "producer"}
    readers = {name for (name, _), (role, _) in parts(stream).items() if role == "consumer"}
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
    assert parts(stream)["1.second.weight", 0] == ("producer", entries)
    assert parts(stream)["2.weight", 1] == ("consumer", entries)
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
    "cumsum": "aten.cumsum",
    "cumsum in place": "aten.cumsum_",
    "custom operation": "flexrel_tests.relu",
    "softmax": "aten._softmax",
    "flip": "aten.flip",
    "shift by padding": "aten.constant_pad_nd",
    "every other channel": "aten.slice",
    "channels by index": "aten.index",
    "first channel zeroed": "aten.select",
    "written into zeros": "aten.copy_",
    "group norm": "aten.native_group_norm",
    "layer norm": "aten.native_layer_norm",
    "channel mean": "aten.mean",
    "channel maximum": "aten.amax",
    "weight norm": "aten._weight_norm_interface",  # over all that the layer behind reads
    "a layer fed with a constant too": "a tensor made on the way",
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

    assert why["0"] == "it is the network's input"
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


# --- one weight, several uses -------------------------------------------------------------------


def test_a_tied_embedding_is_cut_with_what_its_other_use_reads():
    class Language(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(7, 4)
            self.inner, self.outer = nn.Linear(4, 5), nn.Linear(5, 4)
            self.decoder = nn.Linear(4, 7, bias=False)
            self.decoder.weight = self.embedding.weight

        def forward(self, tokens):
            return self.decoder(self.outer(self.inner(self.embedding(tokens)).relu()))

    graph = read(Language(), torch.zeros(2, dtype=torch.long))

    assert {name: group.units for name, group in named_groups(graph).items()} == {
        "embedding": 4,  # and what the layer behind makes, which the decoder reads
        "inner": 5,
    }
    check_that_every_layer_is_accounted_for(Language(), graph)


def test_a_weight_used_in_a_formula_is_cut_with_what_it_is_used_for_later():
    model = Mixer(
        nn.ModuleList([nn.Conv2d(a, b, 1) for a, b in ((3, 5), (5, 4), (5, 4), (4, 4), (4, 2))]),
        lambda f, x: (
            functional.conv2d(f[1](y := f[0](x)), f[3].weight.tanh()).mean() * f[4](f[3](f[2](y)))
        ),
    )

    graph = read(model)

    assert set(named_groups(graph)) == {"layer.0", "layer.1"}
    assert ("layer.3.weight", 1) in parts(named_groups(graph)["layer.1"])


def test_tied_layers_are_one_site_with_both_uses_cut_and_counted():
    model = nn.Sequential(
        nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2)
    )
    model[2].weight = model[4].weight  # of the second and third, reads and makes one space

    graph = read(model, torch.zeros(2, 4))

    uses = [times for name, times in graph.uses if name == "2.weight"]
    assert uses == [1, 1]
    check_that_every_layer_is_accounted_for(model, graph)
    assert named_groups(graph)["0"].units == 4
    cut = {(part.tensor, part.axis) for part in named_groups(graph)["0"].members}
    assert {("0.weight", 0), ("2.weight", 0), ("2.weight", 1), ("5.weight", 1)} <= cut


def test_a_module_used_twice_counts_twice_and_is_cut_once():
    shared = nn.Linear(4, 4)
    model = nn.Sequential(nn.Linear(3, 4), shared, nn.ReLU(), shared, nn.Linear(4, 2))

    graph = read(model, torch.zeros(2, 3))

    assert [times for name, times in graph.uses if name == "1.weight"] == [1, 1]
    assert list(named_groups(graph)) == ["0"]
    check_that_every_layer_is_accounted_for(model, graph)


def test_a_norm_shared_by_two_layers_joins_them_into_one_site():
    shared = nn.BatchNorm1d(4)
    model = Mixer(
        nn.ModuleList([nn.Linear(3, 4), nn.Linear(3, 4), shared, nn.Linear(4, 2), nn.Linear(4, 2)]),
        lambda f, x: f[3](f[2](f[0](x))) + f[4](f[2](f[1](x))),
    )

    (group,) = read(model, torch.zeros(2, 3)).groups

    assert {part.tensor for part in group.members if part.role == "producer"} == {
        "layer.0.weight",
        "layer.1.weight",
    }


def test_a_norm_shared_with_a_layer_that_is_protected_protects_both():
    model = Mixer(
        nn.ModuleList([nn.Linear(3, 4), nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)]),
        lambda f, x: f[3](f[2](f[0](x))) + f[3](f[2](f[1](x).cumsum(1))),
    )

    with pytest.raises(ModelError, match=r"layer\.0: aten\.cumsum works along it"):
        read(model, torch.zeros(2, 3))


def test_samples_that_a_layer_makes_are_followed_through_a_convolution():
    model = Mixer(
        nn.ModuleList([nn.Linear(2, 5), nn.Linear(5, 4), nn.Linear(4, 2), nn.Conv1d(3, 2, 1)]),
        lambda f, x: (f[3]((y := f[0](x.t())).t()[:, :, None]), f[2](f[1](y))),
    )

    graph = read(model, torch.zeros(2, 3))  # 2 samples become 5, as many as come out

    assert set(named_groups(graph)) == {"layer.1"}
    assert reasons(graph)["layer.0"] == "it is the network's output"


def test_a_layer_that_is_never_called_is_protected_once_at_both_granularities():
    model = Mixer(
        nn.ModuleList([nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(5, 5)]),
        lambda f, x: f[1](f[0](x)),
    )

    for granularity in ("channel", "element"):
        graph = read(model, torch.zeros(2, 3), granularity)

        assert reasons(graph)["layer.2"] == "it is never called on the example input"
        assert "layer.2.weight" not in reasons(graph)


def test_a_layer_used_in_a_way_that_is_not_followed_says_so():
    model = Mixer(
        nn.ModuleList([nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(2, 2)]),
        lambda f, x: f[1](f[0](x)) * f[2].weight.cumsum(0).sum(),
    )

    graph = read(model, torch.zeros(2, 3))

    assert reasons(graph)["layer.2"] == "aten.cumsum works along it"


def test_a_computed_weight_says_so():
    model = nn.Sequential(
        nn.Linear(3, 4), nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 2)
    )

    graph = read(model, torch.zeros(2, 3), "element")

    assert set(named_groups(graph)) == {"0", "2"}
    assert reasons(graph)["1"] == "its weight is computed from other parameters"


# --- elements -----------------------------------------------------------------------------------


def test_elements_of_all_layers_that_are_called_can_go_and_nothing_else():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, groups=1),
        nn.GroupNorm(2, 4),
        nn.Conv2d(4, 4, 1, groups=2),
        nn.Flatten(),
        nn.Linear(144, 2),
    )
    model.extra = nn.Parameter(torch.zeros(3, 3))

    graph = read(model, granularity="element")

    assert {s.name: s.shape for s in graph.groups} == {
        "0": (4, 3, 3, 3),
        "2": (4, 2, 1, 1),
        "4": (2, 144),
    }
    assert graph.units == 4 * 27 + 4 * 2 + 288
    assert reasons(graph) == {"extra": "it is not the weight of a Linear or Conv layer"}


def test_a_model_that_is_one_linear_layer():
    model = nn.Linear(3, 2)

    assert [group.name for group in read(model, torch.zeros(2, 3), "element").groups] == [""]
    with pytest.raises(ModelError, match="the model itself: it is the network's output") as caught:
        read(model, torch.zeros(2, 3))
    assert caught.value.exit_code == 4


# --- keep ---------------------------------------------------------------------------------------


def four():
    """A pair of layers with a depthwise one between, and one more pair."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 5, 1), nn.Conv2d(5, 2, 1)
    )


def test_kept_layers_are_protected_on_request():
    graph = read(four(), keep=["2"])

    assert list(named_groups(graph)) == ["0"]
    assert reasons(graph)["2"] == "kept on request"


def test_keeping_a_layer_keeps_all_that_goes_with_it():
    graph = read(four(), keep=["1"])  # the depthwise one, which has no group of its own

    assert list(named_groups(graph)) == ["2"]
    assert reasons(graph)["1"] == "kept on request"
    assert reasons(graph)["0"] == "it goes together with 1, which is kept on request"


def test_keeping_a_tied_layer_by_its_second_name_keeps_its_elements():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2))
    model[1].weight = model[0].weight

    graph = read(model, torch.zeros(2, 3), "element", keep=["1"])

    assert list(named_groups(graph)) == ["2"]
    assert reasons(graph)["1"] == "kept on request"


def test_an_unknown_name_to_keep_is_refused_with_names_that_are_close():
    model = nn.ModuleDict(
        {"conv_in": nn.Conv2d(3, 4, 1), "conv_out": nn.Conv2d(4, 2, 1), "classify": nn.Linear(2, 2)}
    )

    with pytest.raises(UsageError, match=r"no layer 'conv_inn'.*did you mean conv_in") as caught:
        read(model, keep=["conv_inn"])

    assert caught.value.exit_code == 2
    assert "classify" not in str(caught.value)


def test_keeping_everything_leaves_nothing_to_prune():
    with pytest.raises(ModelError, match=r"can be pruned by channel.*kept on request") as caught:
        read(four(), keep=["0", "2"])

    assert caught.value.exit_code == 4


# --- models that are refused --------------------------------------------------------------------


def test_a_model_without_layers_is_refused():
    with pytest.raises(ModelError, match="no layer of the network can be pruned by element"):
        read(nn.Sequential(nn.ReLU()), granularity="element")


def test_layers_of_which_only_one_can_be_cut_are_not_all_offered():
    """Python that knows the sum of two sizes runs with either cut, and not with both."""

    def forward(f, x):
        y = f[3](f[2](f[1](f[0](x))))
        return y if f[0].out_channels + f[2].out_channels >= 7 else y[:, :1]

    model = Mixer(
        nn.ModuleList([nn.Conv2d(a, b, 1) for a, b in ((3, 4), (4, 3), (3, 5), (5, 2))]), forward
    )

    graph = read(model)

    assert set(named_groups(graph)) == {"layer.0", "layer.1"}
    assert "was tried and failed" in reasons(graph)["layer.2"]


def test_an_unknown_granularity_is_refused_with_those_that_are_known():
    with pytest.raises(UsageError, match="'filter' is not known; there are: element, channel"):
        unchecked(analyse)(four(), batch(image), "filter")


def test_a_model_that_does_not_run_is_refused_and_left_as_it_was():
    model = four().train()
    before = bits(model)

    with pytest.raises(ModelError, match=r"does not run on batch 0 .*\(2, 5, 8, 8\)"):
        read(model, torch.zeros(2, 5, 8, 8))

    assert same_bits(bits(model), before)


def test_a_model_that_draws_random_numbers_does_not_disturb_the_callers():
    model = chain(Call(lambda x: x * (1 + 0 * torch.rand(()))))
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)

    read(model)

    assert torch.equal(torch.rand(4), expected)


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
    assert parts(group)["4.weight", 1] == ("consumer", stripes(4, 4))


def test_networks_of_three_dimensions_can_be_cut():
    model = nn.Sequential(
        nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4), nn.MaxPool3d(2), nn.Flatten(), nn.Linear(32, 2)
    )

    graph = read(model, torch.zeros(2, 1, 6, 6, 6))

    assert parts(graph.groups[0])["4.weight", 1] == ("consumer", stripes(4, 8))
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


# --- the trace ----------------------------------------------------------------------------------


def test_the_trace_names_operations_with_their_library():
    names = [op.name for op in trace(Several(["custom operation"]), batch(image)).operations]

    assert "flexrel_tests.relu" in names
    assert "aten.convolution" in names


def test_the_trace_knows_parameters_inputs_and_outputs():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    inputs = torch.zeros(4, 3)

    traced = trace(model, batch(inputs))

    assert traced.samples == 4
    assert [ref.shape for ref in traced.inputs] == [(4, 3)]
    assert [ref.shape for ref in traced.outputs] == [(4, 2)]
    assert set(traced.parameters.values()) == set(model.state_dict())
    (norm,) = (op for op in traced.operations if "batch_norm" in op.name)
    assert {traced.parameters.get(ref.key) for ref in norm.inputs} == {
        None,  # the linear layer's result
        "1.weight",
        "1.bias",
        "1.running_mean",
        "1.running_var",
    }
