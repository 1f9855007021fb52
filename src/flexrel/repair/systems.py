"""Normal equations solved: for all outputs by one factor, or for each on a support of its own."""

import torch
from jaxtyping import Float
from torch import Tensor

_FEW = 64, 0.1  # inputs, and of them all: outputs with no more are solved exactly, and quicker
_ENTRIES = 2**23  # of all systems that are solved at the same time
_STEPS = 60  # of conjugate gradients, at most
_WIDE = 1024  # inputs: of so many the steps are in single precision, and solutions
_TINY = 1e-30  # in place of a divisor that is 0


def normal_solution(
    xx: Float[Tensor, "g k k"], left: Float[Tensor, "g j k"], *, single: bool = False
) -> Float[Tensor, "g j k"]:
    """Return the solution of normal equations: the weights with `weights @ xx = left`, by groups.

    Args:
        xx: products of the inputs, with a ridge on the diagonal; symmetric.
        left: products of outputs and inputs.
        single: whether single precision will do where there are many inputs.

    Returns:
        By Cholesky factors; NaN if one of the matrices is not positive definite.
    """
    if single and xx.shape[2] >= _WIDE:
        factor, failed = torch.linalg.cholesky_ex(xx.float())
        if not failed.any():
            return torch.cholesky_solve(left.mT.float(), factor).mT.to(left)
    factor, failed = torch.linalg.cholesky_ex(xx)
    if bool(failed.any()):
        return torch.full_like(left, torch.nan)
    return torch.cholesky_solve(left.mT, factor).mT


def within(xx: Tensor, left: Tensor, support: Tensor, close: float, change: Tensor) -> Tensor:
    """Return the change on the support alone that does best: `[g, j, k]`.

    Each output has a support, so a system, of its own. One with few inputs is solved exactly, the
    others by steps from the change that is given.
    """
    few = support.sum(2) <= max(_FEW[0], _FEW[1] * support.shape[2])
    some = ~few.all(0)
    change[:, some] = _by_steps(xx, left[:, some], support[:, some], close, change[:, some])
    change[few] = _solved(xx, left[few], support[few], few.nonzero()[:, 0])
    return change


def _solved(xx: Tensor, left: Tensor, support: Tensor, groups: Tensor) -> Tensor:
    """Return the change on the support that does best, of some outputs, each by itself.

    Args:
        xx: `[g, k, k]`.
        left: `[n, k]`, of `n` outputs.
        support: likewise.
        groups: `[n]`: of each output.

    Returns:
        `[n, k]`; NaN where rounding makes a system indefinite.
    """
    change = torch.zeros_like(left)
    counts = support.sum(1)
    waiting = counts.argsort(descending=True)[: int(counts.count_nonzero())]
    while len(waiting):  # those of like size together, padded by equations of their own
        width = int(counts[waiting[0]])
        rows, waiting = waiting.tensor_split([max(_ENTRIES // width**2, 1)])
        real = torch.arange(width, device=rows.device) < counts[rows, None]
        at = torch.zeros_like(real, dtype=torch.int64)
        at[real] = support[rows].nonzero()[:, 1]
        lines = (groups[rows, None] * xx.shape[1] + at) * xx.shape[2]
        system = xx.take(lines[:, :, None] + at[:, None, :])
        system.masked_fill_(~(real[:, :, None] & real[:, None, :]), 0)
        system.diagonal(dim1=1, dim2=2).masked_fill_(~real, 1)
        factor, failed = torch.linalg.cholesky_ex(system)
        found = torch.cholesky_solve(left[rows].gather(1, at)[:, :, None], factor).squeeze(2)
        found.masked_fill_(failed[:, None] > 0, torch.nan)
        change[rows[:, None].expand_as(at)[real], at[real]] = found[real]
    return change


def _by_steps(xx: Tensor, left: Tensor, support: Tensor, close: float, change: Tensor) -> Tensor:
    """Return the change on the support alone that does best, nearly, by conjugate gradients.

    All outputs take their steps together, from the change that is given; in single precision
    where they would take long.
    """
    through = change @ xx if bool(change.any()) else change  # which is 0
    gained = (change * (left - through / 2)).sum()  # of half the squared error
    kind = torch.float32 if xx.shape[2] >= _WIDE else torch.float64
    rest, xx = (left - through).masked_fill_(~support, 0).to(kind), xx.to(kind)
    way, size = rest.clone(), rest.square().sum(2, keepdim=True)
    for _ in range(_STEPS):
        through = (way @ xx).masked_fill_(~support, 0)
        step = size / (way * through).sum(2, keepdim=True).clamp_min(_TINY)
        gain = (step * size).sum() / 2
        gained += gain
        change += step * way
        if bool(gain <= close * gained):
            break
        rest -= step * through
        now = rest.square().sum(2, keepdim=True)
        way = rest + now / size.clamp_min(_TINY) * way
        size = now
    return change
