"""Least squares from second moments: which weights make a layer's outputs what they should be.

Ridge regression towards the weights as they are (ours: where the rows say nothing, nothing moves),
with inputs scaled to unit size, and the ridge chosen by rows that were held out.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flexrel.moments import Moments

RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_STEPS = 60  # of conjugate gradients
_SMALL = 1e-8  # of the mean square of the inputs: counts as no input


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """New weights of a layer, by groups.

    Attributes:
        weight: `[g, j, k]`, float64.
        bias: `[g, j]`: of the layer as a whole, not a change.
        ridge: that was chosen, in squared inputs of unit size; None: the weights as they were.
        before: mean squared error of the outputs on the held-out rows, as the layer was.
        after: as it is with the new weights.
    """

    weight: Float[Tensor, "g j k"]
    bias: Float[Tensor, "g j"]
    ridge: float | None
    before: float
    after: float


def error_of(weight: Float[Tensor, "g j k"], bias: Float[Tensor, "g j"], on: Moments) -> float:
    """Return the mean squared error of a layer's outputs, summed over outputs, on some rows."""
    m = on.centred()
    through = weight @ m.xx
    squares = m.yy - 2 * (weight * m.xy.mT).sum(2) + (through * weight).sum(2)
    apart = m.y - bias - (weight @ m.x[:, :, None]).squeeze(2)
    return float((squares + apart.square()).clamp_min(0).sum())


def solve(
    fit: Moments,
    check: Moments,
    weight: Float[Tensor, "g j k"],
    bias: Float[Tensor, "g j"],
    *,
    free_bias: bool,
    support: Bool[Tensor, "g j k"] | None = None,
) -> Solution:
    """Return the weights that bring the outputs closest to the goals.

    Args:
        fit: moments of the rows to fit.
        check: of others, on which the ridge is chosen, and whether to change anything at all.
        weight: as it is.
        bias: as it is.
        free_bias: whether the bias can change.
        support: which weights may be other than 0; None: all.
    """
    weight, bias = weight.double(), bias.double()
    best = Solution(weight, bias, None, error_of(weight, bias, check), 0.0)
    before = after = best.before
    options: list[tuple[float | None, Tensor]] = [(None, weight)] if free_bias else []
    options += [(r, _fitted(fit, weight, bias, r, free_bias, support)) for r in RIDGES]
    chosen: float | None = None
    taken: Tensor | None = None
    for ridge, found in options:
        error = error_of(found, _bias(fit, found, bias, free_bias), check)
        if error < after:
            after, chosen, taken = error, ridge, found
    if taken is None:
        return Solution(weight, bias, None, before, before)
    every = fit + check
    found = weight if chosen is None else _fitted(every, weight, bias, chosen, free_bias, support)
    if not found.isfinite().all():  # of inputs that hardly vary, rounding leaves little
        found = taken
    return Solution(found, _bias(every, found, bias, free_bias), chosen, before, after)


def _bias(rows: Moments, weight: Tensor, bias: Tensor, free: bool) -> Tensor:  # noqa: FBT001
    m = rows.centred()
    return m.y - (weight @ m.x[:, :, None]).squeeze(2) if free else bias


def _fitted(
    rows: Moments,
    weight: Tensor,
    bias: Tensor,
    ridge: float,
    free_bias: bool,  # noqa: FBT001
    support: Tensor | None,
) -> Tensor:
    if free_bias:
        m = rows.centred()
        xx, xy = m.xx, m.xy
    else:
        xx = rows.xx / rows.rows
        xy = (rows.xy - rows.x[:, :, None] * bias[:, None, :]) / rows.rows
    size = xx.diagonal(dim1=1, dim2=2).clamp_min(0)
    scale = (size + _SMALL * size.mean(1, keepdim=True).clamp_min(1e-30)).rsqrt()  # [g, k]
    left = (xy.mT - weight @ xx) * scale[:, None, :]
    xx = xx * scale[:, :, None] * scale[:, None, :]
    xx.diagonal(dim1=1, dim2=2).add_(ridge)
    change = _exact(xx, left) if support is None else _within(xx, left, support)
    return weight + change * scale[:, None, :]


def _exact(xx: Tensor, left: Tensor) -> Tensor:
    """Return the `[g, j, k]` with `change @ xx = left`."""
    factor, failed = torch.linalg.cholesky_ex(xx)
    if bool(failed.any()):
        return torch.full_like(left, torch.nan)
    return torch.cholesky_solve(left.mT, factor).mT


def _within(xx: Tensor, left: Tensor, support: Tensor) -> Tensor:
    """Return the change on the support alone that does best, by conjugate gradients.

    Each output has a support, so a system, of its own; all take their steps together.
    """
    change = torch.zeros_like(left)
    rest = left.masked_fill(~support, 0)
    way, size = rest.clone(), rest.square().sum(2, keepdim=True)
    goal = size * 1e-10
    for _ in range(_STEPS):
        if bool((size <= goal).all()):
            break
        through = (way @ xx).masked_fill_(~support, 0)
        step = size / (way * through).sum(2, keepdim=True).clamp_min(1e-300)
        change += step * way
        rest -= step * through
        now = rest.square().sum(2, keepdim=True)
        way = rest + now / size.clamp_min(1e-300) * way
        size = now
    return change
