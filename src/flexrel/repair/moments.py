"""What a layer takes in, row by row, and the second moments of it: sums, so they add up.

A layer is `z = a W + b` over rows: samples, and for a convolution samples and positions. All that
least squares asks of the rows are their second moments, which are sums over rows, so those of
batches, processes and devices add up, as stats do. Neighbouring positions of a convolution
say much the same: a share of the rows, drawn at random, is unfolded, and never all of them.
"""

from dataclasses import dataclass, field
from math import prod

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from flexrel.tracing import ConvGeometry

_BLOCK = 96  # inputs whose products with the others are made at a time


def drawn_rows(
    outputs: Tensor, geometry: ConvGeometry | None, most: int, generator: torch.Generator
) -> Int64[Tensor, "rows"]:
    """Return the numbers of `most` of the rows that made the outputs, or of all if fewer.

    Args:
        outputs: of the layer: `[..., out]` of a linear one, else `[samples, out, *positions]`.
        geometry: of a convolution; None of a linear layer.
        most: how many to draw, without replacement.
        generator: of random numbers, on the CPU.

    Returns:
        Numbers of rows in the order of samples and then positions, ascending.
    """
    axis = outputs.ndim - 1 if geometry is None else 1
    rows = outputs.numel() // max(outputs.shape[axis], 1)
    if rows <= most:
        return torch.arange(rows)
    return torch.randperm(rows, generator=generator)[:most].sort().values


def samples_at(
    outputs: Tensor, geometry: ConvGeometry | None, rows: Int64[Tensor, "rows"], samples: int
) -> Int64[Tensor, "rows"]:
    """Return which sample each row is of, as far as the shape of the outputs tells.

    Args:
        outputs: of the layer, samples first; or positions first and samples second, as attention
            has them; or both in one axis.
        geometry: of a convolution; None of a linear layer.
        rows: as `drawn_rows` numbers them.
        samples: how many there are.
    """
    if geometry is None and len(outputs) != samples and samples in outputs.shape[1:-1]:
        axis = outputs.shape[:-1].index(samples)
        return rows // max(outputs.shape[axis + 1 : -1].numel(), 1) % samples
    channels = outputs.shape[-1 if geometry is None else 1]
    return rows * samples // max(outputs.numel() // max(channels, 1), 1)


def inputs_at(
    inputs: Tensor, weight: Tensor, geometry: ConvGeometry | None, rows: Int64[Tensor, "rows"]
) -> Float[Tensor, "rows groups inputs"]:
    """Return what the layer multiplies its weight with in some of its rows.

    Args:
        inputs: of the layer.
        weight: `[out, in]`, or `[out, in / groups, *kernel]`.
        geometry: of a convolution that is not transposed; None of a linear layer.
        rows: as `drawn_rows` numbers them.

    Returns:
        Entries in the order of `weight[0]`; those in the padding of a convolution are 0.
    """
    rows = rows.to(inputs.device)
    if geometry is None:
        return inputs.reshape(-1, 1, inputs.shape[-1])[rows]
    flat = [side for pair in reversed(geometry.padding) for side in pair]
    padded = functional.pad(inputs, flat) if any(flat) else inputs
    kernel, lengths = weight.shape[2:], padded.shape[2:]
    axes = range(len(kernel))
    outputs = [
        (lengths[a] - geometry.dilation[a] * (kernel[a] - 1) - 1) // geometry.stride[a] + 1
        for a in axes
    ]
    samples, channels, *steps = padded.stride()
    windows = padded.as_strided(
        (len(padded), *outputs, padded.shape[1], *kernel),
        (
            samples,
            *(steps[a] * geometry.stride[a] for a in axes),
            channels,
            *(steps[a] * geometry.dilation[a] for a in axes),
        ),
    )
    place = torch.unravel_index(rows, (len(padded), *outputs))
    return windows[place].reshape(len(rows), geometry.groups, -1)


def outputs_at(
    outputs: Tensor, geometry: ConvGeometry | None, rows: Int64[Tensor, "rows"]
) -> Float[Tensor, "rows out"]:
    """Return some of the rows of a layer's outputs, or of anything that has their shape."""
    rows = rows.to(outputs.device)
    if geometry is None:
        return outputs.reshape(-1, outputs.shape[-1])[rows]
    last = outputs.movedim(1, -1)
    return last[torch.unravel_index(rows, last.shape[:-1])]


