"""Networks of all shapes: what of them is cut together, counted by hand, and that it is right."""

import copy
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flexrel import ModelError
from flexrel.core import cost
from flexrel.core.batches import Batch
from flexrel.structure import analyse, apply
from flexrel.structure.groups import groups_of, resolve
from flexrel.structure.rules import dependencies_of
from flexrel.structure.trace import trace
from graphs import (
    BLOCKS,
    HEADED,
    HEADS,
    SPATIAL,
    TOKENS,
    TOKENS_IN,
    WIDTH,
    Dimensions,
    Images,
    Tokens,
    conv3,
    flow,
    image_networks,
    macs_by_torch,
    sentences,
    sizes_are_true,
    token_networks,
)
from networks import (
    COLOURS,
    Mixer,
    Residual,
    batch,
    bits,
    conv,
    images,
    masked,
    random_,
    random_plan,
    same_bits,
)

seeds = st.integers(0, 10**6)
examples = settings(max_examples=40, derandomize=True)


def read(model, inputs, granularity="channel"):
    return analyse(random_(model.double()), batch(inputs), granularity)


def units(graph):
    return {group.name: group.units for group in graph.groups}


def kinds(graph):
    return {group.name: group.kind for group in graph.groups}


def outputs(model, inputs):
    with torch.no_grad():
        return copy.deepcopy(model).eval()(inputs)


def check_a_cut(model, inputs, others, seed):
    """Cut a network at random: all that a plan says of the smaller one is true of it."""
    graph = analyse(model, batch(inputs), "channel")
    plan = random_plan(graph, seed)
    before = bits(model)

    cut = apply(model, plan)

    assert same_bits(bits(model), before)
    expected = outputs(masked(model, plan), others)
    assert torch.allclose(outputs(cut, others), expected, rtol=1e-9, atol=1e-9)
    assert cost.parameters(graph, plan.masks) == sum(p.numel() for p in cut.parameters())
    assert cost.parameters(graph) == sum(p.numel() for p in model.parameters())
    assert cost.macs(graph, plan.masks) == macs_by_torch(cut, inputs)
    assert cost.macs(graph) == macs_by_torch(model, inputs)
    sizes_are_true(cut)

    cut(inputs).square().sum().backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in cut.parameters())
    other = random_(apply(model, plan), seed=5)
    other.load_state_dict(cut.state_dict())
    assert torch.equal(outputs(other, others), outputs(cut, others))
    assert all(p.grad is None for p in model.parameters())


@examples
@given(model=image_networks(), seed=seeds)
def test_image_networks_of_any_blocks_are_cut_rightly(model, seed):
    check_a_cut(model, images(), images(3, seed=1), seed)


@examples
@given(model=token_networks(), seed=seeds)
def test_token_networks_of_any_blocks_are_cut_rightly(model, seed):
    check_a_cut(model, sentences(), sentences(3, seed=1), seed)


@pytest.mark.parametrize("dimensions", SPATIAL)
def test_networks_of_one_to_three_dimensions_are_cut_rightly(dimensions):
    model = random_(Dimensions(dimensions).double())
    inputs = torch.randn(3, 2, *[4] * dimensions).double()

    assert units(read(model, inputs)) == {"stem": 3, "inner.0": 5, "groups": 6, "up": 4}
    for seed in range(3):
        check_a_cut(model, inputs[:2], inputs, seed)


# --- what is cut, by hand -----------------------------------------------------------------------

