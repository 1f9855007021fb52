"""Sums of relevance over one batch: of each layer, and of all of them in one vector.

What a batch adds is moved from an accelerator, checked and added up in one go, and not once for
each of a layer's sums.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import prod
from operator import attrgetter

import torch
from jaxtyping import Float64
from torch import Tensor

from flexrel.relevance.layer import Stamp, Window, sum_patches
from flexrel.relevance.vectors import LayerRelevance
from flexrel.tracing import AffineCall, Owner

_ENTRIES = 2**20  # of the scratch memory: it stays in a processor's cache
_ENTRIES_THERE = 2**26  # of that of an accelerator, where a call costs more than the memory

Scratch = dict[tuple[torch.device, torch.dtype], Tensor]


@dataclass(frozen=True, slots=True)
class LayerShape:
    """Which layer some sums are of, and of what shape.

    Attributes:
        name: of the layer.
        tied: other names of its weight.
        transposed: whether its weight is `[in, out / groups, *kernel]`.
        groups: of a convolution.
        inputs: shape of the sums of its input.
        outputs: how many it has.
    """

    name: str
    tied: tuple[str, ...]
    transposed: bool
    groups: int
    inputs: tuple[int, ...]
    outputs: int


def shape_of(owner: Owner, call: AffineCall) -> LayerShape:
    """Return the shape of a layer's sums, from a call of it."""
    weight, geometry = call.weight, call.geometry
    if geometry is None:
        inputs, outputs = (weight.shape[1],), weight.shape[0]
        return LayerShape(owner.name, owner.tied, owner.transposed, 1, inputs, outputs)
    channels, others = weight.shape[0], weight.shape[1] * geometry.groups
    if not geometry.transposed:
        channels, others = others, channels
    inputs = (channels, *weight.shape[2:])
    return LayerShape(owner.name, owner.tied, geometry.transposed, geometry.groups, inputs, others)


class LayerSums:
    """Relevance of a layer's inputs and outputs over one batch, added up over its calls.

    Side 0 is the input and 1 the output, of a layer whose weight lies as `shape` says.

    Attributes:
        shape: of the sums, by the layer's first call.
    """

    def __init__(self, shape: LayerShape) -> None:
        self.shape = shape
        self._sides: list[tuple[Tensor, Tensor] | None] = [None, None]

    def add(
        self,
        side: int,
        channel: int,
        windows: Sequence[Window | Stamp],
        scratch: Scratch,
        activation: Tensor,
        gradient: Tensor,
    ) -> None:
        """Add the relevance of an activation.

        Args:
            side: that it is on.
            channel: its axis of units.
            windows: how a convolution reads its other axes; `()` where each position counts once.
            scratch: as of `sum_relevance`.
            activation: its value.
            gradient: the modified gradient that came to it.
        """
        by_position = not all(map(_reads_each_once, windows))
        sums, samples = sum_relevance(
            activation, gradient, channel, scratch, by_position=by_position
        )
        if by_position:  # at once: the next call may read an input of another size
            sums = sum_patches(sums.flatten(0, 1), windows)
        self._add(side, sums.reshape(2, -1), samples)

    def add_lookups(self, side: int, indices: Tensor, value: Tensor, gradient: Tensor) -> None:
        """Add the relevance of rows of an embedding that were looked up."""
        rows = self.shape.inputs[0] if side == 0 else self.shape.outputs
        relevance = (value.double() * gradient).sum(-1).reshape(-1).cpu()  # of each lookup
        found = torch.zeros(2, rows, dtype=torch.float64)
        found.index_add_(1, indices.reshape(-1).cpu(), torch.stack((relevance, relevance.abs())))
        self._add(side, found, found[1])

    def _add(self, side: int, sums: Tensor, samples: Tensor) -> None:
        if (before := self._sides[side]) is not None:  # of further calls in float64
            sums = before[0].double() + sums.to(before[0].device)
            samples = before[1].double() + samples.to(before[1].device)
        self._sides[side] = (sums, samples)

    def parts(self) -> tuple[Tensor, ...]:
        """Return what `relevance_of` reads, in its order; `()` if none came to the output.

        An input that is a constant has zeros.
        """
        inputs, outputs = self._sides
        if outputs is None:
            return ()
        if inputs is None:
            zeros = outputs[0].new_zeros(2, prod(self.shape.inputs))
            inputs = zeros, zeros.new_zeros(self.shape.inputs[0])
        return (inputs[0].flatten(), inputs[1], outputs[0].flatten(), outputs[1])


