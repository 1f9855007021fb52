"""Cases in which methods meet, and the ruler that all are held to."""

import copy
from dataclasses import dataclass

import torch
from torch import nn

import common
import rivals
import sizes
import tasks
from flexrel.io import encode

UNITS = {"channel": "channels", "element": "weights"}


@dataclass(frozen=True)
class Case:
    """One task, one kind of cut, how far."""

    network: str
    deployment: str
    granularity: str
    level: float  # of multiply-adds that stay, or of weights

    @property
    def name(self):
        unit = UNITS[self.granularity]
        share = f"1/{1 / self.level:.3g}" if self.granularity == "channel" else f"{self.level:.0%}"
        return f"{self.network} {unit} {share}, {self.deployment}"

    def task(self):
        """Return the task; not all libraries take weights whose channels are last in memory."""
        if self.network == "digits":
            return tasks.digits()
        made = tasks.task(common.data_packs(), self.network, self.deployment, 0)
        made.model.to(memory_format=torch.contiguous_format)
        return made


CASES = (
    Case("resnet56", "3 classes", "channel", 1 / 3),
    Case("resnet56", "as trained", "channel", 1 / 2.12),
    Case("resnet56", "3 classes", "element", 0.15),
    Case("resnet56", "as trained", "element", 0.2),
    Case("vgg16", "3 classes", "channel", 1 / 6),
    Case("vgg16", "as trained", "channel", 1 / 3),
    Case("resnet20", "as trained", "channel", 59.3 / 81.2),  # as in FastNAS's own notebook
    Case("minilm", "SST-2", "channel", 1 / 1.5),
    Case("minilm", "SST-2", "element", 0.3),
    Case("vgg16", "3 classes", "element", 0.05),
)
QUICK = (Case("digits", "as trained", "channel", 0.5), Case("digits", "as trained", "element", 0.2))


class Ruler:
    """Counts what a network costs, in the case's budget."""

    def __init__(self, case, task):
        self.case, self.example = case, task.inputs[0][:2]
        dense = self.multiply_adds(task.model)
        if case.granularity == "channel":
            self.limit = case.level * dense
        else:
            smallest = rivals.torch_global(copy.deepcopy(task.model), task, case.level)
            self.limit = len(encode(smallest, sizes.VALUES))

    def __call__(self, network):
        if self.case.granularity == "channel":
            return self.multiply_adds(network)
        return len(encode(network, sizes.VALUES))

    def multiply_adds(self, network):
        """Count those of linear layers and convolutions for one input, while they run."""
        found, handles = [], []
        for layer in network.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):

                def note(layer, _, out):
                    each = layer.weight[0].numel()
                    found.append(out[0].numel() * each)

                handles.append(layer.register_forward_hook(note))
        with torch.no_grad():
            network(self.example)
        for handle in handles:
            handle.remove()
        return sum(found)
