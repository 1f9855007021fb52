"""Least squares from second moments: which weights make a layer's outputs what they should be.

Ridge regression towards the weights as they are (ours: where the rows say nothing, nothing moves),
with inputs scaled to unit size, and the ridge chosen by rows that were held out.
"""

from dataclasses import dataclass, replace
from math import inf, isnan

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flexrel.repair.moments import SecondMoments
from flexrel.repair.systems import normal_solution, within

RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_TRIED = 64  # outputs on which the ridge is chosen, where each is solved by itself
_ROUGH = 1e-3  # steps end when the last brought this share of what all did, or less: to judge by
_CLOSE = 1e-10  # likewise: to keep
_SINGLE = 1e-3  # where the ridge is no less: it makes the matrix regular enough
_TINY = 1e-30  # in place of a divisor that is 0
_SMALL = 1e-8  # of the mean square of the inputs: counts as no input
_STILL = 1e-4  # of an input's squared mean: one that varies less hardly counts, as it is rounding


@dataclass(frozen=True, slots=True, eq=False)
class LayerSolution:
    """New weights of a layer, by groups.

    Attributes:
        weight: `[g, j, k]`, float64.
        bias: `[g, j]`: of the layer as a whole, not a change.
        ridge: that was chosen, in squared inputs of unit size; None: the weights as they were.
        before: mean squared error, on the held-out rows, of the outputs that it was chosen on, as
            the layer was.
        after: likewise, fitted to the other rows alone.
        variance: of these outputs there, above 0.
    """

    weight: Float[Tensor, "g j k"]
    bias: Float[Tensor, "g j"]
    ridge: float | None
    before: float
    after: float
    variance: float


def error_of(
    weight: Float[Tensor, "g j k"], bias: Float[Tensor, "g j"], centred: SecondMoments
) -> float:
    """Return the mean squared error of a layer's outputs, summed over outputs.

    Args:
        weight: of the layer.
        bias: likewise.
        centred: moments of the rows, as `SecondMoments.centred` returns them.
    """
    m = centred
    squares = m.yy - 2 * (weight * m.xy.mT).sum(2) + ((weight @ m.xx) * weight).sum(2)
    apart = m.y - bias - (weight @ m.x[:, :, None]).squeeze(2)
    return float((squares + apart.square()).clamp_min(0).sum())


def solve(
    fit: SecondMoments,
    check: SecondMoments,
    weight: Float[Tensor, "g j k"],
    bias: Float[Tensor, "g j"],
    *,
    free_bias: bool,
    support: Bool[Tensor, "g j k"] | None = None,
    near: float | None = None,
) -> LayerSolution:
    """Return the weights that bring the outputs closest to the goals.

    The ridge is one of `RIDGES` whose neighbours do no better; where there are many outputs, by 64
    of them.

    Args:
        fit: moments of the rows to fit.
        check: of others, on which the ridge is chosen, and whether to change anything at all.
        weight: as it is.
        bias: as it is.
        free_bias: whether the bias can change.
        support: which weights may be other than 0; None: all.
        near: the ridge to begin at, such as that of a layer before; None: one in the middle.
    """
    old = weight.double(), bias.double()
    count, begin = weight.shape[1], RIDGES.index(near) if near in RIDGES else len(RIDGES) // 2
    some = torch.linspace(0, count - 1, min(count, _TRIED)).round().long()
    system = _system(fit.of(some), *(part[:, some] for part in old), free_bias=free_bias)
    within = None if support is None else support[:, some]
    tried = _walked(begin, system, within, check.of(some).centred())
    if not tried.after < tried.before:
        return replace(tried, weight=old[0], bias=old[1], ridge=None, after=tried.before)
    every = _system(fit + check, *old, free_bias=free_bias)
    start = tried.weight if count <= _TRIED else None
    found = every.best(tried.ridge, support, rough=False, start=start)
    if not found.isfinite().all():  # of inputs that hardly vary, rounding leaves little
        every = _system(fit, *old, free_bias=free_bias)
        found = every.best(tried.ridge, support)
    return replace(tried, weight=found, bias=every.bias_of(found))


