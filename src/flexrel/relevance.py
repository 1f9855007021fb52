"""How relevance is read off one layer: the rule, and the sums over positions of a convolution.

The rule here is `gradient-input`: `R(a) = a * dy/da` for every activation `a` and the scalar
`y` that relevance starts from (Simonyan et al. 2013; Ancona et al. 2018, section 3). One plain
backward pass gives it for all activations at once.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

RULES = ("gradient-input",)

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
Layer = nn.Linear | Convolution


@dataclass(frozen=True, slots=True)
class Window:
    """How a convolution reads one spatial axis."""

    kernel: int
    stride: int
    dilation: int
    before: int  # padding
    after: int
    mode: str  # "zeros", "reflect", "replicate" or "circular"


def windows(layer: Convolution) -> tuple[Window, ...]:
    """Return how the convolution reads each of its spatial axes."""
    sides: list[tuple[int, int]]
    if layer.padding == "same":
        total = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        sides = [(t // 2, t - t // 2) for t in total]
    elif layer.padding == "valid":
        sides = [(0, 0)] * len(layer.kernel_size)
    else:
        sides = [(int(p), int(p)) for p in layer.padding]
    axes = zip(layer.kernel_size, layer.stride, layer.dilation, sides, strict=True)
    return tuple(Window(k, s, d, *side, layer.padding_mode) for k, s, d, side in axes)


@lru_cache(maxsize=256)
def reads(window: Window, length: int) -> Float[Tensor, "kernel length"]:
    """Count how often kernel position `k` reads position `x` of an axis of `length` positions.

    A position that padding copies (reflect, replicate, circular) is read once more for each
    copy; zeros that padding adds are read but belong to no position. float64.
    """
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


def sum_patches(
    relevance: Float[Tensor, "channels *positions"], axes: tuple[Window, ...]
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
        table = reads(window, total.shape[axis]).to(total.device)
        total = torch.tensordot(total, table, dims=([axis], [1])).movedim(-1, axis)
    return total


class Folder:
    """Folds the relevance of one activation into sums over samples; keeps one scratch buffer.

    Relevance is computed into the same memory for every layer: allocating it afresh each time
    costs more than computing it.
    """

    def __init__(self) -> None:
        self._scratch: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def fold(self, activation: Tensor, gradient: Tensor, keep: tuple[int, ...]) -> Tensor:
        """Return the sum and the sum of absolute values of `activation * gradient`.

        Args:
            activation: `[samples, ...]`.
            gradient: of the scalar that relevance starts from, same shape.
            keep: the axes that are kept; all others are summed.

        Returns:
            `[2, *kept]`: sums, and sums of absolute values; at least float32.
        """
        product = self._buffer(activation)
        torch.mul(activation, gradient.to(product.dtype), out=product)  # halves would overflow
        summed = tuple(axis for axis in range(product.ndim) if axis not in keep)
        plain = product.sum(summed)
        positive = product.clamp_(min=0).sum(summed)
        return torch.stack((plain, 2 * positive - plain))

    def _buffer(self, like: Tensor) -> Tensor:
        dtype = torch.promote_types(like.dtype, torch.float32)
        key = (like.device, dtype)
        flat = self._scratch.get(key)
        if flat is None or flat.numel() < like.numel():
            flat = self._scratch[key] = torch.empty(like.numel(), dtype=dtype, device=like.device)
        return flat[: like.numel()].view(like.shape)