# A first layer of 8 channels and a head around a block: `stem` is a group in all of these but
# where a block can't do without one of its channels.
SITES = {
    "identity": {"stem": 8, ".first": 5},
    "option A": {"stem": 8, ".first": 5},
    "projection": {"stem": 8, ".first": 5, ".second": 6},
    "dense": {"stem": 8, ".layer.0": 3},
    "inception": {"stem": 8, ".layer.0": 3, ".layer.1": 5, ".layer.2": 4},
    # What is put in the place of the right half has to have as many channels as the left.
    "chunk and join": {"stem": 4, ".layer.0": 6, ".layer.1": 4},
    "native shuffle": {"stem": 4, ".layer.0": 6},
    "shuffle by view": {"stem": 4, ".layer.0": 6},
    "uneven split": {".layer.0": 4},
    "channels taken apart": {"stem": 4, ".layer.0": 4},
    # 4 groups that read 2 and make 2 each: whole ones go, as there are more of them.
    "groups": {"stem": 4},
    # 2 groups that read 4 and make 8 each: one of the 4 in both groups, one of the 8 in both.
    "wider groups": {"stem": 4, "": 8},
    "many groups": {"stem": 8, ".0": 8, ".4": 8},
    # Of 2 times 4 channels, mixed, the second layer reads 2 groups of 2 times 2.
    "groups shuffled": {"stem": 4, ".0": 2, ".2": 4},
    "ResNeXt": {"stem": 8, ".layer.0": 8},
    "depthwise": {"stem": 8},
    "depthwise, multiplied": {"stem": 8},
    "inverted": {"stem": 8, ".layer.0": 16},
    "transposed": {"stem": 8, "": 6},
    "transposed groups": {"stem": 4},
    "transposed depthwise": {"stem": 8},
    "pixel shuffle": {"stem": 8, ".0": 5},  # of 20 channels, 4 make one
    "pixel unshuffle": {"stem": 8, ".2": 6},
    "squeeze and excite": {"stem": 8, ".layer.0": 4},
    "gated": {"stem": 8, ".layer.0": 5},
    "gated by chunk": {"stem": 8, ".layer.0": 5},
    "group norm": {"stem": 8, ".0": 4},
    "group norm of single channels": {"stem": 8},
    "channels last": {"stem": 8, ".layer.1": 16},
    "scaled layer": {"stem": 8},
    "tiled": {"stem": 8},
    "spatial members": {"stem": 8},
    "U-Net": {"stem": 8, ".layer.0": 6, ".layer.1": 10, ".layer.2": 5, ".layer.3": 8},
    "used twice": {"stem": 8},
    "windows": {"stem": 8, ".qkv": 4, ".proj": 8},
}


@pytest.mark.parametrize("name", SITES)
def test_the_groups_of_a_block_are_those_counted_by_hand(name):
    expected = {
        group if group == "stem" else f"blocks.0{group}": count
        for group, count in SITES[name].items()
    }

    assert units(read(Images([name]), images())) == expected


def test_every_block_is_counted_or_has_a_test_of_its_own():
    assert BLOCKS.keys() - SITES.keys() == {"weight norm"}


@pytest.mark.parametrize("name", sorted(BLOCKS))
def test_each_block_alone_is_cut_rightly(name):
    model = random_(Images([name], flat=True).double())

    check_a_cut(model, images(), images(3, seed=1), seed=3)


@pytest.mark.parametrize("name", sorted(TOKENS))
def test_a_path_without_a_norm_is_cut_with_the_tables_and_the_head_that_reads_it(name):
    graph = read(Tokens([name], tied=True), sentences())

    (path,) = [group for group in graph.groups if group.name == "embedding"]
    assert (path.units, path.kind) == (WIDTH, "channel")
    tensors = {part.tensor for part in path.members}
    assert {"embedding.weight", "start", "positions"} <= tensors
    assert "head.weight" not in graph.shapes  # it is the embedding


@pytest.mark.parametrize("name", sorted(HEADED))
def test_attention_is_cut_by_heads_whatever_its_spelling(name):
    graph = read(Tokens([name], norm=True), sentences())

    (group,) = graph.groups
    assert (group.units, group.kind) == (HEADED[name], "head")
    model = random_(Tokens([name], norm=True).double())
    check_a_cut(model, sentences(), sentences(3, seed=1), seed=1)


