"""Sums over positions: what each kernel position of a convolution reads, without unfolding."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Window:
    """How a convolution reads one spatial axis."""

    kernel: int
    stride: int
    dilation: int
    before: int  # padding
    after: int
    mode: str  # "zeros", "reflect", "replicate" or "circular"


@dataclass(frozen=True, slots=True)
class Stamp:
    """How a transposed convolution writes along one spatial axis."""

    kernel: int
    stride: int
    dilation: int
    padding: int  # cropped on both sides
    output_padding: int  # added at the end


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
    relevance: Float[Tensor, "channels *positions"], axes: Sequence[Window | Stamp]
) -> Float[Tensor, "channels *kernel"]:
    """Sum the relevance of all patch elements that each kernel position reads.

    It is what summing the columns of the unfolded (im2col) relevance gives, without unfolding:
    along each spatial axis it is one small matrix, so the cost is in proportion to one sample.

    Args:
        relevance: relevance of the layer's input, summed over samples, in units of the output
            that relevance starts from.
        axes: how the convolution reads each spatial axis.

    Returns:
        `[channels, *kernel]`, float64, same unit: `r_in` of the paper's `rel(w) = r_in + r_out`.

    Source:
        Ours, from "Combining Relevance and Magnitude" (arXiv 2405.13088): each patch element
        counts once for every position whose receptive field holds it.
    """
    total = relevance.double()
    for axis, window in enumerate(axes, start=1):
        table = reads(window, total.shape[axis], total.device)
        total = torch.tensordot(total, table, dims=([axis], [1])).movedim(-1, axis)
    return total