@dataclass(frozen=True, slots=True, eq=False)
class SecondMoments:
    """Second moments of inputs and goals of a layer's groups; those of parts of the rows add up.

    A layer of `g` groups is `g` independent ones, of `k` inputs and `j` outputs each. Products are
    those of the distances from the means: of inputs that hardly vary, products of the inputs
    themselves would leave nothing but rounding.

    Attributes:
        rows: how many.
        x: sums of the inputs, float64.
        y: of the goals.
        xx: sums of the products of two inputs' distances from their means.
        xy: likewise of an input and a goal.
        yy: of each goal's squared distance.
    """

    rows: int
    x: Float[Tensor, "g k"]
    y: Float[Tensor, "g j"]
    xx: Float[Tensor, "g k k"]
    xy: Float[Tensor, "g k j"]
    yy: Float[Tensor, "g j"]

    def __add__(self, other: "SecondMoments") -> "SecondMoments":
        """Return the moments of the rows of both.

        Source:
            Chan, Golub and LeVeque, 1983: sums of squares of two parts, from their means.
        """
        if not (self.rows and other.rows):
            return self if self.rows else other
        (x, y), (other_x, other_y) = self.means(), other.means()
        x, y = (other_x - x).to(self.xx.dtype), (other_y - y).to(self.xx.dtype)
        share = self.rows * other.rows / (self.rows + other.rows)
        return SecondMoments(
            self.rows + other.rows,
            self.x + other.x,
            self.y + other.y,
            (self.xx + other.xx).baddbmm_(x[:, :, None], x[:, None, :], alpha=share),
            (self.xy + other.xy).baddbmm_(x[:, :, None], y[:, None, :], alpha=share),
            self.yy + other.yy + share * y.square(),
        )

    def of(self, outputs: Int64[Tensor, "some"]) -> "SecondMoments":
        """Return the moments of some outputs alone, the same ones of each group."""
        y, xy, yy = self.y[:, outputs], self.xy[:, :, outputs], self.yy[:, outputs]
        return SecondMoments(self.rows, self.x, y, self.xx, xy, yy)

    def means(self) -> tuple[Float[Tensor, "g k"], Float[Tensor, "g j"]]:
        """Return the means of inputs and goals; 0 of no rows."""
        count = max(self.rows, 1)
        return self.x / count, self.y / count

    def centred(self) -> "SecondMoments":
        """Return the moments per row, about the means: `x` and `y` are the means themselves."""
        count = max(self.rows, 1)
        return SecondMoments(
            self.rows, *self.means(), self.xx / count, self.xy / count, self.yy / count
        )

    def about_zero(self) -> "SecondMoments":
        """Return the moments per row of inputs and goals as they are; `x` and `y` are means."""
        m = self.centred()
        x, y = m.x.to(m.xx.dtype), m.y.to(m.xx.dtype)
        m.xx.baddbmm_(x[:, :, None], x[:, None, :])
        m.xy.baddbmm_(x[:, :, None], y[:, None, :])
        m.yy.add_(y.square())
        return m


def second_moments(
    inputs: Float[Tensor, "rows g k"],
    goals: Float[Tensor, "rows out"] | None = None,
    dtype: torch.dtype = torch.float64,
) -> SecondMoments:
    """Return the second moments of some rows.

    Args:
        inputs: as `inputs_at` returns them.
        goals: what each row's outputs should be, the groups one after the other; None: none.
        dtype: of the products' sums.
    """
    count, groups = inputs.shape[:2]
    goals = inputs.new_zeros(count, 0) if goals is None else goals
    y = goals.reshape(count, groups, prod(goals.shape[1:]) // groups).transpose(0, 1)
    x = inputs.transpose(0, 1)
    sums = x.sum(1, dtype=torch.float64), y.sum(1, dtype=torch.float64)
    x, y = (_centred(*rows) for rows in zip((x, y), sums, strict=True))
    xy = (x.mT @ y).to(dtype)
    return SecondMoments(count, *sums, _gram(x).to(dtype), xy, y.to(dtype).square().sum(1))


def _gram(x: Float[Tensor, "g rows k"]) -> Float[Tensor, "g k k"]:
    """Return the products of all inputs; of each two only once, in blocks of them."""
    width = x.shape[2]
    if width <= _BLOCK:
        return x.mT @ x
    found = x.new_empty(len(x), width, width)
    for start in range(0, width, _BLOCK):
        end = start + _BLOCK
        torch.bmm(x[:, :, start:end].mT, x[:, :, start:], out=found[:, start:end, start:])
        found[:, end:, start:end] = found[:, start:end, end:].mT
    return found


def _centred(rows: Tensor, total: Tensor) -> Tensor:
    """Return the rows less their mean, which may have no such digits: so it is taken in two."""
    if not rows.shape[1]:
        return rows
    near = rows - (total / rows.shape[1]).to(rows)[:, None]
    return near.sub_(near.mean(1, keepdim=True))


@dataclass(slots=True, eq=False)
class RunningMoments:
    """Second moments of rows that come a few at a time.

    Rows wait until there are as many as inputs, so that the passes over the moments, which are
    inputs by inputs, are few however small the batches.
    """

    _sum: SecondMoments | None = None
    _waiting: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def add_(self, inputs: Float[Tensor, "rows g k"], goals: Float[Tensor, "rows out"]) -> None:
        """Take in some rows, as `second_moments` does."""
        if not len(inputs):
            return
        self._waiting.append((inputs, goals))
        if sum(len(rows) for rows, _ in self._waiting) >= inputs.shape[2]:
            self.total()

    def total(self) -> SecondMoments | None:
        """Return the moments of all rows that came; None of none."""
        if self._waiting:
            inputs, goals = (torch.cat(found) for found in zip(*self._waiting, strict=True))
            self._waiting.clear()
            found = second_moments(inputs, goals)
            self._sum = found if self._sum is None else self._sum + found
        return self._sum
