"""A layer's weights rounded by least squares: what one is off by, the others make up for.

Frantar et al. 2023 (GPTQ, arXiv 2210.17323), in turn Hassibi and Stork 1993 (OBS): inputs are taken
one after the other, the largest first; all outputs at once, since they share the inputs' moments.
"""

from dataclasses import replace
from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flexrel.core.precision import scales_of
from flexrel.repair.least_squares import LayerSolution
from flexrel.repair.moments import SecondMoments

_DAMPING: Final = 0.01  # of the mean square of the inputs
_TOGETHER: Final = 128  # inputs whose effect on later ones is added up at once


def round_solution(
    solution: LayerSolution,
    rows: SecondMoments,
    largest: int,
    dtype: torch.dtype,
    *,
    free_bias: bool,
    support: Bool[Tensor, "g j k"] | None = None,
) -> LayerSolution:
    """Return the solution with rounded weights, and the bias that does best with them.

    Args:
        solution: of a layer.
        rows: moments of all its rows.
        largest: whole number allowed.
        dtype: of the layer's weight, which has to hold the rounded ones exactly.
        free_bias: whether the bias can change.
        support: which weights may be other than 0; None: all.
    """
    if not free_bias:
        weight = rounded(solution.weight, rows.about_zero().xx, largest, support, dtype)
        return replace(solution, weight=weight)
    m = rows.centred()
    weight = rounded(solution.weight, m.xx, largest, support, dtype)
    return replace(solution, weight=weight, bias=m.y - (weight @ m.x[:, :, None]).squeeze(2))


def rounded(
    weight: Float[Tensor, "g j k"],
    xx: Float[Tensor, "g k k"],
    largest: int,
    support: Bool[Tensor, "g j k"] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "g j k"]:
    """Return whole numbers times a scale for each output that change the layer's outputs least.

    Args:
        weight: that makes the outputs best; finite.
        xx: mean of the products of inputs, from which their means may have been taken.
        largest: whole number allowed.
        support: which weights may be other than 0; None: all.
        dtype: that has to hold the products exactly.
    """
    squares = xx.diagonal(dim1=1, dim2=2)
    order = squares.argsort(dim=1, descending=True, stable=True)
    xx = xx.gather(1, order[:, :, None].expand_as(xx)).gather(2, order[:, None].expand_as(xx))
    damping = _DAMPING * squares.mean(1, keepdim=True).clamp_min(torch.finfo(xx.dtype).tiny)
    xx.diagonal(dim1=1, dim2=2).add_(damping)
    across = order[:, None].expand_as(weight)
    rest = weight.gather(2, across)
    free = torch.ones_like(rest) if support is None else support.gather(2, across).to(rest)
    vary = squares.any(1, keepdim=True)  # where nothing does, all weights count the same
    weights = squares.gather(1, order).where(vary, 1.0)[:, None].expand_as(rest)
    flat = ((rest * free).flatten(0, 1).float(), largest, weights.flatten(0, 1).float())
    scales = scales_of(*flat, dtype).to(rest).view(*rest.shape[:2], 1)
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(xx)), upper=True)
    found = torch.empty_like(rest)
    for start in range(0, rest.shape[2], _TOGETHER):
        here = slice(start, start + _TOGETHER)
        block = (rest[:, :, here], free[:, :, here], found[:, :, here])
        errors = _round_block(*block, upper[:, here, here], scales, largest)
        rest[:, :, start + _TOGETHER :] -= errors @ upper[:, here, start + _TOGETHER :]
    return torch.empty_like(found).scatter_(2, across, found)


def _round_block(
    rest: Tensor, free: Tensor, found: Tensor, upper: Tensor, scales: Tensor, largest: int
) -> Tensor:
    """Fill `found` for some inputs; return by how much each is off, in the unit of its pivot."""
    errors = torch.empty_like(rest)
    for at in range(rest.shape[2]):
        wanted = rest[:, :, at, None]
        whole = (wanted / scales).round().clamp(-largest, largest) * free[:, :, at, None]
        found[:, :, at, None] = whole * scales + 0.0
        errors[:, :, at, None] = (wanted - found[:, :, at, None]) / upper[:, at, at, None, None]
        rest[:, :, at:] -= errors[:, :, at, None] * upper[:, at, None, at:]
    return errors
