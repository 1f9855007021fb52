"""The sums of all layers over one batch, one after the other in one vector.

So that what a batch adds is moved from an accelerator, checked and added up in one go, and not once
for each of a layer's sums.
"""

from collections.abc import Iterator, Mapping
from itertools import groupby
from math import prod
from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from flexrel.relevance.fold import Folded
from flexrel.relevance.sums import LayerSums


class Place(NamedTuple):
    """Of which layer some entries of the vector are.

    Attributes:
        name: of the layer.
        tied: other names of its weight.
        transposed: whether its weight is `[in, out / groups, *kernel]`.
        groups: of a convolution.
        units: shape of the sums of its input.
        outputs: how many it has.
    """

    name: str
    tied: tuple[str, ...]
    transposed: bool
    groups: int
    units: tuple[int, ...]
    outputs: int


Layout = tuple[Place, ...]


def together(sums: Mapping[str, LayerSums]) -> tuple[Layout, Float64[Tensor, "entries"]]:
    """Return the sums of all layers that relevance came to, and which entries are whose.

    On the CPU, in units of the output that relevance starts from; of no layer none. Of one layer
    follow its input's sums, its input's by sample, and likewise those of its output.
    """
    places, parts = [], []
    for name, layer in sums.items():
        if not layer.reached:
            continue
        inputs, outputs = layer.vectors()
        units = tuple(inputs.sums.shape[1:])
        count = len(outputs.samples)
        tied = layer.owner.tied
        places.append(Place(name, tied, layer.transposed, layer.groups, units, count))
        parts += [part.flatten() for side in (inputs, outputs) for part in side]
    if not parts:
        return (), torch.zeros(0, dtype=torch.float64)
    runs = groupby(parts, key=lambda part: part.device)  # lookups are summed on the CPU
    return tuple(places), torch.cat([torch.cat([*run]).cpu() for _, run in runs]).double()


def by_layer(layout: Layout, values: Float64[Tensor, "entries"]) -> Iterator[tuple[Folded, Folded]]:
    """Yield the sums of each layer's input and output, views of the vector that `together` made."""
    for place in layout:
        sizes = [2 * prod(place.units), place.units[0], 2 * place.outputs, place.outputs]
        inputs, channels, outputs, by_output, values = values.split(
            [*sizes, len(values) - sum(sizes)]
        )
        sums = inputs.view(2, *place.units), outputs.view(2, place.outputs)
        yield Folded(sums[0], channels), Folded(sums[1], by_output)
