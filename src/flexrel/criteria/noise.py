"""How much of a covariance is noise: what a few samples say of inputs that others would not.

The diagonal is safe; products of different inputs are what too few samples make up.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from flexrel.repair import SecondMoments

_SMALLEST, _LARGEST = 1e-12, 1e18  # norms of rows whose squares have single precision's digits


def noise_of(one: SecondMoments, other: SecondMoments) -> Float[Tensor, "g"]:
    """Return how far the sums over both are expected to be from those of other samples, squared.

    The difference of two sums varies as their sum does. Of one sample alone it is not known: the
    sum itself is the most that it can be.
    """
    if one.rows and other.rows:
        rows = one.rows + other.rows
        apart = one.xx * (rows / 2 / one.rows)
        apart.sub_(other.xx, alpha=rows / 2 / other.rows)
        mean = (one.x + other.x) / rows
        for half, sign in ((one, 1), (other, -1)):  # about the mean of both
            shift = (half.x / half.rows - mean).to(apart.dtype)
            apart.baddbmm_(shift[:, :, None], shift[:, None, :], alpha=sign * rows / 2)
    else:
        apart = (one + other).centred().xx * (one.rows + other.rows)
    return squares_off_diagonal(apart)


def squares_off_diagonal(matrices: Float[Tensor, "g k k"]) -> Float[Tensor, "g"]:
    """Return the sum of the squares off the diagonal, float64.

    Squares of products may be too large for the dtype of the matrices, or too small: in it, which
    is many times as quick, only where they are not.
    """
    wide = torch.float64
    norms: Tensor = torch.linalg.vector_norm(matrices, dim=2)
    if not _SMALLEST < float(norms.max()) < _LARGEST:
        norms = torch.linalg.vector_norm(matrices, dim=2, dtype=wide)
    return norms.to(wide).square().sum(1) - matrices.diagonal(dim1=1, dim2=2).to(wide).square().sum(
        1
    )
