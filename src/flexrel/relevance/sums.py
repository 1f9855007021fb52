"""What one batch adds to the statistics of one layer."""

import torch
from torch import Tensor

from flexrel.relevance.affine import Affine
from flexrel.relevance.weights import Owner


class LayerSums:
    """Relevance of a layer's inputs and outputs, added up over its calls.

    Attributes:
        owner: the layer, and other names of its weight.
        transposed: whether its weight is `[in, out / groups, *kernel]`.
        groups: of a convolution.
    """

    def __init__(
        self, owner: Owner, units: tuple[int, ...], *, transposed: bool, groups: int
    ) -> None:
        self.owner, self.transposed, self.groups = owner, transposed, groups
        self._units = units  # of the input
        self._sides: list[Tensor | None] = [None, None]

    def add(self, side: int, found: Tensor, *, transposed: bool) -> None:
        """Add sums and sums of absolute values, `[2, *units]`, to the input (0) or output (1).

        A tied weight is read by another layer the other way round: what that layer's rows are
        fed with belongs to the columns here.
        """
        side = side if transposed == self.transposed else 1 - side
        before = self._sides[side]
        self._sides[side] = found if before is None else before + found

    @property
    def reached(self) -> bool:
        """Whether any relevance came to the layer's output."""
        return self._sides[1] is not None

    def vectors(self) -> tuple[Tensor, Tensor]:
        """Return the two `[2, *units]`; zeros for an input that is a constant."""
        inputs, outputs = self._sides
        if inputs is None:
            inputs = torch.zeros(2, *self._units, dtype=torch.float64)
        if outputs is None:
            raise RuntimeError(f"no relevance came to {self.owner.name!r}")
        return inputs, outputs


def sums_for(owner: Owner, affine: Affine) -> LayerSums:
    """Return empty sums for a layer, from a call of it."""
    weight, geometry = affine.weight, affine.geometry
    transposed = owner.transposed if geometry is None else geometry.transposed
    if geometry is None:
        units: tuple[int, ...] = (weight.shape[1],)
    else:
        channels = weight.shape[0] if transposed else weight.shape[1] * affine.groups
        units = (channels, *weight.shape[2:])
    return LayerSums(owner, units, transposed=transposed, groups=affine.groups)