@pytest.mark.parametrize("kernel", ["flash", "efficient", "cudnn"])
def test_attention_is_cut_by_heads_whatever_kernel_an_accelerator_has(kernel):
    operation = getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}_attention")
    options = () if kernel == "flash" else (None, False)

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleList(nn.Linear(32, 32) for _ in range(3))
            self.out = nn.Linear(32, 7)

        def forward(self, x):
            q, k, v = (part(x).unflatten(2, (4, 8)).transpose(1, 2) for part in self.parts)
            return self.out(operation(q, k, v, *options)[0].transpose(1, 2).flatten(2))

    # such kernels run on accelerators, and on tensors without values
    inputs = Batch(0, (torch.randn(2, 12, 32, device="meta"),), {}, None)
    dependencies = dependencies_of(trace(Attention().to("meta"), inputs))

    (group,) = groups_of(dependencies, resolve(dependencies))
    assert (group.units, group.kind) == (4, "head")


def test_an_accelerators_kernel_of_a_recurrent_layer_is_counted_like_the_processors():
    class Recurrent(nn.LSTM):
        def forward(self, x):
            weights = [getattr(self, name) for name in self._flat_weights_names]
            state = x.new_zeros(1, len(x), 7)
            shape = (2, 7, 0, 1, True, 0.0, False, False, [], None)  # an LSTM of 7, batch first
            return torch.ops.aten._cudnn_rnn(x, weights, 4, None, state, state, *shape)[0]

    x, layers = (
        torch.randn(2, 6, 5),
        [kind(5, 7, batch_first=True) for kind in (nn.LSTM, Recurrent)],
    )
    plain = dependencies_of(trace(layers[0], Batch(0, (x,), {}, None)))
    there = dependencies_of(trace(layers[1].to("meta"), Batch(0, (x.to("meta"),), {}, None)))

    steps = 6  # of each sample, in each of which every weight takes part
    assert there.uses == plain.uses == [("weight_ih_l0", steps), ("weight_hh_l0", steps)]


@pytest.mark.parametrize("name", sorted(TOKENS.keys() - HEADED.keys()))
def test_neurons_of_a_block_on_tokens_are_cut_though_a_norm_keeps_the_path(name):
    graph = read(Tokens([name], norm=True), sentences())

    (group,) = graph.groups
    assert group.kind == "channel"
    assert group.units == {"mixed over time": 7, "over time": 8}.get(name, 10)


# --- networks that people make, by hand ---------------------------------------------------------


def sequence(*modules, last):
    return nn.Sequential(
        conv3(COLOURS, 8), *modules, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, 2)
    )


def test_the_path_of_three_residual_blocks_is_one_group():
    blocks = [Residual(8, inner, 8, 1, "identity", norm=True) for inner in (3, 4, 5)]

    graph = read(sequence(*blocks, last=8), images())

    assert units(graph) == {"0": 8, "1.first": 3, "2.first": 4, "3.first": 5}


def test_each_stage_of_padded_shortcuts_adds_channels_of_its_own():
    """Two channels of zeros on either side: what is added to them can be left out."""
    blocks = [Residual(8, 5, 12, 2, "option A", norm=True), Residual(12, 5, 12, 1, "identity", 1)]

    graph = read(sequence(*blocks, last=12), images())

    assert units(graph) == {"0": 8, "1.first": 5, "2.first": 5}
    path = graph.groups[0]
    second = {p.tensor: p.index.flatten().tolist() for p in path.members}["1.second.weight"]
    assert second == list(range(2, 10))


def test_layers_of_a_dense_block_are_groups_that_all_later_layers_read():
    grow = [
        flow([conv3(channels, 4)], lambda f, x: torch.cat([x, f[0](x.relu())], 1))
        for channels in (8, 12, 16)
    ]

    graph = read(sequence(*grow, last=20), images())

    assert units(graph) == {"0": 8, "1.layer.0": 4, "2.layer.0": 4, "3.layer.0": 4}
    groups = {group.name: group for group in graph.groups}
    readers = {p.tensor: p.index.tolist() for p in groups["1.layer.0"].members if p.axis == 1}
    where = [[8], [9], [10], [11]]  # behind the first layer's
    assert readers == dict.fromkeys(("2.layer.0.weight", "3.layer.0.weight", "6.weight"), where)


