"""From an activation and its gradient to sums of relevance over samples and positions."""

import torch
from torch import Tensor


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
        if not summed:
            return torch.stack((product, product.abs()))
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
