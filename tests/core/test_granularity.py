"""N:M and blocks: what is one unit, which go, and what that costs; by hand and against loops."""

import json
import re

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

import flexrel
from flexrel import (
    AccuracyDrop,
    BudgetError,
    Bytes,
    FlexRel,
    MACs,
    Magnitude,
    ModelError,
    PackError,
    Parameters,
    Plan,
    Relevance,
    Sparsity,
    UsageError,
    calibrate,
    load,
    pack,
)
from flexrel.cli import main
from flexrel.core import cost
from flexrel.core.granularity import Pattern, WeightLayout
from flexrel.core.graph import PruningGraph, PruningGroup
from flexrel.criteria import UnitRanking, scores_of
from flexrel.criteria.ranking import PatternRanking, kept_of_groups
from flexrel.io import encode
from flexrel.structure import analyse, apply, named_tensors
from networks import Mixer, batch, bits, random_, random_plan, same_bits
from reference import patterns as slow

drawn = settings(max_examples=80, derandomize=True)
CRITERIA = [Magnitude(), Relevance(), FlexRel(0.4), FlexRel(0.4, blend="product")]
# Few distinct values on purpose: ties are where selection breaks.
FEW = [-1.0, -0.0, 0.0, 0.5, 2.0]


# --- names --------------------------------------------------------------------------------------


def test_names_are_read():
    assert Pattern.of("2:4") == Pattern("group", (2, 4))
    assert Pattern.of("1:16") == Pattern("group", (1, 16))
    assert Pattern.of("block:4x4") == Pattern("block", (4, 4))
    assert Pattern.of("block:1x16") == Pattern("block", (1, 16))
    assert [Pattern.of(name).unit for name in ("element", "channel", "head", "depth")] == [
        "element",
        "channel",
        "head",
        "depth",
    ]
    zeros = [Pattern.of(name).zeros for name in ("element", "2:4", "block:4x4", "channel", "depth")]
    assert zeros == [True, True, True, False, False]


REFUSED = [
    *("0:4", "4:4", "5:4", "2:0", "2:", ":4", "2:4:8", "2x4", "-2:4", "02:4", "2:4 ", "2.0:4"),
    *("block:0x4", "block:4x0", "block:4", "block:4:4", "block:4x4x4", "block:", "block", "4x4"),
    *("", "Element", "group", "filter", "2:9999999999", "٢:٤"),
]


@pytest.mark.parametrize("text", REFUSED)
def test_other_names_are_refused_with_those_that_there_are(text):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))

    with pytest.raises(
        UsageError, match="element, channel, head, depth, N:M with 0 < N < M, block:ROWS"
    ):
        Pattern.of(text)
    with pytest.raises(UsageError, match="is not known"):
        flexrel.prune(model, calibration=[torch.ones(2, 8)], granularity=text)


# --- layers of all kinds ------------------------------------------------------------------------


LAYERS = {
    "linear": lambda o, i, g, k: nn.Linear(i, o),
    "conv1d": lambda o, i, g, k: nn.Conv1d(i * g, o * g, k, groups=g),
    "conv2d": lambda o, i, g, k: nn.Conv2d(i * g, o * g, (k, 2), groups=g),
    "conv3d": lambda o, i, g, k: nn.Conv3d(i * g, o * g, (k, 1, 2), groups=g),
    "transposed": lambda o, i, g, k: nn.ConvTranspose2d(i * g, o * g, (k, 2), groups=g),
}
layers = st.builds(
    lambda kind, o, i, g, k: LAYERS[kind](o, i, g, k),
    st.sampled_from(sorted(LAYERS)),
    st.integers(1, 5),
    st.integers(1, 9),
    st.integers(1, 3),
    st.integers(1, 3),
)


def layout_of(layer, block=None):
    transposed = isinstance(layer, nn.ConvTranspose2d)
    return WeightLayout(tuple(layer.weight.shape), getattr(layer, "groups", 1), transposed, block)


