"""A network of one's own for `flexrel prune`: three functions without arguments.

flexrel prune examples/own_network.py:network --calibration examples/own_network.py:inputs \
    --budget macs=50%
"""

import torch
from torch import nn


def network() -> nn.Module:
    """Return the architecture; its trained weights come with --weights FILE.safetensors."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 4, 10),
    )


def inputs() -> list[torch.Tensor]:
    """Return batches as the network will see them; here noise stands for them."""
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(32, 3, 16, 16, generator=draw) for _ in range(4)]


def labelled() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return batches with labels, for --evaluation."""
    model = network().eval()
    return [(x, model(x).argmax(dim=1)) for x in inputs()]
