"""One call of a layer: `z = a W + b`, forward and back, and which positions its kernel reads."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from flexrel.tracing import AffineCall, ConvGeometry, Op


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
    geometry: ConvGeometry | None
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


def _evenly_padded(inputs: Tensor, sides: tuple[tuple[int, int], ...]) -> tuple[Tensor, list[int]]:
    """Return the inputs and the padding that is left to do, which is even on both sides."""
    if all(before == after for before, after in sides):
        return inputs, [before for before, _ in sides]
    both = [side for pair in reversed(sides) for side in pair]
    return functional.pad(inputs, both), [0] * len(sides)


@dataclass(frozen=True, slots=True)
class Window:
    """How a convolution reads one spatial axis."""

    kernel: int
    stride: int
    dilation: int
    before: int  # padding
    after: int
    mode: str = "zeros"  # or "reflect", "replicate", "circular"


@dataclass(frozen=True, slots=True)
class Stamp:
    """How a transposed convolution writes along one spatial axis."""

    kernel: int
    stride: int
    dilation: int
    padding: int  # cropped on both sides
    output_padding: int  # added at the end


def windows_of(call: AffineCall) -> tuple[Window | Stamp, ...]:
    """Return how a convolution reads each of its spatial axes; `()` for a linear layer."""
    g = call.geometry
    if g is None:
        return ()
    kernel = call.weight.shape[2:]
    before, after = zip(*g.padding, strict=True)
    if g.transposed:
        return tuple(map(Stamp, kernel, g.stride, g.dilation, before, g.output_padding))
    return tuple(map(Window, kernel, g.stride, g.dilation, before, after))


@dataclass(frozen=True, slots=True, eq=False)
class Padding:
    """That a tensor is another one padded: before a convolution it counts as the convolution's own.

    Attributes:
        source: what was padded.
        sides: before and after, of the last axes, in their order.
        mode: as of `Window`.
        versions: of the padded tensor and the source then.
    """

    source: Tensor
    sides: Sequence[tuple[int, int]]
    mode: str
    versions: tuple[int, int]

    def undone(
        self, inputs: Tensor, windows: tuple[Window | Stamp, ...]
    ) -> tuple[Tensor, tuple[Window | Stamp, ...], Tensor]:
        """Return what a convolution of the padded inputs reads before padding, and how.

        Also returns the part of `inputs` with the same values, which autograd keeps anyway. The
        padding is left done if either tensor was overwritten since, or the convolution pads in
        another mode itself, or is a transposed one.
        """
        first = len(windows) - len(self.sides)
        if first < 0 or self.versions != (inputs._version, self.source._version):  # noqa: SLF001
            return inputs, windows, inputs
        found, inside = list(windows), inputs
        for at, (before, after) in enumerate(self.sides, start=first):
            window = found[at]
            if isinstance(window, Stamp):
                return inputs, windows, inputs
            if self.mode != "zeros" and (window.before or window.after):
                return inputs, windows, inputs
            sides = {"before": window.before + before, "after": window.after + after}
            found[at] = replace(window, **sides, mode=self.mode)
            inside = inside.narrow(at + 2, before, self.source.shape[at + 2])
        return self.source, tuple(found), inside


def padding_of(op: Op, result: Tensor) -> Padding | None:
    """Return what a call of `pad` did; None if it crops, or adds other numbers than zeros."""
    names = "input pad mode value" if op.name == "pad" else "input pad value"
    given = op.named(names)
    source, ends = given["input"], list(given["pad"])
    if not source.requires_grad or any(end < 0 for end in ends) or given.get("value"):
        return None
    sides = [*zip(ends[::2], ends[1::2], strict=True)][::-1]  # torch gives the last axis first
    mode = given.get("mode", "constant")
    versions = (result._version, source._version)  # noqa: SLF001 - to see what was overwritten
    return Padding(source, sides, "zeros" if mode == "constant" else mode, versions)


@lru_cache(maxsize=256)
def reads(
    window: Window | Stamp, length: int, device: torch.device | None = None
) -> Float[Tensor, "kernel length"]:
    """Count how often kernel position `k` reads position `x` of an axis of `length` positions.

    A position that padding copies (reflect, replicate, circular) is read once more for each
    copy; zeros that padding adds are read but belong to no position. float64, on the device or
    the CPU; kept, so not to be changed.
    """
    if device is not None and device.type != "cpu":
        return reads(window, length).to(device)
    if isinstance(window, Stamp):
        return _stamps(window, length)
    positions = torch.arange(length, dtype=torch.float64)
    sides = (window.before, window.after)
    if window.mode == "zeros":
        source = functional.pad(positions, sides, value=-1.0)
    else:
        source = functional.pad(positions.view(1, 1, -1), sides, mode=window.mode).view(-1)
    span = window.dilation * (window.kernel - 1)
    starts = torch.arange(0, len(source) - span, window.stride)
    offsets = torch.arange(window.kernel) * window.dilation
    read = source[offsets[:, None] + starts[None, :]].long()  # [kernel, output positions]
    counts = torch.zeros(window.kernel, length + 1, dtype=torch.float64)
    counts.scatter_add_(1, read + 1, torch.ones_like(read, dtype=torch.float64))
    return counts[:, 1:]  # column 0 took the zeros of the padding


def _stamps(stamp: Stamp, length: int) -> Tensor:
    """Say which outputs exist: `x` is read by `k` where `x * stride + k * dilation` is one."""
    span = stamp.dilation * (stamp.kernel - 1)
    outputs = (length - 1) * stamp.stride - 2 * stamp.padding + span + stamp.output_padding + 1
    starts = torch.arange(length) * stamp.stride - stamp.padding
    written = torch.arange(stamp.kernel)[:, None] * stamp.dilation + starts[None, :]
    return ((written >= 0) & (written < outputs)).double()


def sum_patches(
    relevance: Float[Tensor, "channels *positions"], windows: Sequence[Window | Stamp]
) -> Float[Tensor, "channels *kernel"]:
    """Sum the relevance of all patch elements that each kernel position reads.

    It is what summing the columns of the unfolded (im2col) relevance gives, without unfolding:
    along each spatial axis it is one small matrix, so the cost is in proportion to one sample.

    Args:
        relevance: relevance of the layer's input, summed over samples, in units of the output
            that relevance starts from.
        windows: how the convolution reads each spatial axis.

    Returns:
        `[channels, *kernel]`, float64, same unit: `r_in` of the paper's `rel(w) = r_in + r_out`.

    Source:
        Ours, from "Combining Relevance and Magnitude" (arXiv 2405.13088): each patch element
        counts once for every position whose receptive field holds it.
    """
    total = relevance.double()
    for axis, window in enumerate(windows, start=1):
        table = reads(window, total.shape[axis], total.device)
        total = torch.tensordot(total, table, dims=([axis], [1])).movedim(-1, axis)
    return total
