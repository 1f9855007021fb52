"""One call of a layer as a relevance rule is shown it: `z = a W + b`, forward and back."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from flexrel.relevance.patches import Stamp, Window
from flexrel.tracing import Geometry


@dataclass(frozen=True, slots=True, eq=False)
class Affine:
    """One call of a layer: what `z = a W + b` is made of, without the input.

    Attributes:
        name: of the layer that the weight belongs to.
        weight: `[out, in]`; of a convolution `[out, in / groups, *kernel]`; of a transposed one
            `[in, out / groups, *kernel]`.
        bias: `[out]`, or None.
        geometry: of a convolution; None of a linear layer.
        depth: where in the network it was called: 0 is its first layer, 1 its last. It is
            known in the backward pass only; 0 until then.
    """

    name: str
    weight: Tensor
    bias: Tensor | None
    geometry: Geometry | None
    depth: float = 0.0

    @property
    def groups(self) -> int:
        """Number of groups of channels; 1 for a linear layer."""
        return self.geometry.groups if self.geometry else 1

    def forward(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return `inputs W + bias` for another weight and bias of the same shapes."""
        g = self.geometry
        if g is None:
            return functional.linear(inputs, weight, bias)
        inputs, padding = _evenly_padded(inputs, g.padding)
        settings = (g.stride, padding, g.dilation, g.transposed, g.output_padding, g.groups)
        outputs: Tensor = torch.ops.aten.convolution.default(inputs, weight, bias, *settings)
        return outputs

    def backward(self, gradient: Tensor, weight: Tensor, like: Tensor) -> Tensor:
        """Return `gradient Wᵀ` for another weight; `like` is an input of the layer."""
        g = self.geometry
        if g is None:
            return gradient @ weight
        padded, padding = _evenly_padded(like, g.padding)
        found: Tensor = torch.ops.aten.convolution_backward.default(
            gradient,
            padded,
            weight,
            None,
            g.stride,
            padding,
            g.dilation,
            g.transposed,
            g.output_padding,
            g.groups,
            [True, False, False],
        )[0]
        if padded is like:
            return found
        for axis, ((before, _), size) in enumerate(
            zip(g.padding, like.shape[2:], strict=True), start=2
        ):
            found = found.narrow(axis, before, size)
        return found

    def times(self, scale: Tensor, shift: Tensor) -> "Affine":
        """Return the layer followed by `z * scale + shift` a channel: a folded batch norm."""
        ends = [1] * (self.weight.ndim - 2)
        if self.geometry and self.geometry.transposed:  # [in, out / groups, *kernel]
            groups, per_group = self.groups, self.weight.shape[1]
            rows = scale.view(groups, 1, per_group, *ends)
            weight = (self.weight.unflatten(0, (groups, -1)) * rows).flatten(0, 1)
        else:
            weight = self.weight * scale.view(-1, 1, *ends)
        bias = shift if self.bias is None else self.bias * scale + shift
        return replace(self, weight=weight, bias=bias)

    def cast(self, dtype: torch.dtype) -> "Affine":
        """Return the layer with weight and bias of another dtype."""
        bias = None if self.bias is None else self.bias.to(dtype)
        return replace(self, weight=self.weight.to(dtype), bias=bias)

    def axes(self) -> tuple[Window | Stamp, ...]:
        """Return how a convolution reads each of its spatial axes; `()` for a linear layer."""
        g = self.geometry
        if g is None:
            return ()
        kernel = self.weight.shape[2:]
        if g.transposed:
            sides = [before for before, _ in g.padding]
            stamps = zip(kernel, g.stride, g.dilation, sides, g.output_padding, strict=True)
            return tuple(Stamp(*stamp) for stamp in stamps)
        windows = zip(kernel, g.stride, g.dilation, g.padding, strict=True)
        return tuple(Window(k, s, d, *side, "zeros") for k, s, d, side in windows)


def _evenly_padded(inputs: Tensor, sides: tuple[tuple[int, int], ...]) -> tuple[Tensor, list[int]]:
    """Return the inputs and the padding that is left to do, which is even on both sides."""
    if all(before == after for before, after in sides):
        return inputs, [before for before, _ in sides]
    flat = [side for pair in reversed(sides) for side in pair]
    return functional.pad(inputs, flat), [0] * len(sides)
