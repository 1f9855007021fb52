"""The score that knows that a repair follows: what a refit of the readers can't make up for.

Optimal Brain Surgeon (Hassibi and Stork, 1993) for groups of weights, on the Kronecker-factored
curvature of Martens and Grosse (2015): removing the weights `W_u` of a reader, and refitting the
rest by least squares, costs `tr(S W_u [(G⁻¹)_uu]⁻¹ W_u')`, with `G` the second moments of its
inputs and `S` those of the gradients at its outputs.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from flexrel.core.graph import GroupMember, PruningGroup, layer_of, weight_of
from flexrel.criteria.kfac import KFACFactors, LayerFactors

_RIDGE = 1e-3  # of the mean square of an input
_TINY = 1e-9  # of the mean square of a gradient: keeps matrices of few samples regular
_RANK = 1e-6  # by which scores grow from one unit that goes to the next, at least
_FULL = 0.75  # of what is held, while at least so much of it is left
_ROUNDS = 64  # at most, in which units of a group go; between them everything is refitted


def removal_costs(
    group: PruningGroup, tensors: Mapping[str, Tensor], curvature: KFACFactors
) -> Float[Tensor, "*units"]:
    """Return what each unit's removal costs once the layers that read it are refitted.

    Units go one after the other, the one first whose removal then costs least; each is worth what
    that cost, and no less than the one before. Of single weights it is what that of each alone
    does, so that a refit for many is not known.

    Args:
        group: of channels, heads, or single weights.
        tensors: the network's parameters, by name.
        curvature: of the layers that read the units, or, of single weights, of their own.

    Returns:
        float64, in squared outputs of the network, summed over the samples of the curvature.

    Source:
        Hassibi and Stork, 1993; the greedy order over groups is ours.
    """
    return (
        _units(group, tensors, curvature) if group.members else _weights(group, tensors, curvature)
    )


def refitted(
    part: GroupMember, weight: Tensor, curvature: LayerFactors, kept: Tensor
) -> Float[Tensor, "..."]:
    """Return the weight of a layer that does best with only some of the units that it reads.

    Its bias stays as it is, so the fit is to outputs, not to their distance from a mean.

    Args:
        part: of the layer that reads the units.
        weight: of the layer.
        curvature: of the layer.
        kept: `[units]`: which stay.
    """
    rows, inputs = _rows(part.axis, weight, curvature)
    means = curvature.inputs.centred().x.cpu().double()
    xx = curvature.covariance().cpu().double() + means[:, :, None] * means[:, None, :]
    _ridged_(xx)
    here = torch.ones(inputs, dtype=torch.bool)
    here[_columns(part, weight)[~kept].flatten()] = False
    fitted = torch.zeros_like(rows)
    root = torch.linalg.cholesky(xx[:, here][:, :, here])
    fitted[:, :, here] = torch.cholesky_solve(xx[:, here] @ rows.mT, root).mT
    shape = weight.shape if part.axis else weight.mT.shape
    fitted = fitted.reshape(shape).to(weight)
    return fitted if part.axis else fitted.mT


def _units(group: PruningGroup, tensors: Mapping[str, Tensor], curvature: KFACFactors) -> Tensor:
    readers = [
        _Reader(part, tensors[part.tensor], curvature[layer_of(part.tensor)])
        for part in group.members
        if part.reads
    ]
    count = group.units
    left = torch.arange(count)
    gone, costs = [left[:0]], [torch.empty(0, dtype=torch.float64)]
    while len(left):
        errors = torch.stack([reader.errors() for reader in readers]).sum(0)
        taken = errors.argsort(stable=True)[: -(-count // _ROUNDS)]
        gone.append(left[taken])
        costs.append(errors[taken])
        stay = torch.ones(len(left), dtype=torch.bool).index_fill_(0, taken, 0)
        left = left[stay]
        for reader in readers:
            reader.remove_(taken, stay)
    grown = torch.cat(costs).cummax(0).values * (1 + _RANK * torch.arange(count))
    return torch.empty(count, dtype=torch.float64).index_copy_(0, torch.cat(gone), grown)


class _Reader:
    """A layer that takes units in, refitted as they go.

    Its inputs are the entries of one axis, each with its kernel positions; a unit owns some. The
    inverse is made in double precision; as units go, single is enough (costs differ by 1e-6).
    """

    def __init__(self, part: GroupMember, weight: Tensor, curvature: LayerFactors) -> None:
        rows, inputs = _rows(part.axis, weight, curvature)
        # S^(1/2)' W in the place of W: what a refit does to it is the same, and its squares add up
        self._weight = (_root(curvature.outputs.cpu()).mT @ rows).float()
        xx = curvature.covariance().cpu().double()
        _ridged_(xx)
        self._inverse = torch.cholesky_inverse(torch.linalg.cholesky(xx)).float()
        self._columns = _columns(part, weight)
        self._here = torch.ones(inputs, dtype=torch.bool)

    def errors(self) -> Tensor:
        """Return what the removal of each unit that is left costs, in order: `[units]`."""
        at = self._columns
        inverse = self._inverse[:, at[:, :, None], at[:, None, :]]  # (G⁻¹)_uu: [g, u, n, n]
        weight = self._weight[:, :, at].permute(0, 2, 3, 1)  # [g, u, n, j]
        products = weight @ weight.mT
        errors: Tensor = (torch.linalg.inv(inverse) * products).sum((0, 2, 3)).clamp_min(0)
        return errors.double()

    def remove_(self, taken: Tensor, stay: Tensor) -> None:
        """Take units away together, refit what stays, and forget what went.

        Args:
            taken: which, of those that are left.
            stay: `[units]`: whether each is not among them.
        """
        at = self._columns[taken].flatten()
        self._columns = self._columns[stay]
        rows = self._inverse[:, at]
        back = torch.linalg.solve(rows[:, :, at], rows)
        self._weight.baddbmm_(self._weight[:, :, at], back, alpha=-1)
        self._inverse.baddbmm_(rows.mT, back, alpha=-1)
        self._here[at] = False
        if self._here.sum() < _FULL * len(self._here):
            kept = self._here.nonzero()[:, 0]
            self._weight = self._weight.index_select(2, kept)
            self._inverse = self._inverse.index_select(1, kept).index_select(2, kept)
            self._columns = (self._here.cumsum(0) - 1)[self._columns]
            self._here = self._here[kept]


def _rows(axis: int, weight: Tensor, curvature: LayerFactors) -> tuple[Tensor, int]:
    """Return the weight as `[groups, outputs, inputs]`, float64, and how many inputs there are."""
    rows = weight.detach().cpu().double()
    rows = rows if axis else rows.mT  # [out, in / groups, *kernel]
    inputs = rows[0].numel()
    return rows.reshape(len(curvature.outputs), -1, inputs), inputs


def _columns(part: GroupMember, weight: Tensor) -> Tensor:
    """Return which inputs of the layer are each unit's: `[units, ...]`."""
    kernel = weight[0, 0].numel()
    entries = part.index[..., None] * kernel + torch.arange(kernel)  # [units, inner, kernel]
    return entries.flatten(1)