def test_a_convolution_in_32_groups_has_32_units():
    block = nn.Sequential(conv(8, 64), nn.ReLU(), conv3(64, groups=32), nn.ReLU(), conv(64, 8))

    graph = read(sequence(block, last=8), images())

    assert units(graph) == {"0": 8, "1.0": 32, "1.4": 8}
    (group,) = [group for group in graph.groups if group.name == "1.0"]
    assert {p.tensor: p.index.shape[1] for p in group.members if p.axis == 0} == {
        **dict.fromkeys(("1.0.weight", "1.0.bias", "1.2.weight", "1.2.bias"), 2)
    }
    cut = apply(random_(sequence(block, last=8).double()), random_plan(graph, 1))
    assert cut[1][2].groups * 2 == cut[1][2].in_channels == cut[1][2].out_channels < 64


def test_a_block_of_attention_has_a_group_of_its_heads_beside_that_of_its_neurons():
    graph = read(Tokens(["attention", "feed-forward"], norm=True), sentences())

    assert units(graph) == {"blocks.0.q": HEADS, "blocks.1.0": 10}
    assert kinds(graph) == {"blocks.0.q": "head", "blocks.1.0": "channel"}
    reasons = {p.name: p.reason for p in graph.protected}
    assert "layer norm (module 'norms.0', graphs.py:" in reasons["blocks.1.2"]


def test_heads_alone_are_cut_on_request_and_other_layers_say_so():
    graph = read(Tokens(["attention", "feed-forward"]), sentences(), "head")

    assert units(graph) == {"blocks.0.q": HEADS}
    reasons = {p.name: p.reason for p in graph.protected}
    assert reasons["blocks.1.0"] == "it makes no heads"


def test_without_attention_there_are_no_heads_to_cut():
    with pytest.raises(ModelError, match=r"pruned by head .*it makes no heads"):
        read(Images(["identity"]), images(), "head")


def test_queries_go_with_the_head_of_keys_that_they_share():
    graph = read(Tokens(["grouped, expanded"], norm=True), sentences())

    (group,) = graph.groups
    widths = {p.tensor: p.index.shape[1] for p in group.members}
    assert widths == {
        **dict.fromkeys(("blocks.0.q.weight", "blocks.0.q.bias", "blocks.0.out.weight"), 2 * 3),
        **dict.fromkeys(("blocks.0.k.weight", "blocks.0.k.bias", "blocks.0.v.weight"), 3),
    }


def test_columns_of_a_position_bias_table_go_with_their_heads():
    graph = read(Images(["windows"]), images())

    (heads,) = [group for group in graph.groups if group.kind == "head"]
    index = {(p.tensor, p.axis): p.index.tolist() for p in heads.members}
    assert index["blocks.0.table", 1] == [[0], [1], [2], [3]]
    # A head has two features of each of queries, keys and values, 8 apart.
    assert index["blocks.0.qkv.weight", 0][0] == [0, 1, 8, 9, 16, 17]
    assert index["blocks.0.qkv.weight", 0][3] == [6, 7, 14, 15, 22, 23]


def test_torchs_own_attention_is_cut_rightly_or_left_alone_with_a_reason():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 10, batch_first=True)
            self.stem, self.head = nn.Linear(3, WIDTH), nn.Linear(WIDTH, 2)

        def forward(self, x):
            return self.head(self.layer(self.stem(x)))

    model = random_(Own().double())
    inputs = torch.randn(3, TOKENS_IN, 3).double()

    graph = read(model, inputs)

    assert units(graph)["layer.linear1"] == 10
    names = {group.name for group in graph.groups} | {p.name for p in graph.protected}
    assert "layer.self_attn.out_proj" in names
    check_a_cut(model, inputs[:2], inputs, seed=1)


def test_a_normed_weight_makes_channels_that_go_and_reads_channels_that_stay():
    graph = read(Images(["weight norm"]), images())

    (group,) = graph.groups
    assert group.units == 6
    assert {(p.tensor.rsplit(".", 1)[-1], p.axis) for p in group.members} == {
        ("g", 0),
        ("v", 0),
        ("bias", 0),
        ("weight", 1),  # the head's
    }
    reasons = {p.name: p.reason for p in graph.protected}
    assert re.fullmatch(
        r"the weights along it are normalised together .* by weight norm \(module '[\w.]+', .*\)",
        reasons["stem"],
    )


