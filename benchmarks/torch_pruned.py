"""Torch-Pruning under all of its settings, each held to a level of multiply-adds."""

import copy
import itertools
from dataclasses import dataclass

import torch
import torch_pruning as tp
from torch import nn
from torch.nn import functional

from flexrel.pruning.search import least_removal

IMPORTANCES = {
    "L1": lambda how: tp.importance.MagnitudeImportance(p=1, group_reduction=how),
    "L2": lambda how: tp.importance.MagnitudeImportance(p=2, group_reduction=how),
    "Taylor": lambda how: tp.importance.TaylorImportance(group_reduction=how),
    "LAMP": lambda how: tp.importance.LAMPImportance(group_reduction=how),
    "BN scale": lambda how: tp.importance.BNScaleImportance(group_reduction=how),
}
RATIOS = 600  # steps in which the pruning ratio is searched
COARSE = range(RATIOS // 10, RATIOS, RATIOS // 10)


@dataclass(frozen=True)
class Settings:
    """What Torch-Pruning is called with.

    Channels: "inner", the first layer of every block; "all", residual paths too, with padded
    shortcuts as in `traceable`; "all, padded", the network as it is.
    """

    importance: str
    reduction: str  # over the layers of a group: "mean", its default, or "first"
    everywhere: bool  # global_pruning
    channels: str
    steps: int  # equal steps of multiply-adds; importance is taken anew before each

    @property
    def name(self):
        order = "global" if self.everywhere else "per-layer"
        steps = f"{self.steps} step{'s' if self.steps > 1 else ''}"
        return f"{self.reduction} of group, {order}, {self.channels} channels, {steps}"


def settings():
    """Yield all settings: the most likely ones in full, the others as one step."""
    for importance, everywhere in itertools.product(IMPORTANCES, (True, False)):
        for channels, steps in itertools.product(("inner", "all"), (1, 3)):
            yield Settings(importance, "mean", everywhere, channels, steps)
        yield Settings(importance, "mean", everywhere, "all, padded", 1)
        if importance != "BN scale":  # which looks at norms alone, never first of their groups
            yield Settings(importance, "first", everywhere, "inner", 1)
            yield Settings(importance, "first", everywhere, "all", 1)


def traceable(model):
    """Return a copy of the model with every padded shortcut as the convolution that it amounts to.

    It computes the same and the ruler does not count it; Torch-Pruning can then cut residual paths.
    """
    model = copy.deepcopy(model)
    for block in model.modules():
        shortcut = getattr(block, "shortcut", None)
        if hasattr(shortcut, "lo"):
            block.shortcut = _as_convolution(shortcut, block.conv1)
    return model


def _as_convolution(shortcut, beside):
    made, read = beside.out_channels, beside.in_channels
    convolution = nn.Conv2d(read, made, 1, shortcut.stride, bias=False).to(beside.weight.device)
    rows = torch.arange(read)
    with torch.no_grad():
        convolution.weight.zero_()[rows + shortcut.lo, rows] = 1
    return convolution


def pruned(bench, way, batches, level):
    """Return the network that Torch-Pruning makes of at most `level` of the multiply-adds.

    Its pruning ratio is searched. None: no ratio meets the level.
    """
    network = traceable(bench.model) if way.channels == "all" else bench.model
    dense = bench.multiply_adds(network)
    for step in range(1, way.steps + 1):
        gradients = _gradients(network, batches) if way.importance == "Taylor" else {}
        tried = {}

        def multiply_adds(ratio, network=network, gradients=gradients, tried=tried):
            tried[ratio] = _pruned_at(ratio / RATIOS, network, gradients, way)
            return bench.multiply_adds(tried[ratio])

        limit = dense * (1 - (1 - level) * step / way.steps)
        met = (k for k in COARSE if multiply_adds(k) <= limit)  # near 1 it removes nothing
        ratio = least_removal(multiply_adds, limit, next(met, 0))
        if ratio is None:
            return None
        network = tried[ratio]
    return network


def _gradients(network, batches):
    """Return the gradients of the loss on the labelled calibration images, by parameter."""
    network = copy.deepcopy(network).eval()
    for inputs, labels in batches:
        functional.cross_entropy(network(inputs), labels, reduction="sum").backward()
    return {name: parameter.grad for name, parameter in network.named_parameters()}


def _pruned_at(ratio, network, gradients, way):
    network = copy.deepcopy(network)
    for name, gradient in gradients.items():
        network.get_parameter(name).grad = gradient.clone()
    inner = [m for n, m in network.named_modules() if n == "conv1" or n.endswith("conv2")]
    pruner = tp.pruner.BasePruner(
        network,
        torch.zeros(1, 3, 32, 32, device=network.linear.weight.device),
        IMPORTANCES[way.importance](way.reduction),
        pruning_ratio=ratio,
        global_pruning=way.everywhere,
        ignored_layers=[network.linear, *(inner if way.channels == "inner" else [])],
    )
    pruner.step()
    return network


def candidates(bench, level, batches):
    """Yield role, name, whether the draw matters, and what makes the network, for all settings."""
    for way in settings():

        def make(way=way):
            return pruned(bench, way, batches, level)

        yield f"Torch-Pruning {way.importance}", way.name, way.importance == "Taylor", make
