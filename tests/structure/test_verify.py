"""Numbers in modules that are lengths of axes: found, changed with a cut, and no others."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from flexrel import ModelError
from flexrel.core.plan import Plan
from flexrel.structure import analyse, apply, verify
from graphs import HEADS, WIDTH, Attention, Tokens, layers, sentences
from networks import Mixer, batch, conv, images, random_, random_plan


def half(graph):
    """Return a plan that keeps the first half of all units, or one more."""
    masks = {s.name: torch.arange(s.units) < (s.units + 1) // 2 for s in graph.groups}
    return Plan(graph, masks)


def changes(model, inputs):
    """Return (module, name, place) -> the number, before and after a cut of half of all."""
    graph = analyse(random_(model), batch(inputs), "channel")
    cut = apply(model, half(graph))
    found = {}
    for attribute in graph.attributes:
        where = attribute.module, attribute.name, attribute.place
        values = [getattr(m.get_submodule(where[0]), where[1]) for m in (model, cut)]
        found[where] = tuple(v if where[2] is None else v[where[2]] for v in values)
    return found


class Beside(nn.Module):
    """Layers between which a function stands that uses numbers of the module."""

    def __init__(self, function, **numbers):
        super().__init__()
        self.function = function
        self.first, self.last = conv(3, 6), conv(6, 2)
        for name, value in numbers.items():
            setattr(self, name, value)

    def forward(self, x):
        return self.last(self.function(self, self.first(x).relu())).mean((2, 3))


def test_the_number_of_heads_shrinks_and_their_width_does_not():
    found = changes(Tokens(["by number"], norm=True), sentences())

    assert found["blocks.0", "num_heads", None] == (4, 2)
    assert ("blocks.0", "head_dim", None) not in found


def test_the_dense_model_keeps_its_numbers():
    model = random_(Tokens(["by number"], norm=True))
    graph = analyse(model, batch(sentences()), "channel")

    apply(model, half(graph))

    assert model.blocks[0].num_heads == HEADS


def test_groups_of_a_convolution_and_of_a_norm_shrink_with_whole_groups():
    model = nn.Sequential(
        *(conv(3, 16), nn.GroupNorm(4, 16), nn.Conv2d(16, 16, 1, groups=8), conv(16, 2))
    )

    found = changes(model, images().float())

    assert found["1", "num_groups", None] == (4, 2)
    assert found["2", "groups", None] == (8, 4)


def test_a_shape_that_the_module_holds_is_found_in_a_list_and_in_a_tuple():
    numbers = {"shape": (6, 8, 8), "again": [-1, 6, 64]}

    def forward(self, x):
        return x.view(-1, *self.shape).view(self.again).view(-1, *self.shape)

    model = Beside(forward, **numbers)
    found = changes(model, images().float())

    assert found == {("", "shape", 0): (6, 3), ("", "again", 1): (6, 3)}
    graph = analyse(model, batch(images().float()), "channel")
    cut = apply(model, half(graph))
    assert (cut.shape, cut.again) == ((3, 8, 8), [-1, 3, 64])


class Patches(nn.Module):
    """Attention among patches of as many pixels as it has heads."""

    def __init__(self):
        super().__init__()
        self.num_heads, self.patch = 4, 4
        self.qkv, self.out = nn.Linear(12, 3 * 12), nn.Linear(12, 12)
        self.head = nn.Linear(12, 2)

    def forward(self, x):
        x = functional.avg_pool2d(x, self.patch)  # [samples, 3, 2, 2]
        n = len(x)
        x = x.unflatten(2, (-1, 1)).flatten(1).view(n, 4, 3).repeat(1, 1, self.patch)
        parts = self.qkv(x).reshape(n, 4, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(*parts)
        return self.head(self.out(mixed.transpose(1, 2).reshape(n, 4, -1)).mean(1))


def test_a_number_that_is_no_length_of_the_axis_but_equal_to_it_stays():
    found = changes(Patches(), images().float())

    assert found == {("", "num_heads", None): (4, 2)}


def test_a_number_of_pixels_equal_to_the_number_of_channels_stays():
    model = Beside(lambda self, x: functional.adaptive_avg_pool2d(x, self.side), side=6)

    assert changes(model, images().float()) == {}


def test_a_number_that_could_be_either_of_two_lengths_is_left_alone():
    """Two axes of six, cut differently, and one number for both: no cut of one is right."""

    def forward(f, x):
        x, y = f[0](x), f[1](x)
        return f[2](x.view(-1, f.width, 8, 8)) + f[3](y.view(-1, f.width, 8, 8))

    class Same(Mixer):
        width = 6

        def __init__(self):
            super().__init__(layers(conv(3, 6), conv(3, 6), conv(6, 2), conv(6, 2)), forward)
            self.layer.width = 6

    with pytest.raises(ModelError, match="was tried and failed"):
        analyse(random_(Same()), batch(images().float()), "channel")


def test_sizes_of_linear_layers_are_told_by_their_weights_alone():
    class Own(nn.Linear):
        """Keeps numbers that look like its width, and are none."""

        def __init__(self, reads, makes):
            super().__init__(reads, makes)
            self.power = makes

        def forward(self, x):
            return super().forward(x) / self.power

    model = nn.Sequential(Own(3, 6), nn.ReLU(), nn.Linear(6, 2))
    graph = analyse(random_(model), batch(torch.randn(2, 3)), "channel")

    cut = apply(model, half(graph))

    assert graph.attributes == ()
    assert (cut[0].power, cut[0].out_features) == (6, 3)


# --- what a trial refuses -----------------------------------------------------------------------


def test_one_layer_of_many_alike_that_fails_is_the_only_one_refused():
    def block(number):
        if number == 2:
            return Mixer(conv(6, 6), lambda f, x: f(x).view(len(x), 6, 8, 8))
        return Mixer(conv(6, 6), lambda f, x: f(x))

    model = nn.Sequential(conv(3, 6), *(block(number) for number in range(5)), conv(6, 2))
    graph = analyse(random_(model), batch(images().float()), "channel")

    assert {p.name for p in graph.protected} == {"3.layer", "6"}
    assert len(graph.groups) == 5
    reason = next(p.reason for p in graph.protected if p.name == "3.layer")
    assert "a cut of it was tried and failed" in reason
    assert "invalid for input of size" in reason


def test_a_width_that_code_reads_off_another_layers_output_is_not_cut_apart_from_it():
    """Halves of both would fit, by chance."""

    def forward(f, x):
        one, two = f[0](x), f[1](x)
        return f[2](one) + f[3](two.reshape(len(x), one.shape[1], 8, 8))

    apart = Mixer(layers(conv(3, 8), conv(3, 8), conv(8, 6), conv(8, 6)), forward)
    model = random_(nn.Sequential(apart, conv(6, 5), conv(5, 2)))
    example = batch(images().float())

    graph = analyse(model, example, "channel")

    refused = {p.name: p.reason for p in graph.protected}
    assert "tried and failed" in refused["0.layer.0"]
    assert "tried and failed" in refused["0.layer.1"]
    for seed in range(5):
        plan = random_plan(graph, seed)
        verify(model, apply(model, plan), plan, example)


def test_a_trial_leaves_no_trace_where_it_fails():
    model = random_(Beside(lambda self, x: x.view(-1, 6, 8, 8), width=6))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    with pytest.raises(ModelError):
        analyse(model, batch(images().float()), "channel")

    assert model.width == 6
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_heads_and_neurons_are_told_apart_where_only_one_kind_can_be_cut():
    class Fixed(Attention):
        def _parts(self, x):
            n, t, _ = x.shape
            return [y.view(n, t, 4, 3).transpose(1, 2) for y in self._made(x)]  # written down

    model = Tokens(["feed-forward"], norm=True)
    model.blocks.append(Fixed())
    model.norms.append(nn.LayerNorm(WIDTH))

    graph = analyse(random_(model), batch(sentences()), "channel")

    assert [group.name for group in graph.groups] == ["blocks.0.0"]
    reasons = {p.name: p.reason for p in graph.protected}
    assert all("tried and failed" in reasons[f"blocks.1.{name}"] for name in "qkv")
