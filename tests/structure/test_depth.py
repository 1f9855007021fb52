"""Whole residual blocks: found, counted, passed over, and the rest as it was."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from flexrel import (
    BudgetError,
    FlexRel,
    MACs,
    Magnitude,
    ModelError,
    Parameters,
    Relevance,
    Sparsity,
    UsageError,
    calibrate,
    load,
    prune,
)
from flexrel.core import cost
from flexrel.core.plan import Plan
from flexrel.core.plan import Plan as FilePlan
from flexrel.core.plan import Plan as ReadablePlan
from flexrel.criteria import scores_of
from flexrel.structure import analyse, apply, named_tensors, verify
from flexrel.structure.verify import disagreement
from networks import batch, bits, macs_by_hooks, random_, same_bits

DRAW = torch.Generator().manual_seed(0)
IMAGE = torch.randn(2, 3, 8, 8, generator=DRAW)
TOKENS = torch.randn(2, 5, 8, generator=DRAW)


class Basic(nn.Module):
    """A block of ResNet-20; one that changes the shape pads its shortcut."""

    def __init__(self, width, out, *, inplace):
        super().__init__()
        stride = 1 if width == out else 2
        self.conv1 = nn.Conv2d(width, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.shortcut = nn.Sequential() if width == out else nn.Conv2d(width, out, 1, stride)
        self.inplace = inplace

    def forward(self, x):
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.inplace:
            out += self.shortcut(x)
        else:
            out = self.shortcut(x) + out
        return functional.relu(out)


def resnet(*, inplace=True):
    """3 stages of 3 blocks; the first blocks of the second and third change the shape."""

    def stage(width, out):
        return nn.Sequential(
            Basic(width, out, inplace=inplace), *(Basic(out, out, inplace=inplace) for _ in "ab")
        )

    stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)]
    stages = [stage(4, 4), stage(4, 8), stage(8, 16)]
    return random_(nn.Sequential(stem, *stages, *head), seed=1).eval()


class Layer(nn.Module):
    """A pre-norm transformer block, which returns what `form` makes of its result."""

    kind = "full"

    def __init__(self, form):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.form, self.width = form, 8

    def forward(self, x, mask=None):
        q, k, v = self.qkv(self.norm1(x)).view(2, 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.out(mixed.transpose(1, 2).reshape(2, 5, 8))
        inner = self.up(self.norm2(x))  # GELU as GPT-2 writes it, which adds its input too
        cubic = torch.tanh(0.8 * (inner + 0.044715 * inner**3))
        x = x + self.down(0.5 * inner * (1 + cubic))
        return self.form(x)


class Transformer(nn.Module):
    def __init__(self, form=lambda x: x, take=lambda x: x):
        super().__init__()
        self.embed, self.head = nn.Linear(8, 8), nn.Linear(8, 3)
        self.layers = nn.ModuleList(Layer(form) for _ in range(4))
        self.take = take

    def forward(self, x):
        x = self.embed(x)
        mask = torch.zeros(5, 5, dtype=x.dtype)
        for layer in self.layers:
            assert layer.width == 8  # code may read of a block what it is
            x = self.take(layer(x, mask=mask))
        return self.head(x.mean(1))


def transformer(**kwargs):
    return random_(Transformer(**kwargs), seed=2).eval()


def blocks(graph):
    (group,) = graph.groups
    assert group.kind == "block"
    assert group.shape == (len(group.blocks),)
    return [block.module for block in group.blocks]


def plan_without(graph, *gone):
    mask = torch.tensor([name not in gone for name in blocks(graph)])
    return Plan(graph, {graph.groups[0].name: mask})


def outputs(model, inputs):
    with torch.no_grad():
        return copy.deepcopy(model).eval()(inputs)


IDENTICAL = ["1.0", "1.1", "1.2", "2.1", "2.2", "3.1", "3.2"]


@pytest.mark.parametrize("inplace", [True, False])
def test_blocks_of_a_resnet_are_those_that_keep_the_shape(inplace):
    graph = analyse(resnet(inplace=inplace), batch(IMAGE), "depth")

    assert blocks(graph) == IDENTICAL
    reasons = {p.name: p.reason for p in graph.protected}
    assert set(reasons) == {
        "0.0",
        *(f"{stage}.0.{name}" for stage in "23" for name in ("conv1", "conv2", "shortcut")),
        "6",
    }
    assert reasons["2.0.conv1"] == "it is in no block that can be passed over"


def test_a_resnet_without_blocks_is_the_one_with_identities_there():
    model = resnet()
    before = bits(model)
    graph = analyse(model, batch(IMAGE), "depth")
    plan = plan_without(graph, "1.1", "3.2")

    cut = apply(model, plan)

    verify(model, cut, plan, batch(IMAGE))
    twin = copy.deepcopy(model)
    twin[1][1] = twin[3][2] = nn.Identity()
    assert torch.equal(outputs(cut, IMAGE), outputs(twin, IMAGE))
    assert same_bits(bits(model), before)
    names = [name for name, _ in model.named_parameters()]
    rest = [name for name in names if not name.startswith(("1.1.", "3.2."))]
    assert [name for name, _ in cut.named_parameters()] == rest
    cut(IMAGE).sum().backward()
    assert all(parameter.grad is not None for parameter in cut.parameters())


def test_what_blocks_of_a_resnet_cost_by_hand():
    model = resnet()
    graph = analyse(model, batch(IMAGE), "depth")
    plan = plan_without(graph, "1.1", "2.1", "2.2")
    first, second = 2 * 4 * 4 * 9, 2 * 8 * 8 * 9  # weights of the two convolutions
    by_unit = cost.unit_macs(graph)["blocks"].tolist()

    assert by_unit == [first * 64] * 3 + [second * 16] * 2 + [4 * second * 4] * 2
    less = first + 2 * 8 + 2 * (second + 2 * 16)  # norms have two numbers a channel
    assert cost.parameters(graph, plan.masks) == cost.parameters(graph) - less
    assert cost.macs(graph, plan.masks) == cost.macs(graph) - first * 64 - 2 * second * 16
    cut = apply(model, plan)
    assert cost.parameters(graph, plan.masks) == sum(p.numel() for p in cut.parameters())
    assert cost.macs(graph, plan.masks) == macs_by_hooks(cut, IMAGE)
    assert plan.removed / graph.units == 3 / 7


FORMS = {
    "alone": (lambda x: x, lambda x: x),
    "first": (lambda x: (x,), lambda x: x[0]),
    "last": (lambda x: (None, x), lambda x: x[1]),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_block_of_two_sums_goes_whole_with_its_attention(form):
    model = transformer(form=FORMS[form][0], take=FORMS[form][1])
    graph = analyse(model, batch(TOKENS), "depth")
    plan = plan_without(graph, "layers.1", "layers.2")

    cut = apply(model, plan)

    assert blocks(graph) == [f"layers.{at}" for at in range(4)]
    assert {block.makers for block in graph.groups[0].blocks} == {
        (f"layers.{at}.out", f"layers.{at}.down") for at in range(4)
    }
    verify(model, cut, plan, batch(TOKENS))
    twin = copy.deepcopy(model)
    del twin.layers[1:3]
    assert torch.equal(outputs(cut, TOKENS), outputs(twin, TOKENS))
    weights = 8 * 24 + 8 * 8 + 2 * 8 * 16
    attention = 2 * (2 * 5 * 5 * 4)  # of two heads of width 4: scores, and what they mix
    assert cost.unit_macs(graph)["blocks"].tolist() == [5 * weights + attention] * 4
    ends = 5 * 8 * 8 + 8 * 3
    assert cost.macs(graph) == 4 * (5 * weights + attention) + ends
    assert cost.macs(graph, plan.masks) == 2 * (5 * weights + attention) + ends
    assert cost.parameters(graph, plan.masks) == sum(p.numel() for p in cut.parameters())


def test_of_blocks_in_blocks_the_innermost():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = (
                Basic(4, 4, inplace=True),
                Basic(4, 4, inplace=False),
            )

        def forward(self, x):
            return x + self.b(self.a(x))

    model = random_(nn.Sequential(nn.Conv2d(3, 4, 1), Outer())).eval()

    assert blocks(analyse(model, batch(IMAGE), "depth")) == ["1.a", "1.b"]


class Positions(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(1, 9, 8))

    def forward(self, x):
        return x + self.table[:, : x.shape[1]]


class Cached(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        made = self.layer(x)
        return x + made, made


def test_what_is_no_block():
    twice = nn.Sequential(Layer(lambda x: x))
    model = nn.ModuleDict({"p": Positions(), "c": Cached(), "t": twice, "n": nn.LayerNorm(8)})
    model["good"] = nn.Sequential(Layer(lambda x: x), Layer(lambda x: x))

    def forward(x):
        x = model["t"](model["t"](model["p"](x)))
        return model["good"](model["n"](model["c"](x)[0]))

    model.forward = forward
    random_(model).eval()

    graph = analyse(model, batch(TOKENS), "depth")

    assert blocks(graph) == ["good.0", "good.1"]


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)),
        nn.Sequential(nn.Conv2d(3, 4, 3), Basic(4, 4, inplace=True)),
    ],
    ids=["none", "one"],
)
def test_a_network_without_two_blocks_is_refused_in_a_sentence(model):
    with pytest.raises(ModelError, match=r"by depth: that takes two modules .*(there is none|'1')"):
        analyse(model.eval(), batch(IMAGE), "depth")


def test_layers_kept_keep_their_blocks():
    graph = analyse(resnet(), batch(IMAGE), "depth", ["1.1.conv2", "6"])

    assert blocks(graph) == [name for name in IDENTICAL if name != "1.1"]
    reasons = {p.name: p.reason for p in graph.protected}
    assert "kept on request" in reasons["1.1"]
    assert reasons["6"] == "kept on request"


def test_a_block_without_which_the_network_fails_is_left_alone():
    model = transformer()

    class Reader(Transformer):
        def forward(self, x):
            return super().forward(x) + self.layers[2].down.weight.mean()

    model.__class__ = Reader

    graph = analyse(model, batch(TOKENS), "depth")

    assert blocks(graph) == ["layers.0", "layers.1", "layers.3"]
    (reason,) = [p.reason for p in graph.protected if p.name == "layers.2"]
    assert "was tried and failed" in reason


def test_the_transformer_of_torch_goes_on_without_its_first_layer():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True, dropout=0.0)
    model = nn.Sequential(
        nn.TransformerEncoder(layer, 3, enable_nested_tensor=False), nn.Linear(8, 3)
    ).eval()

    graph = analyse(model, batch(TOKENS), "depth")
    plan = plan_without(graph, "0.layers.0")

    assert blocks(graph) == [f"0.layers.{at}" for at in range(3)]
    verify(model, apply(model, plan), plan, batch(TOKENS))


def test_a_weight_that_blocks_share_goes_with_the_last_of_them():
    model = transformer()
    model.layers[2].up = model.layers[1].up
    model.layers[3].out = model.embed
    graph = analyse(model, batch(TOKENS), "depth")
    for gone in (["layers.1"], ["layers.1", "layers.2"], ["layers.3"]):
        plan = plan_without(graph, *gone)
        cut = apply(model, plan)
        assert cost.parameters(graph, plan.masks) == sum(p.numel() for p in cut.parameters())


def test_the_check_sees_another_block_gone():
    model = resnet()
    graph = analyse(model, batch(IMAGE), "depth")
    cut = apply(model, plan_without(graph, "1.1"))

    found = disagreement(model, cut, plan_without(graph, "1.2"), batch(IMAGE))

    assert "differ" in str(found)


# --- scores and budgets -------------------------------------------------------------------------


def test_scores_by_hand():
    model = resnet()
    graph = analyse(model, batch(IMAGE), "depth")
    stats = calibrate(model, [IMAGE])
    tensors = named_tensors(model)

    sizes = scores_of(Magnitude(), graph, tensors, None)["blocks"]
    relevances = scores_of(Relevance(), graph, tensors, stats, costs=cost.unit_macs(graph))[
        "blocks"
    ]
    by_size = scores_of(Relevance(), graph, tensors, stats)["blocks"]

    weights = [
        torch.cat([tensors[f"{name}.conv{n}.weight"].flatten() for n in (1, 2)])
        for name in IDENTICAL
    ]
    roots = torch.stack([weight.square().mean().sqrt() for weight in weights])
    assert torch.allclose(sizes, roots / roots.mean(), rtol=1e-4)
    given = [float(stats[f"{name}.conv2"].output_samples.sum()) for name in IDENTICAL]
    macs = [2 * 4 * 4 * 9 * 64] * 3 + [2 * 8 * 8 * 9 * 16] * 2 + [2 * 16 * 16 * 9 * 4] * 2
    norms = [4 * 4] * 3 + [4 * 8] * 2 + [4 * 16] * 2
    numbers = [2 * (n / 4) ** 2 * 9 + n for n in norms]  # of two convolutions
    for found, costs in ((relevances, macs), (by_size, numbers)):
        want = torch.tensor([r / c**0.5 for r, c in zip(given, costs, strict=True)])
        assert torch.allclose(found, want / want.mean(), rtol=1e-4)


@pytest.mark.parametrize("criterion", [Magnitude(), Relevance(), FlexRel(0.5)])
@pytest.mark.parametrize("make", [resnet, transformer])
def test_a_share_of_blocks_is_removed_exactly(make, criterion):
    model = make()
    inputs = IMAGE if make is resnet else TOKENS
    before = bits(model)

    result = prune(
        model,
        calibration=[inputs],
        budgets=[Sparsity(0.5)],
        criterion=criterion,
        granularity="depth",
    )

    (mask,) = result.plan.masks.values()
    assert int((~mask).sum()) == {7: 4, 4: 2}[len(mask)]
    assert result.achieved.parameters == sum(p.numel() for p in result.model.parameters())
    assert same_bits(bits(model), before)


@pytest.mark.parametrize("budget", [MACs(0.7), Parameters(0.7)])
def test_budgets_are_met_by_whole_blocks(budget):
    result = prune(
        transformer(),
        calibration=[TOKENS],
        budgets=[budget],
        criterion=Magnitude(),
        granularity="depth",
    )

    (mask,) = result.plan.masks.values()
    assert int(mask.sum()) == 2  # the ends are small: three of four layers are over 70 %


def test_the_last_block_stays():
    with pytest.raises(BudgetError):
        prune(
            transformer(),
            calibration=[TOKENS],
            budgets=[MACs(0.05)],
            criterion=Magnitude(),
            granularity="depth",
        )


def test_a_plan_of_blocks_is_written_and_carried_out_again(tmp_path):
    model = resnet()
    result = prune(
        model, calibration=[IMAGE], budgets=[MACs(0.7)], granularity="depth", criterion=Magnitude()
    )
    result.plan.save(tmp_path / "plan.json")

    plan = ReadablePlan.load(tmp_path / "plan.json")

    assert plan.graph.groups[0].blocks == result.plan.graph.groups[0].blocks
    assert torch.equal(outputs(apply(model, plan), IMAGE), outputs(result.model, IMAGE))


def test_a_plan_says_what_is_passed_over():
    model = transformer()
    plan = plan_without(analyse(model, batch(TOKENS), "depth"), "layers.2")

    text = FilePlan(plan.graph, plan.masks).explain()

    assert "blocks: keeps 3 of 4 blocks" in text
    assert "passed over layers.2" in text


def test_a_plan_of_a_module_that_the_model_lacks_is_refused():
    model = transformer()
    graph = analyse(model, batch(TOKENS), "depth")
    (group,) = graph.groups
    strange = replace(group.blocks[2], module="layers.9")
    group = replace(group, blocks=(*group.blocks[:2], strange, group.blocks[3]))

    with pytest.raises(UsageError, match="the model has no module"):
        apply(model, plan_without(replace(graph, groups=(group,)), "layers.9"))


def test_a_network_without_blocks_loads_into_a_fresh_one_or_leaves_it_as_it_was(tmp_path):
    model = resnet()
    result = prune(
        model, calibration=[IMAGE], budgets=[MACs(0.7)], granularity="depth", criterion=Magnitude()
    )
    result.save(tmp_path)

    loaded = load(tmp_path / "model.flexrel", into=resnet())

    assert torch.equal(outputs(loaded, IMAGE), outputs(result.model, IMAGE))
    stranger = nn.Sequential(*resnet()[:-1], nn.Linear(2, 2))
    before = bits(stranger)
    with pytest.raises(UsageError, match="does not fit the model"):
        load(tmp_path / "model.flexrel", into=stranger)
    assert same_bits(bits(stranger), before)
