"""Networks to cut and repair, and how far they are from what they were."""

import copy

import torch
from torch import nn
from torch.nn import functional

from flexrel import Plan
from flexrel.repair import reconstruct_
from flexrel.structure import analyse, apply
from networks import batch, random_


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def plan_of(model, inputs, removed=None, granularity="channel"):
    """Return a plan that removes the named units alone."""
    graph = analyse(model, batch(inputs), granularity)
    masks = {group.name: torch.ones(group.shape, dtype=torch.bool) for group in graph.groups}
    for name, units in (removed or {}).items():
        masks[name].view(-1)[list(units)] = False
    return Plan(graph, masks)


def outputs(model, inputs):
    with torch.no_grad():
        return copy.deepcopy(model).eval()(inputs)


def error(model, dense, inputs):
    """Return the squared error of a network's outputs, over their variance."""
    want = outputs(dense, inputs)
    return float((outputs(model, inputs) - want).square().mean() / want.var())


def repaired(model, removed, inputs, *, batches=None, granularity="channel"):
    """Return the network cut, the network repaired, what became of its layers, and refusals."""
    plan = plan_of(model, inputs[:2], removed, granularity)
    cut = apply(model, plan)
    network = copy.deepcopy(cut)
    made, refused = reconstruct_(network, model, plan, batches or [inputs])
    return cut, network, made, refused


def mlp():
    layers = nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 3)
    return random_(nn.Sequential(*layers)).eval()


# --- kinds of layers ------------------------------------------------------------------------


class Conv1D(nn.Module):
    """Linear, as GPT-2 has it: the weight lies the other way round."""

    def __init__(self, inputs, out):
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.zeros(inputs, out)),
            nn.Parameter(torch.ones(out)),
        )

    def forward(self, x):
        return torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight).view(
            *x.shape[:-1], len(self.bias)
        )


class ByHand(nn.Module):
    """A convolution by its function, of a parameter of its own name."""

    def __init__(self, channels, out):
        super().__init__()
        self.kernel, self.shift = (
            nn.Parameter(torch.zeros(out, channels, 3, 3)),
            nn.Parameter(torch.zeros(out)),
        )

    def forward(self, x):
        return functional.conv2d(x, self.kernel, self.shift, padding=1)


class Attending(nn.Module):
    """Torch's own attention behind a small perceptron, whose weight is three layers' in one."""

    def __init__(self):
        super().__init__()
        self.grow, self.shrink = nn.Linear(6, 10), nn.Linear(10, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.shrink(functional.relu(self.grow(x)))
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


def twice(layer, relu=None):
    """Return a layer between others, the first of which is cut."""
    return lambda: nn.Sequential(
        nn.Conv2d(3, 12, 1), relu or nn.ReLU(), layer(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)
    )


PIXELS, TOKENS = (3, 6, 6), (5, 6)
KINDS = {  # network, inputs of a sample, what is cut, a layer that must be refitted
    "convolution": (twice(lambda: nn.Conv2d(12, 6, 3, 2, 1)), PIXELS, "0", "2"),
    "dilated": (twice(lambda: nn.Conv2d(12, 6, 3, padding=2, dilation=2)), PIXELS, "0", "2"),
    "same": (twice(lambda: nn.Conv2d(12, 6, 3, padding="same")), PIXELS, "0", "2"),
    "by hand": (twice(lambda: ByHand(12, 6)), PIXELS, "0", "2.kernel"),
    "depthwise": (
        twice(lambda: nn.Sequential(nn.Conv2d(12, 12, 3, groups=12), nn.Conv2d(12, 6, 1))),
        PIXELS,
        "0",
        "2.1",
    ),
    "norm": (
        twice(lambda: nn.Sequential(nn.Conv2d(12, 6, 3, bias=False), nn.BatchNorm2d(6))),
        PIXELS,
        "0",
        "2.0",
    ),
    "transposed weight": (
        lambda: nn.Sequential(
            Conv1D(6, 12), nn.GELU(), Conv1D(12, 7), nn.Flatten(), nn.LazyLinear(3)
        ),
        TOKENS,
        "0",
        "2",
    ),
    "tokens": (
        lambda: nn.Sequential(
            nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 7), nn.Flatten(), nn.LazyLinear(3)
        ),
        TOKENS,
        "0",
        "2",
    ),
    "one axis": (
        lambda: nn.Sequential(
            nn.Conv1d(5, 12, 3), nn.ReLU(), nn.Conv1d(12, 4, 2), nn.Flatten(), nn.LazyLinear(3)
        ),
        TOKENS,
        "0",
        "2",
    ),
    "attention": (Attending, TOKENS, "grow", "shrink"),
}


def built(kind):
    network, shape, group, layer = KINDS[kind]
    model = network().eval()
    model(torch.zeros(2, *shape))  # lazy layers see their inputs
    return random_(model), shape, group, layer
