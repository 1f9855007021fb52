"""Single layers of all kinds, and a network of them, for patterns of zeros."""

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import nn

from flexrel import (
    FlexRel,
    Magnitude,
    Relevance,
)
from flexrel.core.granularity import WeightLayout
from networks import random_

drawn = settings(max_examples=80, derandomize=True)
LAYERS = {
    "linear": lambda o, i, g, k: nn.Linear(i, o),
    "conv1d": lambda o, i, g, k: nn.Conv1d(i * g, o * g, k, groups=g),
    "conv2d": lambda o, i, g, k: nn.Conv2d(i * g, o * g, (k, 2), groups=g),
    "conv3d": lambda o, i, g, k: nn.Conv3d(i * g, o * g, (k, 1, 2), groups=g),
    "transposed": lambda o, i, g, k: nn.ConvTranspose2d(i * g, o * g, (k, 2), groups=g),
}
layers = st.builds(
    lambda kind, o, i, g, k: LAYERS[kind](o, i, g, k),
    st.sampled_from(sorted(LAYERS)),
    st.integers(1, 5),
    st.integers(1, 9),
    st.integers(1, 3),
    st.integers(1, 3),
)


def layout_of(layer, block=None):
    transposed = isinstance(layer, nn.ConvTranspose2d)
    return WeightLayout(tuple(layer.weight.shape), getattr(layer, "groups", 1), transposed, block)


CRITERIA = [Magnitude(), Relevance(), FlexRel(0.4), FlexRel(0.4, blend="product")]


def tower():
    """A convolution of 3 inputs, a grouped, a depthwise and a transposed one, a linear layer."""
    return random_(
        nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.ReLU(),
            nn.Conv2d(8, 6, 3, groups=2),
            nn.Conv2d(6, 6, 2, groups=6),
            nn.ReLU(),
            nn.ConvTranspose2d(6, 5, 2, bias=False),
            nn.Flatten(),
            nn.Linear(80, 3),
        )
    )


PICTURES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
