"""From an activation and its gradient to sums of relevance over samples and positions."""

import torch
from torch import Tensor

_ENTRIES = 2**20  # of the scratch buffer: it stays in a processor's cache


class Folder:
    """Folds the relevance of one activation into sums over samples; keeps one scratch buffer.

    Relevance is computed a few samples at a time into the same memory for every layer: allocating
    it afresh each time costs more than computing it, and a whole batch of it would be the largest
    tensor of the pass.
    """

    def __init__(self) -> None:
        self._scratch: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def fold(self, activation: Tensor, gradient: Tensor, keep: tuple[int, ...]) -> Tensor:
        """Return the sum and the sum of absolute values of `activation * gradient`.

        Args:
            activation: `[samples, ...]`.
            gradient: of the scalar that relevance starts from, same shape.
            keep: the axes that are kept, not the first unless it is the only one; all others
                are summed.

        Returns:
            `[2, *kept]`: sums, and sums of absolute values; at least float32.
        """
        if activation.ndim == 1:
            activation, gradient, keep = activation[None], gradient[None], (1,)
        rows = max(1, _ENTRIES * len(activation) // max(activation.numel(), 1))
        total: Tensor | None = None
        for values, gradients in zip(activation.split(rows), gradient.split(rows), strict=True):
            part = self._sums(values, gradients, keep)
            total = part if total is None else total.add_(part)
        if total is None:
            raise RuntimeError("there is no sample to fold")
        total[1].mul_(2).sub_(total[0])  # of positive parts, until here
        return total

    def _sums(self, activation: Tensor, gradient: Tensor, keep: tuple[int, ...]) -> Tensor:
        """Return `[2, *kept]`: sums, and sums of positive parts."""
        product = self._buffer(activation)
        torch.mul(activation, gradient.to(product.dtype), out=product)  # halves would overflow
        summed = tuple(axis for axis in range(product.ndim) if axis not in keep)
        return torch.stack((product.sum(summed), product.clamp_(min=0).sum(summed)))

    def _buffer(self, like: Tensor) -> Tensor:
        dtype = torch.promote_types(like.dtype, torch.float32)
        key = (like.device, dtype)
        flat = self._scratch.get(key)
        if flat is None or flat.numel() < like.numel():
            flat = self._scratch[key] = torch.empty(like.numel(), dtype=dtype, device=like.device)
        return flat[: like.numel()].view(like.shape)