# --- what still must stay -----------------------------------------------------------------------


STAY = {
    "softmax over channels": lambda x: x.softmax(1),
    "a sum over channels": lambda x: x / x.sum(1, keepdim=True).exp(),
    "its own width written down": lambda x: x.view(-1, 6, 8, 8),
    "half of it by number": lambda x: torch.cat([x[:, :2], x[:, 3:]], 1)[:, :6],
    "another order": lambda x: x[:, [5, 3, 1, 0, 2, 4]],
    "a sort": lambda x: x.sort(1).values,
    "a kernel over channels": lambda x: nn.functional.avg_pool3d(
        x[:, None], (3, 1, 1), 1, (1, 0, 0)
    )[:, 0],
}


@pytest.mark.parametrize("name", STAY)
def test_what_mixes_or_numbers_channels_keeps_them(name):
    out = {"half of it by number": 5}.get(name, 6)
    model = nn.Sequential(
        conv(COLOURS, 6),
        flow(  # what is beside it reads the channels in order, and could do with fewer
            [conv(6, 4), conv(out, 4)], lambda f, x: f[0](x) + f[1](STAY[name](x))
        ),
        conv(4, 2),
    )

    graph = read(model, images())

    assert units(graph) == {"1.layer.0": 4}
    (reason,) = [p.reason for p in graph.protected if p.name == "0"]
    assert ("tried and failed" in reason) == (name == "its own width written down"), reason


def test_efficient_channel_attention_slides_over_channels_and_keeps_them():
    def forward(f, x):
        return x * f[0](x.mean((2, 3))[:, None]).sigmoid().transpose(1, 2)[..., None]

    model = sequence(conv(8, 6), flow([nn.Conv1d(1, 1, 3, padding=1)], forward), conv(6, 5), last=5)

    graph = read(model, images())

    assert units(graph) == {"0": 8, "3": 5}
    assert {p.name: p.reason for p in graph.protected}["1"] == "a convolution slides over it"


def test_groups_that_other_groups_straddle_are_left_alone():
    """12 channels made as 4 groups of 3 and read as 6 of 2: no group is made of whole others."""
    model = sequence(conv(8, 24, groups=4), conv(24, 24, groups=6), conv(24, 6), last=6)

    graph = read(model, images())

    assert "3" in units(graph)
    check_a_cut(random_(model), images(), images(3, seed=1), seed=2)


def test_groups_of_two_layers_on_one_path_are_cut_alike():
    """A norm in 2 groups leaves but whole groups; the layer in 2 groups goes with them."""

    def forward(f, x):
        one, two = f[0](x), f[1](x)
        return (f[4](f[2](one) + two) + f[5](f[3](two))).mean((2, 3))

    parts = [conv(COLOURS, 16), conv(COLOURS, 16), nn.GroupNorm(2, 16), conv(16, groups=2)]
    model = flow([*parts, conv(16, 2), conv(16, 2)], forward)

    assert units(read(model, images())) == {"layer.0": 2}
    check_a_cut(random_(model), images(), images(3, seed=1), seed=2)


def test_two_networks_at_once_can_share_a_block():
    block = conv3(8)
    model = Mixer(
        nn.ModuleList([conv(COLOURS, 8), conv(COLOURS, 8), block, conv(8, 2)]),
        lambda f, x: f[3](f[2](f[0](x)) - f[2](f[1](x))).mean((2, 3)),
    )

    graph = read(model, images())

    (stem, made) = graph.groups
    assert (stem.units, made.units) == (8, 8)
    producers = {p.tensor for p in stem.members if p.role == "producer"}
    assert producers == {"layer.0.weight", "layer.1.weight"}
    check_a_cut(random_(model.double()), images(), images(3, seed=1), seed=2)


def test_layers_that_run_over_channels_cost_less_when_channels_go():
    check_a_cut(
        random_(Tokens(["mixed over time"]).double()), sentences(), sentences(3, seed=1), seed=1
    )
