"""What a network is pruned by: its name read once, and how a weight falls into groups and blocks.

Groups and blocks are taken of the matrix that a layer multiplies its inputs by, in the order in
which sparse kernels read it: a row an output, and along it, kernel position by kernel position,
the input channels. A weight of a convolution, `[outputs, inputs, *kernel]`, is so permuted to
`[outputs, *kernel, inputs]`, as NVIDIA's ASP and TensorRT do for 2:4.
"""

import re
from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from flexrel.errors import UsageError

Unit = Literal["element", "channel", "head", "depth", "n:m", "block"]
GRANULARITIES = ("element", "channel", "head", "depth", "N:M with 0 < N < M", "block:ROWSxCOLUMNS")
_WHOLE: tuple[Unit, ...] = ("element", "channel", "head", "depth")
_N_M = re.compile(r"([1-9][0-9]{0,8}):([1-9][0-9]{0,8})")
_BLOCK = re.compile(r"block:([1-9][0-9]{0,8})x([1-9][0-9]{0,8})")
_UNITS: dict[Unit, str] = {
    "element": "weights",
    "channel": "channels",
    "head": "heads",
    "depth": "residual blocks",
    "n:m": "weights",
    "block": "blocks",
}


@dataclass(frozen=True, slots=True)
class Pattern:
    """A granularity: what goes or stays as one."""

    unit: Unit
    size: tuple[int, int] = (1, 1)  # of a group: kept, of how many; of a block: rows, columns

    @staticmethod
    def of(text: str) -> "Pattern":
        """Return the pattern of a name such as "element", "channel", "2:4" or "block:4x4".

        Raises:
            UsageError: it can't be read; lists what can.
        """
        for unit in _WHOLE:
            if unit == text:
                return Pattern(unit)
        if found := _N_M.fullmatch(str(text)):
            kept, of = map(int, found.groups())
            if kept < of:
                return Pattern("n:m", (kept, of))
        elif found := _BLOCK.fullmatch(str(text)):
            rows, columns = map(int, found.groups())
            return Pattern("block", (rows, columns))
        raise UsageError(
            f"granularity {text!r} is not known; there are: {', '.join(GRANULARITIES)}"
        )

    @property
    def zeros(self) -> bool:
        """Whether weights are zeroed and no tensor becomes smaller."""
        return self.unit not in ("channel", "head", "depth")

    @property
    def units(self) -> str:
        """Name of its units, as in "12 channels"; those of N:M are weights."""
        return _UNITS[self.unit]


@dataclass(frozen=True, slots=True)
class WeightLayout:
    """Where outputs, kernel positions and inputs lie in a layer's weight, and its blocks.

    Raises:
        UsageError: the weight has no outputs and inputs, or they can't be split into groups.

    A block is a rectangle of the matrix of one group of the convolution. Those at its end are
    smaller if the block does not divide it.
    """

    shape: tuple[int, ...]  # of the weight
    groups: int = 1  # of a convolution
    transposed: bool = False  # the weight is [inputs, outputs / groups, *kernel]
    block: tuple[int, int] | None = None  # rows and columns; None: a unit is one entry

    def __post_init__(self) -> None:
        enough = len(self.shape) >= 2 and min(self.shape) >= 1 and self.groups >= 1  # noqa: PLR2004
        if not enough or self.shape[0] % self.groups or min(self.block or (1,)) < 1:
            raise UsageError(
                f"a weight of shape {self.shape} has no blocks {self.block} in {self.groups} groups"
            )

    @property
    def outputs(self) -> int:
        """Rows of the matrix."""
        return self.shape[1] * self.groups if self.transposed else self.shape[0]

    @property
    def inputs(self) -> int:
        """Input channels that one output sees; the matrix has as many columns a kernel position."""
        return self.shape[0] // self.groups if self.transposed else self.shape[1]

    def matrix(self, weight: Shaped[Tensor, "..."]) -> Shaped[Tensor, "outputs kernel inputs"]:
        """Return a tensor of the weight's shape as rows, each kernel position by position."""
        if self.transposed:
            weight = weight.unflatten(0, (self.groups, -1)).transpose(1, 2).flatten(0, 1)
        return weight.reshape(self.outputs, self.inputs, -1).transpose(1, 2)

    def weight(self, matrix: Shaped[Tensor, "outputs kernel inputs"]) -> Shaped[Tensor, "..."]:
        """Return the tensor of the weight's shape whose `matrix` it is."""
        entries = matrix.transpose(1, 2)
        if self.transposed:
            entries = entries.unflatten(0, (self.groups, -1)).transpose(1, 2)
        return entries.reshape(self.shape)

    @property
    def grid(self) -> tuple[int, ...]:
        """Shape of a mask over the units: rows and columns of blocks, or the weight's."""
        if self.block is None:
            return self.shape
        height, width = self.block
        rows, columns = self.outputs // self.groups, prod(self.shape) // self.outputs
        return self.groups * -(-rows // height), -(-columns // width)

    def entries(self, mask: Bool[Tensor, "*grid"]) -> int:
        """Return how many entries of the weight the units of a mask have."""
        if self.block is None:
            return int(mask.sum())
        return int(self._sizes()[mask].sum())

    def means(self, scores: Float[Tensor, "..."]) -> Float[Tensor, "*grid"]:
        """Return the mean score of each unit's entries, so that small blocks are no worse.

        Args:
            scores: one an entry, of the weight's shape; infinite ones count as the largest number.
        """
        if self.block is None:
            return scores
        most = torch.finfo(scores.dtype).max
        entries = self.matrix(scores.clamp(-most, most)).flatten(1).double()
        rows, columns = self._places()
        height, width = self.grid
        sums = entries.new_zeros(height, len(columns)).index_add_(0, rows, entries)
        sums = sums.new_zeros(height, width).index_add_(1, columns, sums)
        return (sums / self._sizes()).to(scores.dtype)

    def spread(self, mask: Bool[Tensor, "*grid"]) -> Bool[Tensor, "..."]:
        """Return a mask over units as one over the entries of the weight, of its shape."""
        if self.block is None:
            return mask
        rows, columns = self._places()
        entries = mask[rows][:, columns]
        return self.weight(entries.unflatten(1, (-1, self.inputs)))

    def _sizes(self) -> Int64[Tensor, "*grid"]:
        """Return how many entries each block has."""
        rows, columns = (place.bincount() for place in self._places())
        return rows[:, None] * columns

    def _places(self) -> tuple[Int64[Tensor, " outputs"], Int64[Tensor, " columns"]]:
        """Return the row of blocks that each row of the matrix lies in, and the columns'."""
        height, width = self.block or (1, 1)
        within = torch.arange(self.outputs // self.groups) // height
        starts = torch.arange(self.groups)[:, None] * (within[-1] + 1)
        columns = torch.arange(prod(self.shape) // self.outputs) // width
        return (starts + within).flatten(), columns
