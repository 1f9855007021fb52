"""From an activation and its gradient to sums of relevance over samples and positions."""

from typing import NamedTuple

import torch
from torch import Tensor

_ENTRIES = 2**20  # of the scratch buffer: it stays in a processor's cache
_ENTRIES_THERE = 2**26  # of that of an accelerator, where a call costs more than the memory


class Folded(NamedTuple):
    """Relevance of one activation, summed.

    Attributes:
        sums: `[2, *kept]`: plain sums, and sums of absolute values.
        samples: `[channels]`: the sum over samples of the absolute value of what all positions
            of the channel add up to in the sample.
    """

    sums: Tensor
    samples: Tensor


class Folder:
    """Folds the relevance of one activation into sums over samples; keeps one scratch buffer.

    Relevance is computed a few samples at a time into the same memory for every layer: allocating
    it afresh each time costs more than computing it, and a whole batch of it would be the largest
    tensor of the pass.
    """

    def __init__(self) -> None:
        self._scratch: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def fold(self, activation: Tensor, gradient: Tensor, keep: tuple[int, ...]) -> Folded:
        """Return the sums of `activation * gradient`; at least float32.

        Args:
            activation: `[samples, ...]`.
            gradient: of the scalar that relevance starts from, same shape.
            keep: the axes that are kept, channels first, and not the first axis unless it is the
                only one; all others are summed.
        """
        if activation.ndim == 1:
            activation, gradient, keep = activation[None], gradient[None], (1,)
        entries = _ENTRIES if activation.device.type == "cpu" else _ENTRIES_THERE
        rows = max(1, entries * len(activation) // max(activation.numel(), 1))
        total: Folded | None = None
        for values, gradients in zip(activation.split(rows), gradient.split(rows), strict=True):
            part = self._sums(values, gradients, keep)
            total = part if total is None else Folded(*map(torch.add, total, part))
        if total is None:
            raise RuntimeError("there is no sample to fold")
        total.sums[1].mul_(2).sub_(total.sums[0])  # of positive parts, until here
        return total

    def _sums(self, activation: Tensor, gradient: Tensor, keep: tuple[int, ...]) -> Folded:
        """Return the same, but with sums of positive parts in place of absolute values."""
        product = self._buffer(activation)
        torch.mul(activation, gradient.to(product.dtype), out=product)  # halves would overflow
        summed = tuple(axis for axis in range(product.ndim) if axis not in keep)
        within = tuple(axis for axis in range(1, product.ndim) if axis != keep[0])
        by_sample = product.sum(within) if within else product
        plain = by_sample.sum(0) if len(keep) == 1 else product.sum(summed)
        samples = by_sample.abs().sum(0)
        return Folded(torch.stack((plain, product.clamp_(min=0).sum(summed))), samples)

    def _buffer(self, like: Tensor) -> Tensor:
        dtype = torch.promote_types(like.dtype, torch.float32)
        key = (like.device, dtype)
        flat = self._scratch.get(key)
        if flat is None or flat.numel() < like.numel():
            flat = self._scratch[key] = torch.empty(like.numel(), dtype=dtype, device=like.device)
        return flat[: like.numel()].view(like.shape)
