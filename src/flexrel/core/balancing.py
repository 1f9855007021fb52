"""Weights of samples that bring their means to given ones, and stay as even as that allows."""

from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

_RIDGES: Final = tuple(10 ** (-step / 2) for step in range(11))  # from 1 down to 1e-5
_CHANCE: Final = 0.1  # of the distance that sampling leaves: closer is not looked for
_LEAST: Final = 32  # samples that weights must be worth, or
_FEW: Final = 0.25  # of all where these are few, or
_SHARE: Final = 0.02  # of all where these are many
_STEPS: Final = 50  # of Newton's, at most
_CLOSE: Final = 1e-10  # of what a step still gains, when they end
_ENOUGH: Final = 1e-4  # of the gain that a step promises: it is not made shorter


@dataclass(frozen=True, slots=True, eq=False)
class BalancedWeights:
    """How often each sample counts.

    Attributes:
        weights: `[samples]`, float64, their mean is 1.
        before: how far the means of all samples are from the given ones: the mean over features
            of the squared distance, in squares of the feature's scale, in [0, 1].
        after: likewise, of the weighted samples.
    """

    weights: Float[Tensor, "samples"]
    before: float
    after: float

    @property
    def worth(self) -> float:
        """How many samples of equal weight tell as much (Kish's effective number)."""
        return float(self.weights.sum() ** 2 / self.weights.square().sum())


def balanced(
    features: Float[Tensor, "samples features"], means: Float[Tensor, "features"], seen: float
) -> BalancedWeights:
    """Return the weights that bring the means of features to given ones.

    Of all weights with means so close those nearest to even ones (in relative entropy). How close
    is what chance leaves: where means come from few samples, or where the weights would come to
    be worth too few, they are matched less.

    Args:
        features: of each sample.
        means: to come to; of features of like size.
        seen: samples that these means are over.

    Source:
        Hainmueller 2012 (entropy balancing), with a ridge, chosen by the discrepancy that sampling
        leaves (Morozov).
    """
    features, means = features.double(), means.double()
    shift = features.mean(0) - means
    scale = (features.var(0, correction=0) + shift.square()).sqrt()
    known = scale > 0
    count = max(int(known.sum()), 1)
    off = (features[:, known] - means[known]) / scale[known] / count**0.5
    left, sizes, _ = torch.linalg.svd(off, full_matrices=False)
    off = left * sizes  # the same distances in the fewest features
    even = torch.full((len(off),), 1 / len(off), dtype=torch.float64)
    before = float((even @ off).square().sum())
    best, after = even, before
    least = max(min(_LEAST, _FEW * len(off)), _SHARE * len(off))
    tilt = torch.zeros(off.shape[1], dtype=torch.float64)
    for ridge in _RIDGES:
        if after <= _CHANCE / seen:
            break
        tilt = _tilted(off, ridge, tilt)
        weights = torch.softmax(off @ tilt, 0)
        if 1 / float(weights.square().sum()) < least:
            break
        best, after = weights, float((weights @ off).square().sum())
    return BalancedWeights(best * len(best), before, after)


def _tilted(off: Tensor, ridge: float, start: Tensor) -> Tensor:
    """Return the least of `logsumexp(off @ tilt) + ridge / 2 * |tilt|^2`, by Newton's steps."""
    tilt = start

    def value(tilt: Tensor) -> float:
        return float(torch.logsumexp(off @ tilt, 0) + ridge / 2 * tilt.square().sum())

    now = value(tilt)
    for _ in range(_STEPS):
        weights = torch.softmax(off @ tilt, 0)
        mean = weights @ off
        slope = mean + ridge * tilt
        curve = (off * weights[:, None]).mT @ off - mean[:, None] * mean
        curve.diagonal().add_(ridge)
        step = torch.linalg.solve(curve, slope)
        gain, length = float(slope @ step), 1.0
        if gain <= _CLOSE:
            break
        while length > _CLOSE and value(tilt - length * step) > now - _ENOUGH * length * gain:
            length /= 2
        tilt = tilt - length * step
        now = value(tilt)
    return tilt
