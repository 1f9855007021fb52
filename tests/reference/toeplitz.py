"""A layer as an explicit fully connected matrix, and `rel(w) = R(a) + R(b)` summed over it.

A convolution is a fully connected layer whose matrix is mostly zeros and shares its weights.
Zeros that padding adds are units of that layer, of value zero and so of relevance zero; a value
that padding copies counts, at each copy, with the relevance of what it copies.
"""

from dataclasses import dataclass
from itertools import product

import torch
from torch import nn


@dataclass(frozen=True)
class Entry:
    """One entry of the matrix that is not zero by construction."""

    row: tuple  # output unit: (channel, *position)
    column: tuple | None  # input unit: (channel, *position); None: a zero of the padding
    weight: tuple  # index into the layer's weight


def matrix(layer, size):
    """All entries of a convolution's matrix for inputs of spatial size `size`."""
    out_channels, per_group, *kernel = layer.weight.shape
    rows_per_group = out_channels // layer.groups
    axes = range(len(size))
    before = [padding(layer, axis)[0] for axis in axes]
    positions = [range(outputs(layer, axis, size[axis])) for axis in axes]
    for row, position in product(range(out_channels), product(*positions)):
        for channel, offset in product(range(per_group), product(*map(range, kernel))):
            at = [
                source(
                    position[axis] * layer.stride[axis]
                    + offset[axis] * layer.dilation[axis]
                    - before[axis],
                    size[axis],
                    layer.padding_mode,
                )
                for axis in axes
            ]
            column = (row // rows_per_group * per_group + channel, *at)
            yield Entry((row, *position), None if None in at else column, (row, channel, *offset))


def padding(layer, axis):
    """How many positions padding adds before and after an axis."""
    if layer.padding == "valid":
        return 0, 0
    if layer.padding == "same":  # the odd one goes after
        total = layer.dilation[axis] * (layer.kernel_size[axis] - 1)
        return total // 2, total - total // 2
    return layer.padding[axis], layer.padding[axis]


def outputs(layer, axis, length):
    """How many outputs fit along an axis."""
    reach = layer.dilation[axis] * (layer.kernel_size[axis] - 1) + 1
    return (length + sum(padding(layer, axis)) - reach) // layer.stride[axis] + 1


def source(at, length, mode):
    """The input position that is read at `at`, or None where padding made a zero."""
    if 0 <= at < length:
        return at
    if mode == "zeros":
        return None
    if mode == "replicate":
        return 0 if at < 0 else length - 1
    if mode == "circular":
        return at % length
    return -at if at < 0 else 2 * (length - 1) - at  # reflect, the edge not repeated


def multiply(layer, sample):
    """The layer's output for one sample `[channels, *size]`, by its matrix."""
    size = sample.shape[1:]
    shape = [layer.out_channels, *(outputs(layer, axis, n) for axis, n in enumerate(size))]
    out = torch.zeros(shape, dtype=sample.dtype)
    if layer.bias is not None:
        out += layer.bias.detach().view(-1, *[1] * len(size))
    for entry in matrix(layer, size):
        if entry.column is not None:
            out[entry.row] += layer.weight[entry.weight].item() * sample[entry.column].item()
    return out


def keep(part, value):
    """What a part of relevance keeps of one term."""
    return {"sum": value, "positive": max(value, 0.0), "absolute": abs(value)}[part]


def convolution_relevance(layer, given, made, part):
    """`rel(w)` of a convolution, of its weight's shape.

    `given` and `made` are the relevance of its inputs `[samples, channels, *size]` and outputs.
    """
    relevance = dict.fromkeys(product(*map(range, layer.weight.shape)), 0.0)
    entries = list(matrix(layer, given.shape[2:]))
    for r_in, r_out in zip(given, made, strict=True):
        inputs, results = lookup(r_in), lookup(r_out)
        for entry in entries:
            if entry.column is not None:
                relevance[entry.weight] += keep(part, inputs[entry.column])
            relevance[entry.weight] += keep(part, results[entry.row])
    return torch.tensor(list(relevance.values()), dtype=torch.float64).view(layer.weight.shape)


def linear_relevance(layer, given, made, part):
    """`rel(w)` of a linear layer: relevance of inputs `[..., in]` and outputs `[..., out]`."""
    relevance = torch.zeros(layer.out_features, layer.in_features, dtype=torch.float64)
    rows = zip(given.flatten(0, -2).tolist(), made.flatten(0, -2).tolist(), strict=True)
    for r_in, r_out in rows:
        for j, k in product(range(layer.out_features), range(layer.in_features)):
            relevance[j, k] += keep(part, r_in[k]) + keep(part, r_out[j])
    return relevance


def layer_relevance(layer, given, made, part):
    """`rel(w)` of either kind of layer."""
    twin = linear_relevance if isinstance(layer, nn.Linear) else convolution_relevance
    return twin(layer, given, made, part)


def lookup(values):
    """A tensor as index -> number: reading entries of a tensor one by one is far slower."""
    return dict(zip(product(*map(range, values.shape)), values.flatten().tolist(), strict=True))
