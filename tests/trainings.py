"""Small networks to train, with plans and data for them."""

import functools

import torch
from torch import nn
from torch.nn import functional

from flexrel import FineTune
from flexrel.core.plan import Plan
from flexrel.structure import analyse, apply
from networks import batch, random_, random_plan

sgd = functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=0.01, nesterov=True)
adam = functools.partial(torch.optim.AdamW, lr=0.003, weight_decay=0.1)


class Tied(nn.Module):
    """An encoder and a decoder of one weight, as language models tie embedding and head."""

    def __init__(self):
        super().__init__()
        self.encode, self.decode = nn.Linear(8, 8), nn.Linear(8, 8)
        self.decode.weight = self.encode.weight

    def forward(self, x):
        return self.decode(functional.relu(self.encode(x)))


def perceptron():
    """A network with a norm and with dropout, that takes [samples, 8] and gives 3 class scores."""
    layers = [nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3)]
    return random_(nn.Sequential(*layers), seed=1).eval()


def convolutional():
    layers = [nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()]
    return random_(nn.Sequential(*layers, nn.Linear(8 * 16, 3)), seed=2).eval()


def labelled(count, samples=8, seed=0, shape=(8,)):
    """Return batches of random inputs, and of labels that a line through them tells."""
    draw = torch.Generator().manual_seed(seed)
    inputs = [torch.randn(samples, *shape, generator=draw) for _ in range(count)]
    return [(x, x.flatten(1)[:, :3].argmax(1)) for x in inputs]


def pruned(dense, granularity="element", shape=(8,), seed=0):
    """Return a network with random units gone, and the plan."""
    graph = analyse(dense, batch(torch.randn(2, *shape)), granularity)
    plan = random_plan(graph, seed)
    return apply(dense, plan), plan


def group_plan(dense):
    """Return a plan of 2:4 for all layers, which keeps the first two of every four inputs."""
    graph = analyse(dense, batch(torch.randn(2, 8)), "2:4")
    masks = {
        group.name: (torch.arange(group.shape[1]) % 4 < 2).expand(group.shape)
        for group in graph.groups
    }
    return Plan(graph, masks)


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one, other):
    """Whether two states are the same bit for bit."""
    return one.keys() == other.keys() and all(
        one[n].flatten().view(torch.uint8).equal(other[n].flatten().view(torch.uint8)) for n in one
    )


def run(epochs=2, batches=None, granularity="element", **settings):
    """Train the perceptron; return it as it was given, the plan, and what came of it."""
    dense = perceptron()
    given, plan = pruned(dense, granularity)
    data = labelled(8) if batches is None else batches
    return given, plan, FineTune(epochs, **settings)(given, dense, plan, data)
