"""What one batch adds to the statistics of one layer."""

from collections.abc import Sequence

import torch
from torch import Tensor

from flexrel.relevance.fold import Folded, Folder
from flexrel.relevance.layer import Affine
from flexrel.relevance.patches import Stamp, Window, sum_patches
from flexrel.tracing import Owner


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
        self._sides: list[Folded | None] = [None, None]

    def add(self, side: int, found: Folded, *, transposed: bool) -> None:
        """Add sums over units to those of the input (0) or output (1): of further calls in float64.

        A tied weight is read by another layer the other way round: what that layer's rows are
        fed with belongs to the columns here.
        """
        side = side if transposed == self.transposed else 1 - side
        before = self._sides[side]
        if before is not None:
            pairs = zip(before, found, strict=True)
            found = Folded(*(old.double() + new.to(old.device) for old, new in pairs))
        self._sides[side] = found

    def add_input(
        self,
        folder: Folder,
        keep: tuple[int, ...],
        axes: Sequence[Window | Stamp],
        transposed: bool,  # noqa: FBT001 - of a partial, as the next
        value: Tensor,
        gradient: Tensor,
    ) -> None:
        """Add the relevance of an input; `axes` are how a convolution reads it."""
        if axes and all(_reads_all_once(axis) for axis in axes):
            found = folder.fold(value, gradient, (1,))
            found = found._replace(sums=found.sums.view(2, -1, *[1] * len(axes)))
        else:
            found = folder.fold(value, gradient, keep)
            if axes:  # at once: the next call may read an input of another size
                summed = sum_patches(found.sums.flatten(0, 1), axes)
                found = found._replace(sums=summed.unflatten(0, (2, -1)))
        self.add(0, found, transposed=transposed)

    def add_output(
        self,
        folder: Folder,
        channel: int,
        transposed: bool,  # noqa: FBT001
        value: Tensor,
        gradient: Tensor,
    ) -> None:
        """Add the relevance of an output whose axis of units is `channel`."""
        self.add(1, folder.fold(value, gradient, (channel,)), transposed=transposed)

    def add_lookups(self, indices: Tensor, value: Tensor, gradient: Tensor) -> None:
        """Add the relevance of rows of an embedding that were looked up."""
        relevance = (value.double() * gradient).sum(-1).reshape(-1).cpu()  # of each lookup
        found = torch.zeros(2, *self._units, dtype=torch.float64)
        found.index_add_(1, indices.reshape(-1).cpu(), torch.stack((relevance, relevance.abs())))
        self.add(0, Folded(found, found[1]), transposed=True)

    @property
    def reached(self) -> bool:
        """Whether any relevance came to the layer's output."""
        return self._sides[1] is not None

    def vectors(self) -> tuple[Folded, Folded]:
        """Return the sums of inputs and outputs; zeros for an input that is a constant."""
        inputs, outputs = self._sides
        if outputs is None:
            raise RuntimeError(f"no relevance came to {self.owner.name!r}")
        if inputs is None:
            zeros = outputs.sums.new_zeros(2, *self._units)
            inputs = Folded(zeros, zeros.new_zeros(self._units[0]))
        return inputs, outputs


def _reads_all_once(axis: Window | Stamp) -> bool:
    """Return whether the only kernel position reads every position of the axis once."""
    return isinstance(axis, Window) and axis.kernel == axis.stride == 1 and axis.mode == "zeros"


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
