"""Multiply-adds are torch's own count, whatever a weight is, before and after a cut."""

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import conv2d, linear, scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

import flexrel
from flexrel.core import cost
from flexrel.structure import analyse, apply
from networks import batch, random_, random_plan

IMAGES, ROWS, TOKENS = (torch.ones(2, 4, 8, 8), torch.ones(2, 6), torch.ones(2, 5, 8))


def by_torch(model, inputs):
    """Half of the floating-point operations that torch counts, of one sample."""
    counter, fused = FlopCounterMode(display=False), torch.backends.mkldnn.enabled
    torch._C._set_mkldnn_enabled(False)  # else an LSTM is one operation, which it does not know
    try:
        with counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            model.eval()(inputs)
    finally:
        torch._C._set_mkldnn_enabled(fused)
    return counter.get_total_flops() / 2 / len(inputs)


class Net(nn.Module):
    """Two ordinary layers around one of its own making."""

    def __init__(self, first, last, middle, **tensors):
        super().__init__()
        self.first, self.last, self.middle = first, last, middle
        for name, value in tensors.items():
            if isinstance(value, nn.Parameter | nn.Module) or name == "plain":
                setattr(self, name, value)
            else:
                self.register_buffer(name, value)

    def forward(self, x):
        return self.last(self.middle(self, self.first(x)))


def rows(middle, **tensors):
    return Net(
        nn.Linear(6, 10), nn.Sequential(nn.Linear(10, 8), nn.Linear(8, 3)), middle, **tensors
    ), ROWS