def _walked(
    begin: int, system: "_System", support: Tensor | None, judge: SecondMoments
) -> LayerSolution:
    """Return what does best on the rows that judge, fitted to others.

    From the ridge of that place on to larger ones while they do better, or else to smaller ones.
    No ridge at all is the bias alone.
    """
    variance = max(float(judge.yy.sum()), _TINY)
    before = error_of(system.weight, system.bias, judge)

    def fitted(ridge: float | None) -> LayerSolution:
        found = system.best(ridge, support)
        bias = system.bias_of(found)
        after = error_of(found, bias, judge)
        return LayerSolution(found, bias, ridge, before, inf if isnan(after) else after, variance)

    at, best = begin, fitted(RIDGES[begin])
    for step in (1, -1):
        while 0 <= at + step < len(RIDGES):
            further = fitted(RIDGES[at + step])
            if not further.after < best.after:
                break
            at, best = at + step, further
        if at != begin:
            break
    alone = fitted(None)
    return alone if alone.after <= best.after else best


@dataclass(frozen=True, slots=True, eq=False)
class _System:
    """The normal equations of a layer on some rows, for the change of its weights.

    Attributes:
        weight: `[g, j, k]`, as it is.
        bias: `[g, j]`, as it is.
        means: of inputs and outputs, `[g, k]` and `[g, j]`; None: the bias can't change.
        scale: `[g, 1, k]`, that makes inputs of unit size.
        xx: `[g, k, k]`, of inputs so scaled; its diagonal has the last ridge that was asked for.
        diagonal: `[g, k]`, without a ridge.
        left: `[g, j, k]`, what the change times `xx` should be.
    """

    weight: Tensor
    bias: Tensor
    means: tuple[Tensor, Tensor] | None
    scale: Tensor
    xx: Tensor
    diagonal: Tensor
    left: Tensor

    def best(
        self,
        ridge: float | None,
        support: Tensor | None,
        *,
        rough: bool = True,
        start: Tensor | None = None,
    ) -> Tensor:
        """Return the weights that do best with such a ridge; without one, those that there are.

        Args:
            ridge: towards the weights that there are.
            support: which may be other than 0; with one they are found by steps, and nearly.
            rough: whether they are to judge a ridge by, and not to keep.
            start: weights that the steps begin at.
        """
        if ridge is None:
            return self.weight
        self.xx.diagonal(dim1=1, dim2=2).copy_(self.diagonal + ridge)
        if support is not None:
            begun = 0 * self.left if start is None else (start - self.weight) / self.scale
            close = _ROUGH if rough else _CLOSE
            change = within(self.xx, self.left, support, close, begun)
        else:
            change = normal_solution(self.xx, self.left, single=ridge >= _SINGLE)
        return self.weight + change * self.scale

    def bias_of(self, weight: Tensor) -> Tensor:
        """Return the bias that does best with such weights, or that which can't change."""
        if self.means is None:
            return self.bias
        x, y = self.means
        return y - (weight @ x[:, :, None]).squeeze(2)


def _system(rows: SecondMoments, weight: Tensor, bias: Tensor, *, free_bias: bool) -> _System:
    """Return the normal equations on some rows."""
    means = None
    if free_bias:
        m = rows.centred()
        means, xx, xy = (m.x, m.y), m.xx, m.xy
    else:
        m = rows.about_zero()
        xx, xy = m.xx, m.xy - m.x[:, :, None] * bias[:, None, :]
    size = xx.diagonal(dim1=1, dim2=2).clamp_min(0)
    if means is not None:
        size = size + _STILL * means[0].square()
    floor = _SMALL * size.mean(1, keepdim=True).clamp_min(_TINY)
    scale = (size + floor).rsqrt()[:, None, :]
    left = (xy.mT - weight @ xx) * scale
    xx.mul_(scale).mul_(scale.mT)
    diagonal = xx.diagonal(dim1=1, dim2=2).clone()
    return _System(weight, bias, means, scale, xx, diagonal, left)
