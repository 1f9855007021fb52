"""Cases in which methods meet: the task, the ruler, what each method makes, and training."""

import copy
import time
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

import published
import rivals
import sizes
import tasks
from flexrel import Bytes, MACs, PruneOptions, prune
from flexrel.io import encode

OURS, BARE, PBX = "FlexRel", "FlexRel, not repaired", "PbX (paper)"
UNITS = {"channel": "channels", "element": "weights"}
STEPS, BATCH = 40, 32  # of the training that all have alike
RATES = (0.001, 0.005, 0.02)  # of it: each method takes what suits its network best


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
        made = tasks.task(self.network, self.deployment, 0)
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


# --- methods --------------------------------------------------------------------------------


def methods_of(network, granularity):
    """Return the names of all methods for a case, ours last."""
    channels = granularity == "channel"
    theirs = list(rivals.CHANNELS if channels else rivals.WEIGHTS)
    if network != "resnet20":
        theirs = [name for name in theirs if name != "ModelOpt FastNAS"]
    return [*theirs, *([PBX] if channels else []), BARE, OURS]


def made_by(method, case, task, ruler):
    """Return the network that a method makes within the ruler's limit, and the seconds it took."""
    if method in (OURS, BARE):
        return by_flexrel("closed-form" if method == OURS else "none", case, task, ruler)
    if method == PBX:
        return by_pbx(case, task)
    calls = rivals.CHANNELS if case.granularity == "channel" else rivals.WEIGHTS
    return rivals.by_library(calls[method], case, task, ruler)


def by_pbx(case, task):
    """Return the network cut by relevance alone, by a composite of LRP rules, and its seconds."""
    labelled = task.calibration[0][1] is not None
    began = time.monotonic()
    result = prune(
        task.model,
        calibration=task.calibration if labelled else task.inputs,
        budgets=[MACs(case.level)],
        criterion=published.Explained("label" if labelled else "auto"),
        recover="none",
        options=PruneOptions(outputs=task.choose.outputs),
    )
    return result.model, time.monotonic() - began


def by_flexrel(recover, case, task, ruler):
    """Return what the default call of `prune` makes, but for `recover`, and its seconds."""
    budget = MACs(case.level) if case.granularity == "channel" else Bytes(ruler.limit)
    values = "float32" if case.granularity == "channel" else sizes.VALUES
    began = time.monotonic()
    result = prune(
        task.model,
        calibration=task.inputs,
        budgets=[budget],
        granularity=case.granularity,
        recover=recover,
        values=values,
        options=PruneOptions(outputs=task.choose.outputs),
    )
    return result.model, time.monotonic() - began


# --- training -------------------------------------------------------------------------------


def best_trained(task, network):
    """Return the network at the rate that suits it best, or as it is, by data not reported on."""
    made = (network, *(trained(network, task, rate) for rate in RATES))
    return max(made, key=lambda network: task.choose.score(task.choose(network)))


def trained(network, task, rate):
    """Return a copy trained for STEPS steps on the labelled calibration data; zeros stay."""
    network = copy.deepcopy(network).train()
    for layer in network.modules():
        if isinstance(layer, nn.Dropout):
            layer.eval()  # it has few units left
    masks = [(p, p != 0) for p in network.parameters()]
    optimizer = torch.optim.SGD(network.parameters(), rate, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    draw = torch.Generator().manual_seed(0)
    inputs, labels = _joined(task.calibration)
    for _ in range(STEPS):
        rows = torch.randint(len(labels), (BATCH,), generator=draw)
        optimizer.zero_grad()
        functional.cross_entropy(network(inputs[rows]), labels[rows]).backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            for parameter, mask in masks:
                parameter.masked_fill_(~mask, 0.0)
    return network.eval()


def _joined(batches):
    """Return all inputs and labels; ids of sentences are padded to the longest."""
    longest = max(inputs.shape[-1] for inputs, _ in batches)
    padded = [functional.pad(inputs, (0, longest - inputs.shape[-1])) for inputs, _ in batches]
    return torch.cat(padded), torch.cat([labels for _, labels in batches])
