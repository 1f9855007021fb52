"""Weights that are no Linear's and no Conv's: zeroed as any other, and said where they can't be."""

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

import flexrel
from flexrel.core.graph import tensor_of
from flexrel.core.plan import Plan
from flexrel.criteria import GroupSignals, measure_saliency
from flexrel.structure import analyse, named_tensors
from networks import batch, random_, random_plan

DRAWN = torch.Generator().manual_seed(0)
ROWS, TOKENS = torch.randn(32, 6, generator=DRAWN), torch.randn(16, 5, 8, generator=DRAWN)


class Conv1D(nn.Module):
    """As of Hugging Face's GPT-2: its weight is `[in, out]`."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        flat = torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight)
        return flat.view(*x.shape[:-1], -1)


class Own(nn.Module):
    """A network of which one operation has parameters of its own."""

    def __init__(self, inputs, shapes, middle, hidden=10, outputs=10):
        super().__init__()
        self.first, self.last = nn.Linear(inputs, hidden), nn.Linear(outputs, 3)
        self.middle = middle
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape)))

    def forward(self, x):
        return self.last(torch.relu(self.middle(self, torch.relu(self.first(x)))))


class Bags(nn.Module):
    """A classifier of bags of words."""

    def __init__(self):
        super().__init__()
        self.bag, self.last = nn.EmbeddingBag(40, 8), nn.Linear(8, 3)

    def forward(self, words):
        return self.last(torch.relu(self.bag(words)))


class Attention(nn.Module):
    def __init__(self, self_attention):
        super().__init__()
        self.first, self.last = nn.Linear(8, 12), nn.Linear(12, 3)
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True)
        self.self_attention = self_attention

    def forward(self, x):
        x = self.first(x)
        key = x if self.self_attention else torch.tanh(x)
        return self.last(self.attention(x, key, key)[0])


NETWORKS = {
    "Conv1D": (lambda: nn.Sequential(Conv1D(6, 8), nn.ReLU(), Conv1D(8, 8), Conv1D(8, 3)), ROWS),
    "x @ W": (lambda: Own(6, {"w": (10, 10)}, lambda n, x: x @ n.w), ROWS),
    "F.linear": (lambda: Own(6, {"w": (10, 10)}, lambda n, x: linear(x, n.w)), ROWS),
    "W by heads": (
        lambda: Own(
            8,
            {"w": (3, 4, 4)},
            lambda n, x: (x.unflatten(-1, (3, 4)).transpose(1, 2) @ n.w).transpose(1, 2).flatten(2),
            hidden=12,
            outputs=12,
        ),
        TOKENS,
    ),
    "bags": (Bags, torch.arange(160).view(32, 5) % 40),
    "self-attention": (lambda: Attention(self_attention=True), TOKENS),
    "cross-attention": (lambda: Attention(self_attention=False), TOKENS),
}
EVERY = pytest.mark.parametrize("kind", NETWORKS)


def network(kind):
    make, inputs = NETWORKS[kind]
    return random_(make()), inputs


def matrices(model):
    return {name: p.detach() for name, p in model.named_parameters() if p.ndim > 1}


def share_of_zeros(model):
    weights = matrices(model).values()
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


@EVERY
@pytest.mark.parametrize("recover", ["none", "closed-form"])
def test_the_share_of_zeros_that_is_asked_for_is_that_of_all_matrices(kind, recover):
    model, inputs = network(kind)

    result = flexrel.prune(
        model,
        calibration=[inputs],
        budgets=["sparsity=70%"],
        criterion="magnitude",
        granularity="element",
        recover=recover,
    )

    assert 0.7 <= share_of_zeros(result.model) < 0.71
    assert result.achieved.removed == pytest.approx(share_of_zeros(result.model))
    zeros = sum(int((w == 0).sum()) for w in matrices(result.model).values())
    assert result.achieved.parameters == result.dense.parameters - zeros


@EVERY
def test_magnitude_takes_the_smallest_of_all_matrices(kind):
    model, inputs = network(kind)

    result = flexrel.prune(
        model,
        calibration=[inputs],
        budgets=["sparsity=60%"],
        criterion="magnitude",
        granularity="element",
        recover="none",
    )

    values = torch.cat([w.flatten().abs() for w in matrices(model).values()])
    last = values.sort().values[result.plan.removed - 1]
    for name, weight in matrices(result.model).items():
        assert torch.equal(weight == 0, model.get_parameter(name).abs() <= last), name


# --- what the other criteria know of them -------------------------------------------------------


@pytest.mark.parametrize("kind", ["Conv1D", "x @ W", "F.linear", "self-attention"])
@pytest.mark.parametrize("criterion", ["relevance", "obs", "flexrel:0.5"])
@pytest.mark.parametrize("granularity", ["element", "2:4", "block:2x2"])
def test_every_criterion_scores_weights_of_no_layer(kind, criterion, granularity):
    model, inputs = network(kind)

    result = flexrel.prune(
        model,
        calibration=[inputs],
        budgets=["sparsity=30%"],
        criterion=criterion,
        granularity=granularity,
    )

    graph = result.plan.graph
    names = {tensor_of(group.name, graph.shapes) for group in graph.groups}
    assert names == matrices(model).keys()
    assert share_of_zeros(result.model) > 0.2  # blocks at the end of a weight are smaller


def test_relevance_is_that_of_all_rows_of_a_packed_weight():
    model, inputs = network("cross-attention")
    stats = flexrel.calibrate(model, [inputs])
    (group,) = [g for g in analyse(model, batch(inputs), "element").groups if "in_proj" in g.name]

    signals = GroupSignals(group, named_tensors(model), stats)

    parts = [f"attention.in_proj_weight[{rows}]" for rows in ("0:12", "12:36")]
    vectors = [stats[part].vectors("positive") for part in parts]
    expected = torch.cat([out[:, None] + into[None, :] for into, out in vectors])
    assert torch.allclose(signals.relevance().double(), expected, rtol=1e-5)


@pytest.mark.parametrize(("w", "inputs_first"), [("x @ W", True), ("F.linear", False)])
def test_n_of_m_runs_along_the_inputs_whichever_axis_they_are(w, inputs_first):
    model, inputs = network(w)
    result = flexrel.prune(
        model,
        calibration=[inputs],
        criterion="magnitude",
        granularity="1:5",
        recover="none",
    )

    weight = result.model.w.detach().t() if inputs_first else result.model.w.detach()

    kept = (weight.reshape(10, 2, 5) != 0).sum(-1)
    assert torch.equal(kept, torch.ones(10, 2, dtype=torch.long))


def test_the_saliency_of_a_square_weight_has_the_axes_of_its_use():
    straight, turned = (network(kind)[0] for kind in ("F.linear", "x @ W"))
    turned.load_state_dict(straight.state_dict() | {"w": straight.w.detach().t()})
    saliency = {}
    for name, model in (("straight", straight), ("turned", turned)):
        graph = analyse(model, batch(ROWS), "element")
        saliency[name] = measure_saliency(model, graph, [ROWS])[0]["w"]

    assert torch.allclose(saliency["straight"], saliency["turned"].t(), rtol=1e-3)


def test_a_weight_that_is_computed_is_left_alone():
    middle = lambda n, x: linear(x, torch.tanh(n.w))  # noqa: E731
    model = random_(Own(6, {"w": (10, 10)}, middle))

    graph = analyse(model, batch(ROWS), "element")

    assert [(p.name, p.reason) for p in graph.protected] == [
        ("w", "no product multiplies by its entries")
    ]


def test_a_weight_of_no_layer_can_be_kept():
    model, inputs = network("x @ W")

    graph = analyse(model, batch(inputs), "element", keep=["w"])

    assert [group.name for group in graph.groups] == ["first", "last"]
    assert [(p.name, p.reason) for p in graph.protected] == [("w", "kept on request")]


@EVERY
def test_a_plan_of_weights_of_no_layer_is_read_as_it_was_written(kind, tmp_path):
    model, inputs = network(kind)
    graph = analyse(model, batch(inputs), "element")
    plan = random_plan(graph, 0)
    plan.save(tmp_path / "plan.json")

    pruned = flexrel.apply(model, Plan.load(tmp_path / "plan.json"))

    for group in graph.groups:
        weight = pruned.get_parameter(tensor_of(group.name, graph.shapes))
        assert torch.equal(weight != 0, plan.masks[group.name])


@EVERY
def test_zeros_in_weights_of_no_layer_are_held_in_training(kind):
    model, inputs = network(kind)
    plan = random_plan(analyse(model, batch(inputs), "element"), 0)
    pruned = flexrel.apply(model, plan)
    optimizer = torch.optim.SGD(pruned.parameters(), 0.1)

    with flexrel.MaskHolder(pruned, plan).hold(optimizer):
        pruned(inputs).square().sum().backward()
        optimizer.step()

    for group in plan.graph.groups:
        weight = pruned.get_parameter(tensor_of(group.name, plan.graph.shapes))
        assert not weight[~plan.masks[group.name]].any()
        assert not torch.equal(
            weight, model.get_parameter(tensor_of(group.name, plan.graph.shapes))
        )