def few_scores(draw, shape):
    count = torch.Size(shape).numel()
    return torch.tensor(draw(st.lists(st.sampled_from(FEW), min_size=count, max_size=count))).view(
        shape
    )


def test_layers_see_what_the_matrix_says():
    """A row makes one output channel, a column reads one input channel of each group."""
    for groups, kind in ((1, nn.Conv2d), (2, nn.Conv2d), (2, nn.ConvTranspose2d)):
        layer = kind(6, 4, 2, groups=groups, bias=False)
        layout = layout_of(layer)
        assert (layout.outputs, layout.inputs) == (4, 6 // groups)
        for row in range(4):
            matrix = torch.zeros(4, 4, 6 // groups)
            matrix[row] = 1
            layer.weight.data = layout.weight(matrix)
            seen = layer(torch.ones(1, 6, 3, 3))[0].flatten(1).any(1)
            assert seen.tolist() == [channel == row for channel in range(4)]
        for column in range(6 // groups):
            matrix = torch.zeros(4, 4, 6 // groups)
            matrix[..., column] = 1
            layer.weight.data = layout.weight(matrix)
            for channel in range(6):
                image = torch.zeros(1, 6, 3, 3)
                image[0, channel] = 1
                assert bool(layer(image).any()) == (channel % (6 // groups) == column)


@drawn
@given(layer=layers)
def test_a_matrix_is_the_weight_in_another_order(layer):
    weight = torch.arange(float(layer.weight.numel())).view(layer.weight.shape)
    layout = layout_of(layer)

    matrix = layout.matrix(weight)

    assert torch.equal(layout.weight(matrix), weight)
    for index, output, one, where in slow.places(layer):
        assert matrix[output, where, one] == weight[index]


# --- N:M ----------------------------------------------------------------------------------------


def test_two_of_four_by_hand():
    scores = torch.tensor([[5.0, 1, 4, 2, 9, 8], [1, 1, 1, 1, -7, -8], [-4, -3, -2, -1, 0, 0]])

    mask = kept_of_groups(scores, WeightLayout((3, 6)), 2, 4)

    assert mask.int().tolist() == [
        [1, 0, 1, 0, 1, 1],  # the last two are no group and stay
        [1, 1, 0, 0, 1, 1],  # of equals the earlier stay
        [0, 0, 1, 1, 1, 1],
    ]


def test_groups_of_a_convolution_are_input_channels_at_one_kernel_position():
    scores = torch.tensor([[1.0, 4, 2, 3], [8, 7, 6, 5]]).T.reshape(1, 4, 1, 2)

    mask = kept_of_groups(scores, WeightLayout((1, 4, 1, 2)), 2, 4)

    assert mask[0, :, 0, 0].int().tolist() == [0, 1, 0, 1]
    assert mask[0, :, 0, 1].int().tolist() == [1, 1, 0, 0]


@drawn
@given(layer=layers, data=st.data())
def test_n_of_m_is_that_of_loops(layer, data):
    layout = layout_of(layer)
    of = data.draw(st.integers(2, 5))
    kept = data.draw(st.integers(1, of - 1))
    scores = few_scores(data.draw, layer.weight.shape)

    mask = kept_of_groups(scores, layout, kept, of)

    assert set(map(tuple, mask.nonzero().tolist())) == slow.kept_of_groups(layer, scores, kept, of)
    rows = layer.weight.numel() // layout.inputs
    whole, rest = divmod(layout.inputs, of)
    assert int(mask.sum()) == rows * (whole * kept + rest)


def groups_of(**shapes):
    groups = tuple(
        PruningGroup(name, shape, layout=WeightLayout(shape)) for name, shape in shapes.items()
    )
    return PruningGraph("1:2", groups, (), {}, ())


def test_layers_that_lose_least_by_each_weight_take_the_pattern_first():
    graph = groups_of(a=(1, 2), b=(2, 4), c=(1, 2), d=(1, 2))
    scores = {
        "a": torch.tensor([[3.0, 9.0]]),  # loses 3
        "b": torch.tensor([[1.0, 9.0, 9.0, 1.0], [1.0, 9.0, 9.0, 1.0]]),  # 1 each, 4 in all
        "c": torch.tensor([[2.0, 2.0]]),  # 2
        "d": torch.tensor([[torch.inf, 2.0]]),  # 2, and is later
    }

    removal = PatternRanking(graph, scores)

    took = [
        {name for name, mask in removal.plan(count).masks.items() if not mask.all()}
        for count in range(5)
    ]
    assert took == [set(), {"b"}, {"b", "d"}, {"b", "c", "d"}, {"a", "b", "c", "d"}]
    assert [removal.plan(count).removed for count in range(5)] == [0, 4, 5, 6, 7]
    assert removal.plan(4).masks["d"].tolist() == [[True, False]]
    assert removal.plan(4).masks["c"].tolist() == [[True, False]]
    for count in (-1, 5):
        with pytest.raises(UsageError, match="4 can have it"):
            removal.plan(count)


def test_sites_without_a_layout_have_no_groups():
    with pytest.raises(UsageError, match="no layout"):
        PatternRanking(
            PruningGraph("2:4", (PruningGroup("a", (1, 4)),), (), {}, ()), {"a": torch.ones(1, 4)}
        )


# --- blocks -------------------------------------------------------------------------------------


def test_blocks_by_hand():
    layout = WeightLayout((3, 5), block=(2, 2))
    scores = torch.arange(15.0).view(3, 5)

    assert layout.grid == (2, 3)
    assert layout.means(scores).tolist() == [[3.0, 5.0, 6.5], [10.5, 12.5, 14.0]]
    mask = torch.tensor([[True, False, True], [False, True, False]])
    assert layout.entries(mask) == 4 + 2 + 2
    assert layout.spread(mask).int().tolist() == [
        [1, 1, 0, 0, 1],
        [1, 1, 0, 0, 1],
        [0, 0, 1, 1, 0],
    ]


@drawn
@given(layer=layers, data=st.data())
def test_blocks_are_those_of_loops(layer, data):
    rows, columns = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 7))
    layout = layout_of(layer, (rows, columns))
    scores = few_scores(data.draw, layer.weight.shape)
    found = slow.blocks(layer, rows, columns)

    means = layout.means(scores).flatten()
    assert len(means) == layout.grid[0] * layout.grid[1] == len(found)
    for block, mean in zip(found, means.tolist(), strict=True):
        assert mean == pytest.approx(sum(scores[index].item() for index in block) / len(block))
    for at, block in enumerate(found):
        mask = torch.zeros(layout.grid, dtype=torch.bool)
        mask.view(-1)[at] = True
        assert set(map(tuple, layout.spread(mask).nonzero().tolist())) == set(block)
        assert layout.entries(mask) == len(block)


def test_blocks_of_equal_scores_are_equal_whatever_their_size():
    means = WeightLayout((50, 70), block=(16, 32)).means(torch.full((50, 70), 0.1))

    assert (means == torch.tensor(0.1)).all()


def test_infinite_scores_have_a_mean():
    scores = torch.tensor([[torch.inf, -torch.inf, torch.inf, torch.inf]])

    means = WeightLayout((1, 4), block=(1, 2)).means(scores)

    assert means[0, 0] == 0
    assert means.isfinite().all()


def test_a_block_may_be_larger_than_any_weight():
    assert WeightLayout((3, 5), block=(999_999_999, 999_999_999)).grid == (1, 1)


# --- what of a network can have it --------------------------------------------------------------


def tower():
    """A convolution of 3 inputs, a grouped, a depthwise and a transposed one, a linear layer."""
    return random_(
        nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.ReLU(),
            nn.Conv2d(8, 6, 3, groups=2),
            nn.Conv2d(6, 6, 2, groups=6),
            nn.ReLU(),
            nn.ConvTranspose2d(6, 5, 2, bias=False),
            nn.Flatten(),
            nn.Linear(80, 3),
        )
    )


PICTURES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_layers_with_fewer_inputs_than_a_group_are_protected():
    graph = analyse(tower(), batch(PICTURES), "2:4")

    assert {group.name: group.shape for group in graph.groups} == {
        "2": (6, 4, 3, 3),
        "5": (6, 5, 2, 2),
        "7": (3, 80),
    }
    assert {p.name: p.reason for p in graph.protected} == {
        "0": "a group takes 4 inputs, and an output of it has 3",
        "3": "a group takes 4 inputs, and an output of it has 1",
    }


def test_a_weight_of_one_block_is_protected():
    graph = analyse(tower(), batch(PICTURES), "block:5x20")

    assert {group.name: group.shape for group in graph.groups} == {
        "0": (2, 2),  # 8 x 27
        "2": (2, 2),  # twice 3 x 36
        "3": (6, 1),  # six times 1 x 4
        "5": (1, 2),  # 5 x 24
        "7": (1, 4),  # 3 x 80
    }
    graph = analyse(tower(), batch(PICTURES), "block:5x36")
    assert {p.name: p.reason for p in graph.protected} == {"5": "its weight is one block"}


def test_a_network_without_room_is_refused_with_the_reason():
    model = nn.Linear(3, 5)

    with pytest.raises(ModelError, match="a group takes 4 inputs, and an output of it has 3"):
        analyse(model, batch(torch.ones(2, 3)), "2:4")
    with pytest.raises(ModelError, match=r"by block:8x8 .*one block"):
        analyse(model, batch(torch.ones(2, 3)), "block:8x8")


def test_layers_that_share_a_weight_have_the_pattern_or_the_reason_together():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 9))
    model[1].weight = model[0].weight

    assert [s.name for s in analyse(model, batch(torch.ones(2, 4)), "1:4").groups] == ["0", "2"]
    graph = analyse(model, batch(torch.ones(2, 4)), "block:4x4")
    assert [s.name for s in graph.groups] == ["2"]
    assert [p.name for p in graph.protected] == ["0", "1"]
    assert {p.reason for p in graph.protected} == {"its weight is one block"}


class Words(nn.Module):
    """A classifier of words whose weight is that of the embedding before it."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, words):
        return self.head(self.embedding(words).mean(1))


@pytest.mark.parametrize("criterion", [Magnitude(), Relevance()])
@pytest.mark.parametrize("granularity", ["element", "2:4", "block:4x4"])
def test_a_head_that_shares_an_embeddings_weight_is_pruned_with_it(granularity, criterion):
    model = random_(Words())

    result = flexrel.prune(
        model,
        calibration=[torch.arange(20).view(4, 5) % 11],
        budgets=[Sparsity(0.5)],
        granularity=granularity,
        criterion=criterion,
    )

    assert int((result.model.head.weight == 0).sum()) == 88 - result.achieved.parameters
    assert result.model.head.weight is result.model.embedding.weight
    assert result.achieved.removed >= 0.5


@pytest.mark.parametrize("granularity", ["element", "2:4"])
def test_a_weight_that_is_no_layers_own_is_left_alone(granularity):
    model = Mixer(nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)]), lambda f, x: f[1](f[0](x)))
    table = nn.Parameter(torch.ones(4, 4))
    model.table = table
    model.get_submodule(
        next(n for n, m in model.named_modules() if m.__class__ is nn.Linear)
    ).weight = table

    graph = analyse(model, batch(torch.ones(2, 4)), granularity)

    assert len(graph.groups) == 1
    assert "'table', a parameter that is no layer's own" in graph.protected[0].reason


# --- carried out --------------------------------------------------------------------------------


@pytest.mark.parametrize("granularity", ["2:4", "3:5", "block:2x3", "block:4x4", "block:1x1"])
@pytest.mark.parametrize("seed", range(3))
def test_zeros_are_where_the_plan_says_and_are_counted(granularity, seed):
    model = tower()
    graph = analyse(model, batch(PICTURES), granularity)
    plan = random_plan(graph, seed)
    before = bits(model)

    pruned = apply(model, plan)

    size = Pattern.of(granularity).size
    for name, layer in model.named_children():
        if name not in plan.masks:
            continue
        mask = plan.masks[name]
        gone = set(map(tuple, (~mask).nonzero().tolist()))
        if granularity.startswith("block"):
            found = slow.blocks(layer, *size)
            flags = mask.flatten().tolist()
            gone = {
                at for block, kept in zip(found, flags, strict=True) if not kept for at in block
            }
        weight = pruned.get_submodule(name).weight
        assert set(map(tuple, (weight == 0).nonzero().tolist())) == gone
        kept = weight != 0
        assert torch.equal(weight[kept], layer.weight[kept])
    assert same_bits(before, bits(model))
    assert cost.parameters(graph, plan.masks) == sum(
        int(p.count_nonzero()) for p in pruned.parameters()
    )
    assert cost.macs(graph, plan.masks) == cost.macs(graph)


@pytest.mark.parametrize("criterion", CRITERIA, ids=lambda c: c.name)
@pytest.mark.parametrize("granularity", ["block:2x3", "block:4x4"])
def test_the_score_of_a_block_is_the_mean_of_its_weights(criterion, granularity):
    model = tower()
    statistics = calibrate(model, [PICTURES])
    tensors = named_tensors(model)
    elements, by_block = (
        scores_of(criterion, analyse(model, batch(PICTURES), g), tensors, statistics)
        for g in ("element", granularity)
    )

    for name, scores in by_block.items():
        found = slow.blocks(model.get_submodule(name), *Pattern.of(granularity).size)
        means = [sum(elements[name][at].item() for at in block) / len(block) for block in found]
        assert scores.flatten().tolist() == pytest.approx(means, rel=1e-5)


def test_a_block_of_one_weight_is_an_element():
    options = {"calibration": [PICTURES], "budgets": [Parameters(0.6)], "criterion": FlexRel(0.3)}

    one, other = (
        flexrel.prune(tower(), granularity=g, **options) for g in ("element", "block:1x1")
    )

    assert one.achieved == other.achieved
    assert same_bits(bits(one.model)[:5], bits(other.model)[:5])


# --- prune --------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", [*CRITERIA, None], ids=lambda c: c.name if c else "auto")
@pytest.mark.parametrize(
    ("granularity", "kept", "of"), [("2:4", 2, 4), ("1:4", 1, 4), ("3:5", 3, 5)]
)
def test_without_a_budget_every_layer_has_the_pattern(criterion, granularity, kept, of):
    result = flexrel.prune(
        tower(), calibration=[PICTURES], granularity=granularity, criterion=criterion
    )

    scores = scores_of(
        result.criterion,
        result.plan.graph,
        named_tensors(tower()),
        calibrate(tower(), [PICTURES[: -(len(PICTURES) // 4)]]),  # a quarter is held out
    )
    removed = 0
    assert result.plan.masks.keys() == ({"2", "5", "7"} if of == 4 else {"5", "7"})
    for name, mask in result.plan.masks.items():
        layer = tower().get_submodule(name)
        expected = slow.kept_of_groups(layer, scores[name], kept, of)
        assert set(map(tuple, mask.nonzero().tolist())) == expected
        removed += layer.weight.numel() - len(expected)
    dense = result.dense.parameters
    assert result.achieved.parameters == dense - removed == count_nonzero(result.model)
    assert result.achieved.macs == result.dense.macs
    assert result.achieved.bytes == len(encode(result.model)) < result.dense.bytes


def count_nonzero(model):
    return sum(int(p.count_nonzero()) for p in model.parameters())


@pytest.mark.parametrize("granularity", ["2:4", "block:4x4"])
def test_an_exported_program_loses_the_same_weights(granularity):
    options = {"calibration": [PICTURES], "budgets": [Sparsity(0.4)], "granularity": granularity}

    module, program = (
        flexrel.prune(tower(), form=form, criterion=Magnitude(), **options)
        for form in ("module", "exported")
    )

    for name, mask in module.plan.masks.items():
        assert torch.equal(mask, program.plan.masks[name])
    kept, same = module.model.state_dict(), program.model.state_dict()
    assert all(torch.equal(kept[name], same[name]) for name in kept)


def test_kept_layers_stay_whole():
    result = flexrel.prune(tower(), calibration=[PICTURES], granularity="2:4", keep=["2"])

    assert result.plan.masks.keys() == {"5", "7"}
    assert torch.equal(result.model[2].weight, tower()[2].weight)


def test_a_target_gives_the_pattern_to_as_many_layers_as_it_allows():
    model = random_(nn.Sequential(*(nn.Linear(8, 8) for _ in range(5))))
    inputs = torch.randn(6, 8, generator=torch.Generator().manual_seed(2))

    def evaluate(network):
        return 1 - 0.1 * sum(bool((layer.weight == 0).any()) for layer in network)

    for allowed in range(6):
        result = flexrel.prune(
            model,
            calibration=[inputs],
            evaluate=evaluate,
            target=AccuracyDrop(0.1 * allowed + 0.05),
            granularity="2:4",
            criterion=Magnitude(),
        )

        removal = PatternRanking(
            result.plan.graph,
            scores_of(Magnitude(), result.plan.graph, named_tensors(model), None),
        )
        losses = [
            layer.weight.detach().abs().view(-1, 4).sort(1).values[:, :2].mean().item()
            for layer in model
        ]
        best = sorted(range(5), key=losses.__getitem__)[:allowed]
        took = {int(name) for name, mask in result.plan.masks.items() if not mask.all()}
        assert took == set(best)
        assert result.achieved.accuracy == pytest.approx(1 - 0.1 * allowed)
        assert result.achieved.removed == 0.5 * allowed / 5
        assert all(
            torch.equal(mask, removal.plan(allowed).masks[name])
            for name, mask in result.plan.masks.items()
        )


def test_a_target_and_a_budget_are_both_met_or_refused():
    model = random_(nn.Sequential(*(nn.Linear(8, 8) for _ in range(5))))
    inputs = torch.randn(6, 8, generator=torch.Generator().manual_seed(2))

    def evaluate(network):
        return 1 - 0.1 * sum(bool((layer.weight == 0).any()) for layer in network)

    def prune(drop, *budgets):
        return flexrel.prune(
            model,
            calibration=[inputs],
            evaluate=evaluate,
            target=AccuracyDrop(drop),
            budgets=budgets,
            granularity="2:4",
        )

    assert prune(0.3, Sparsity(0.2)).achieved.removed == 0.3
    with pytest.raises(BudgetError) as caught:
        prune(0.3, Sparsity(0.35))
    assert caught.value.resource == "accuracy"
    assert caught.value.closest == pytest.approx(0.6)  # four layers of five


@pytest.mark.parametrize(
    ("budget", "closest", "says"),
    [
        (Sparsity(0.51), 0.5, "That is 2:4 on all 2 layers."),
        (Parameters(11), 12 * 8 // 2 + 12 * 4 // 2 + 16, "That is 2:4 on all 2 layers."),
        (MACs(0.5), 12 * 12, "granularity='channel'"),
    ],
)
def test_a_budget_that_the_pattern_misses_is_refused_with_what_it_gives(budget, closest, says):
    model = random_(nn.Sequential(nn.Linear(8, 12), nn.Linear(12, 4)))

    with pytest.raises(BudgetError) as caught:
        flexrel.prune(model, calibration=[torch.ones(2, 8)], budgets=[budget], granularity="2:4")

    assert caught.value.closest == closest
    assert says in str(caught.value)


def test_bytes_that_the_pattern_misses_are_refused_and_others_met():
    model = random_(nn.Sequential(nn.Linear(40, 60), nn.Linear(60, 40)))
    options = {"calibration": [torch.ones(2, 40)], "granularity": "2:4"}

    with pytest.raises(BudgetError) as caught:
        flexrel.prune(model, budgets=[Bytes(0.2)], criterion=Magnitude(), **options)
    smallest = caught.value.closest
    for criterion in (Magnitude(), None):
        result = flexrel.prune(model, budgets=[Bytes(0.9)], criterion=criterion, **options)
        assert result.achieved.removed == 0.5  # on all layers, though one would do
        assert result.achieved.bytes <= 0.9 * result.dense.bytes
        assert criterion is None or result.achieved.bytes == smallest


@settings(max_examples=30, derandomize=True)
@given(
    share=st.floats(0.3, 1.0),
    block=st.sampled_from(["block:4x4", "block:1x16", "block:3x2"]),
    resource=st.sampled_from([Parameters, Sparsity]),
    seed=st.integers(0, 99),
)
def test_budgets_on_blocks_are_met_with_nothing_removed_in_vain(share, block, resource, seed):
    model = random_(tower(), seed)
    budget = resource(share if resource is Parameters else min(share, 0.99))
    try:
        result = flexrel.prune(
            model,
            calibration=[PICTURES],
            budgets=[budget],
            granularity=block,
            criterion=Magnitude(),
        )
    except BudgetError as error:
        assert error.resource == budget.resource  # noqa: PT017
        return
    plan, graph = result.plan, result.plan.graph
    assume(plan.removed)
    scores = scores_of(Magnitude(), graph, named_tensors(model), None)
    one_less = UnitRanking(graph, scores).plan(plan.removed - 1)

    assert result.achieved.parameters == count_nonzero(result.model)
    if resource is Parameters:
        assert result.achieved.parameters <= share * result.dense.parameters
        assert cost.parameters(graph, one_less.masks) > int(share * result.dense.parameters)
    else:
        assert plan.removed / graph.units >= budget.amount
        assert one_less.removed / graph.units < budget.amount


def test_a_byte_budget_on_blocks_is_met():
    result = flexrel.prune(
        tower(), calibration=[PICTURES], budgets=[Bytes(0.7)], granularity="block:1x4"
    )

    assert len(encode(result.model)) == result.achieved.bytes <= 0.7 * result.dense.bytes
    assert result.achieved.macs == result.dense.macs


def test_blocks_need_a_budget_and_no_pattern_rounds_widths():
    options = {"calibration": [PICTURES]}

    with pytest.raises(UsageError, match="nothing to prune to"):
        flexrel.prune(tower(), granularity="block:4x4", **options)
    for granularity in ("2:4", "block:4x4"):
        with pytest.raises(UsageError, match="multiple_of=8 of granularity"):
            flexrel.prune(
                tower(), granularity=granularity, budgets=[Sparsity(0.1)], multiple_of=8, **options
            )


@pytest.mark.parametrize("granularity", ["2:4", "block:4x4"])
def test_a_pruned_network_is_packed_without_loss_and_reported(granularity, tmp_path):
    result = flexrel.prune(
        tower(),
        calibration=[PICTURES],
        budgets=[Sparsity(0.4)],
        evaluate=lambda network: float(network(PICTURES).argmax(1).float().mean() / 2),
        compare=True,
        granularity=granularity,
        recover="none",
    )
    result.save(tmp_path)
    pack(result.model, tmp_path / "again.flexrel")
    fresh = load(tmp_path / "model.flexrel", into=tower())
    replayed = flexrel.apply(tower(), Plan.load(tmp_path / "plan.json"))

    written = json.loads((tmp_path / "result.json").read_text())
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert same_bits(bits(fresh)[:5], bits(result.model)[:5])
    assert same_bits(bits(replayed)[:5], bits(result.model)[:5])
    assert written["granularity"] == plan["granularity"] == granularity
    assert {s["name"]: s["units"] for s in plan["groups"]} == {
        group.name: group.units for group in result.plan.graph.groups
    }
    units = "weights" if granularity == "2:4" else "blocks"
    of = {"2:4": "weights", "block:4x4": "blocks of 4 x 4"}[granularity]
    kept = {
        group.name: int(result.plan.masks[group.name].sum()) for group in result.plan.graph.groups
    }
    assert f"7: keeps {kept['7']} of {result.plan.masks['7'].numel()} {of}" in result.plan.explain()
    assert f"<td>{units} zeroed</td>" in result.report()
    assert f"<th>{units}</th>" in result.report()


@pytest.mark.parametrize(
    ("granularity", "change", "says"),
    [
        ("block:2x3", {"layout": {"groups": 1, "transposed": False}}, "expected [3, 12]"),
        ("block:2x3", {"layout": {"groups": 5, "transposed": False}}, "in 5 groups"),
        ("block:2x3", {"layout": {"groups": 0, "transposed": False}}, "whole number from 1"),
        ("block:2x3", {"layout": {"groups": 2, "transposed": 1}}, "a layout"),
        ("block:2x3", {"layout": None}, "expected groups, transposed"),
        ("block:2x3", {"name": "1"}, "has weight None"),
        ("2:4", {"layout": {"groups": 4, "transposed": True}}, "in 4 groups"),
        ("element", {"layout": {"groups": 1, "transposed": False}}, "no groups or blocks"),
    ],
)
def test_a_plan_with_a_layout_that_does_not_fit_is_refused(granularity, change, says, tmp_path):
    plan = random_plan(analyse(tower(), batch(PICTURES), granularity), 0)
    content = Plan(plan.graph, plan.masks).as_json()
    group = next(group for group in content["groups"] if group["name"] == "2")
    group |= change
    (tmp_path / "plan.json").write_text(json.dumps(content))

    with pytest.raises(PackError, match=re.escape(says)):
        Plan.load(tmp_path / "plan.json")


def test_a_plan_of_blocks_fits_only_a_network_with_these_layers():
    plan = random_plan(analyse(tower(), batch(PICTURES), "block:4x4"), 0)
    other = tower()
    other[7] = nn.Linear(80, 4)

    with pytest.raises(UsageError, match=r"7.weight is \[4, 80\], the plan's is \[3, 80\]"):
        apply(other, plan)


NET = """
import torch
def make():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
inputs = lambda: [torch.randn(8, 6, generator=torch.Generator().manual_seed(1))]
"""


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        (["2:4"], 8 * (2 + 2) + 3 * 4 + 11),
        (["1:4"], 8 * (1 + 2) + 3 * 2 + 11),
        (["block:8x2", "--budget", "sparsity=50%"], None),
    ],
)
def test_the_command_line_prunes_by_them(options, parameters, tmp_path, capsys):
    net = tmp_path / "net.py"
    net.write_text(NET)

    data = ("--calibration", f"{net}:inputs", "--out", str(tmp_path / "out"), "--json")
    code = main(["prune", f"{net}:make", *data, "--granularity", *options])

    said = json.loads(capsys.readouterr().out)
    assert code == 0
    assert said["granularity"] == options[0]
    assert said["achieved"]["parameters"] == (parameters or said["achieved"]["parameters"])
    assert said["achieved"]["sparsity"] >= 0.35
    assert (tmp_path / "out" / "model.flexrel").stat().st_size == said["achieved"]["bytes"]


@pytest.mark.parametrize("text", ["0:4", "5:4", "2:0", "block:0x4", "2x4"])
def test_the_command_line_refuses_others_in_one_line(text, tmp_path, capsys):
    net = tmp_path / "net.py"
    net.write_text(NET)

    code = main(["prune", f"{net}:make", "--calibration", f"{net}:inputs", "--granularity", text])

    assert code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"'{text}'" in said
    assert "N:M with 0 < N < M, block:ROWSxCOLUMNS" in said