def _ridged_(xx: Tensor) -> None:
    """Add a little to the diagonals, so that they can be inverted."""
    sizes = xx.diagonal(dim1=1, dim2=2).mean(1)
    xx.diagonal(dim1=1, dim2=2).add_(_RIDGE * sizes[:, None].clamp_min(1e-30))


def _root(squares: Tensor) -> Tensor:
    """Return the lower triangles whose products with their transposes are the matrices, nearly."""
    small = squares.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-30)[:, None]
    share = _TINY
    while True:  # more where rounding, of fewer samples than outputs, makes them indefinite
        whole = squares.clone()
        whole.diagonal(dim1=1, dim2=2).add_(share * small)
        root: Tensor
        root, failed = torch.linalg.cholesky_ex(whole)
        if not failed.any():
            return root
        share *= 10


def _weights(group: PruningGroup, tensors: Mapping[str, Tensor], curvature: KFACFactors) -> Tensor:
    """Return what the removal of each single weight costs, of the weight's shape."""
    known, weight = curvature[group.name], tensors[weight_of(group.name)].detach()
    transposed = weight.ndim == 2 and weight.shape[1] != known.inputs.x.shape[1]  # noqa: PLR2004
    rows, _ = _rows(int(not transposed), weight, known)
    xx = known.covariance().cpu().double()
    _ridged_(xx)
    left = 1 / torch.linalg.inv(xx).diagonal(dim1=1, dim2=2)  # [g, k]
    gradients = known.outputs.cpu().diagonal(dim1=1, dim2=2)
    costs: Tensor = rows.square() * left[:, None, :] * gradients[:, :, None]
    return costs.view(weight.mT.shape).mT if transposed else costs.view(weight.shape)
