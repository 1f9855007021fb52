"""The short training that all methods have alike."""

import copy

import torch
from torch import nn
from torch.nn import functional

STEPS, BATCH = 40, 32
RATES = (0.001, 0.005, 0.02)  # each method takes what suits its network best


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