def _reads_each_once(window: Window | Stamp) -> bool:
    """Return whether the only kernel position reads every position of the axis once."""
    pointwise = window.kernel == window.stride == 1
    return pointwise and isinstance(window, Window) and window.mode == "zeros"


def sum_relevance(
    activation: Tensor,
    gradient: Tensor,
    channel: int,
    scratch: Scratch,
    *,
    by_position: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the relevance of one activation, summed over samples and positions.

    Relevance is computed a few samples at a time into the same memory for every layer: allocating
    it afresh each time costs more than computing it, and a whole batch of it would be the largest
    tensor of the pass.

    Args:
        activation: `[samples, ...]`, or `[channels]` of one sample.
        gradient: of the scalar that relevance starts from, same shape.
        channel: the axis of units, not the first of several.
        scratch: memory that is used again by the next call; `{}` at first.
        by_position: keep the positions, which are the axes from 2 on; only samples are summed.

    Returns:
        `[2, channels]` or `[2, channels, *positions]`, plain sums and sums of absolute values; and
        `[channels]`, the sum over samples of the absolute value of what all positions of the
        channel add up to in the sample. All at least float32.
    """
    if activation.ndim == 1:
        activation, gradient, channel = activation[None], gradient[None], 1
    dtype = torch.promote_types(activation.dtype, torch.float32)  # products of halves overflow
    entries = _ENTRIES if activation.device.type == "cpu" else _ENTRIES_THERE
    rows = max(1, entries * len(activation) // max(activation.numel(), 1))
    memory = scratch.get((activation.device, dtype))
    needed = activation[:rows].numel()
    if memory is None or memory.numel() < needed:
        memory = torch.empty(needed, dtype=dtype, device=activation.device)
        scratch[activation.device, dtype] = memory
    positions = (*range(1, channel), *range(channel + 1, activation.ndim))
    summed = (0,) if by_position else (0, *positions)
    total: tuple[Tensor, Tensor] | None = None
    for values, gradients in zip(activation.split(rows), gradient.split(rows), strict=True):
        product = memory[: values.numel()].view(values.shape)
        torch.mul(values, gradients.to(dtype), out=product)
        by_sample = product.sum(positions) if positions else product
        plain = product.sum(0) if by_position else by_sample.sum(0)
        samples = by_sample.abs().sum(0)
        sums = torch.stack((plain, product.clamp_(min=0).sum(summed)))
        total = (sums, samples) if total is None else (total[0] + sums, total[1] + samples)
    if total is None:
        raise RuntimeError("there is no sample to sum over")
    total[0][1].mul_(2).sub_(total[0][0])  # of positive parts, until here
    return total


def flattened(
    layers: Iterable[LayerSums],
) -> tuple[tuple[LayerShape, ...], Float64[Tensor, "entries"]]:
    """Return the sums of all layers that relevance came to, one after the other, and their shapes.

    On the CPU, in units of the output that relevance starts from; of no layer none.
    """
    shapes: list[LayerShape] = []
    parts: list[Tensor] = []
    for layer in layers:
        if found := layer.parts():
            shapes.append(layer.shape)
            parts += found
    if not parts:
        return (), torch.zeros(0, dtype=torch.float64)
    runs = groupby(parts, key=attrgetter("device"))  # lookups are summed on the CPU
    return tuple(shapes), torch.cat([torch.cat([*run]).cpu() for _, run in runs]).double()


def by_layer(
    shapes: Sequence[LayerShape], values: Float64[Tensor, "entries"]
) -> Iterator[tuple[LayerShape, Float64[Tensor, "some"]]]:
    """Yield each layer's entries of such a vector: two sums a unit, and one by sample a channel."""
    first = 0
    for shape in shapes:
        last = first + 2 * prod(shape.inputs) + shape.inputs[0] + 3 * shape.outputs
        yield shape, values[first:last]
        first = last


def relevance_of(shape: LayerShape, values: Float64[Tensor, "entries"]) -> LayerRelevance:
    """Return the relevance of a layer of this shape, from its entries."""
    units, channels, outputs = prod(shape.inputs), shape.inputs[0], shape.outputs
    sizes = [units, units, channels, outputs, outputs, outputs]
    plain, absolute, by_sample, *of_output = values.split(sizes)
    return LayerRelevance(
        plain.view(shape.inputs),
        of_output[0],
        absolute.view(shape.inputs),
        of_output[1],
        groups=shape.groups,
        transposed=shape.transposed,
        tied=shape.tied,
        input_samples=by_sample,
        output_samples=of_output[2],
    )