def images(middle, channels=10, **tensors):
    last = nn.Sequential(
        nn.Conv2d(channels, 5, 1), nn.Conv2d(5, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    return Net(nn.Conv2d(4, 10, 3, padding=1), last, middle, **tensors), IMAGES


def tokens(middle, **tensors):
    return Net(
        nn.Linear(8, 12), nn.Sequential(nn.Linear(12, 7), nn.Linear(7, 3)), middle, **tensors
    ), TOKENS


def square(n=10):
    return torch.randn(n, n)


def attend(net, x):
    q, k, v = (linear(x, w).unflatten(-1, (-1, 4)).transpose(1, 2) for w in net.packed.chunk(3))
    return scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


KINDS = {
    "parameter": lambda: rows(lambda n, x: x @ n.w, w=nn.Parameter(square())),
    "buffer": lambda: rows(lambda n, x: x @ n.w, w=square()),
    "linear on a buffer": lambda: rows(lambda n, x: linear(x, n.w, n.b), w=square(), b=square()[0]),
    "plain tensor": lambda: rows(lambda n, x: linear(x, n.plain), plain=square()),
    "masked parameter": lambda: rows(
        lambda n, x: linear(x, n.mask * n.w), w=nn.Parameter(square()), mask=square().sign()
    ),
    "product of parameters": lambda: rows(
        lambda n, x: linear(x, n.a @ n.b),
        a=nn.Parameter(torch.randn(10, 2)),
        b=nn.Parameter(torch.randn(2, 10)),
    ),
    "weight norm": lambda: rows(
        lambda n, x: linear(x, torch._weight_norm(n.v, n.g, 0)),
        v=nn.Parameter(square()),
        g=nn.Parameter(torch.ones(10, 1)),
    ),
    "rows of a packed parameter": lambda: rows(
        lambda n, x: linear(x, n.packed[10:20]), packed=nn.Parameter(torch.randn(30, 10))
    ),
    "fixed blur": lambda: images(
        lambda n, x: conv2d(x, n.blur, padding=1, groups=len(n.blur)), blur=torch.ones(10, 1, 3, 3)
    ),
    "plain blur": lambda: images(
        lambda n, x: conv2d(x, n.plain, padding=1, groups=10), plain=torch.ones(10, 1, 3, 3)
    ),
    "frozen convolution": lambda: images(
        lambda n, x: conv2d(x, n.w, stride=2), w=torch.randn(10, 10, 3, 3)
    ),
    "kernel expanded on the way": lambda: images(
        lambda n, x: conv2d(x, n.w.expand(x.shape[1], 1, 3, 3), groups=x.shape[1]),
        w=torch.randn(1, 1, 3, 3),
    ),
    "grouped": lambda: images(lambda n, x: conv2d(x, n.w, groups=2), w=torch.randn(10, 5, 3, 3)),
    "transposed": lambda: images(
        lambda n, x: torch.nn.functional.conv_transpose2d(x, n.w, stride=2),
        channels=6,
        w=torch.randn(10, 6, 2, 2),
    ),
    "grouped and transposed": lambda: images(
        lambda n, x: torch.nn.functional.conv_transpose2d(x, n.w, groups=2),
        channels=6,
        w=torch.randn(10, 3, 2, 2),
    ),
    "weights a head in a parameter": lambda: tokens(
        lambda n, x: torch.einsum("blhd,hde->blhe", x.unflatten(-1, (-1, 4)), n.w).flatten(2),
        w=nn.Parameter(torch.randn(3, 4, 4)),
    ),
    "weights a head in a buffer": lambda: tokens(
        lambda n, x: (x.unflatten(-1, (-1, 4)).transpose(1, 2) @ n.w).transpose(1, 2).flatten(2),
        w=torch.randn(3, 4, 4),
    ),
    "packed attention": lambda: tokens(attend, packed=nn.Parameter(torch.randn(36, 12))),
    "attention layer": lambda: tokens(
        lambda n, x: n.layer(x, x.flip(1), x)[0],
        layer=nn.MultiheadAttention(12, 3, batch_first=True),
    ),
    "attention from frozen rows": lambda: tokens(attend, packed=torch.randn(36, 12)),
    "work that no sample asks for": lambda: rows(
        lambda n, x: x * (n.w @ n.w).diagonal(), w=square()
    ),
    "LSTM": lambda: tokens(
        lambda n, x: n.rnn(x)[0], rnn=nn.LSTM(12, 6, 2, batch_first=True, bidirectional=True)
    ),
    "GRU": lambda: tokens(lambda n, x: n.rnn(x)[0], rnn=nn.GRU(12, 12, batch_first=True)),
    "one-dimensional filters": lambda: rows(
        lambda n, x: torch.nn.functional.conv1d(x[:, None], n.w, padding=1).mean(1),
        w=torch.randn(4, 1, 3),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_dense_count_is_torchs_own(kind):
    model, inputs = KINDS[kind]()

    for granularity in ("element", "channel"):
        graph = analyse(random_(model), batch(inputs), granularity)
        assert cost.macs(graph) == by_torch(model, inputs)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_the_count_of_a_cut_is_torchs_own_of_the_cut_network(kind, seed):
    model, inputs = KINDS[kind]()
    graph = analyse(random_(model), batch(inputs), "channel")

    plan = random_plan(graph, seed)

    assert cost.macs(graph, plan.masks) == by_torch(apply(model, plan), inputs)


# --- parts without gradients --------------------------------------------------------------------


class Frozen(nn.Module):
    """A backbone run without gradients, and a head."""

    def __init__(self, mode):
        super().__init__()
        self.mode = mode
        self.body = nn.Sequential(
            nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.Flatten()
        )
        self.head = nn.Sequential(nn.Linear(288, 10), nn.ReLU(), nn.Linear(10, 3))

    def forward(self, x):
        with self.mode():
            features = self.body(x)
        return self.head(features.clone())


NO_GRADIENTS = pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])


def seen(graph):
    return [(g.name, g.shape) for g in graph.groups], graph.protected, cost.macs(graph)


@NO_GRADIENTS
@pytest.mark.parametrize("granularity", ["channel", "element", "2:4"])
def test_a_part_run_without_gradients_is_seen_as_any_other(mode, granularity):
    plain, frozen = random_(Frozen(torch.enable_grad)), random_(Frozen(mode))

    graph = analyse(frozen, batch(IMAGES), granularity)

    assert seen(graph) == seen(analyse(plain, batch(IMAGES), granularity))
    assert cost.macs(graph) == by_torch(plain, IMAGES)


@pytest.mark.parametrize("granularity", ["channel", "element"])
def test_a_network_is_seen_under_inference_mode_as_outside(granularity):
    model, inputs = KINDS["attention layer"]()
    outside = analyse(model, batch(inputs), granularity)

    with torch.inference_mode():
        assert seen(analyse(model, batch(inputs), granularity)) == seen(outside)


@NO_GRADIENTS
def test_magnitude_needs_no_gradients(mode):
    model = random_(Frozen(mode))

    result = flexrel.prune(
        model,
        calibration=[torch.randn(8, 4, 8, 8)],
        budgets=["sparsity=60%"],
        criterion="magnitude",
        granularity="element",
        recover="none",
    )

    weights = [p.flatten() for n, p in model.named_parameters() if n.endswith("weight")]
    gone = int(0.6 * sum(map(len, weights)) + 1)
    last = torch.cat(weights).abs().sort().values[gone - 1]
    for name, pruned in result.model.named_parameters():
        if name.endswith("weight"):
            assert torch.equal(pruned == 0, model.get_parameter(name).abs() <= last)


@NO_GRADIENTS
def test_obs_scores_what_is_run_with_gradients(mode):
    result = flexrel.prune(
        random_(Frozen(mode)),
        calibration=[torch.randn(8, 4, 8, 8)],
        budgets=["sparsity=20%"],
        criterion="obs",
    )

    assert [group.name for group in result.plan.graph.groups] == ["body.2", "head.0"]
    assert {p.name for p in result.plan.graph.protected} == {"body.0", "head.2"}


def test_pruning_under_inference_mode_returns_an_ordinary_network():
    model = random_(Frozen(torch.enable_grad))

    with torch.inference_mode():
        result = flexrel.prune(
            model, calibration=[torch.ones(8, 4, 8, 8)], budgets=["macs=60%"], criterion="relevance"
        )

    assert not any(p.is_inference() for p in result.model.parameters())
    result.model(torch.ones(2, 4, 8, 8)).sum().backward()


def test_a_hidden_channel_of_an_inverted_residual_costs_what_all_its_three_layers_take():
    layers = nn.Conv2d(8, 48, 1), nn.ReLU6(), nn.Conv2d(48, 48, 3, 2, 1, groups=48), nn.ReLU6()
    model = nn.Sequential(*layers, nn.Conv2d(48, 12, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    graph = analyse(model, batch(torch.ones(1, 8, 10, 10)), "channel", ())
    costs = cost.unit_macs(graph)
    assert costs == {"0": 100 * 8 + 25 * (9 + 12)}  # expand at 10 x 10, depthwise and project at 5
