"""The saliency that knows that a repair follows: what a refit of the readers can't make up for.

Optimal Brain Surgeon (Hassibi and Stork, 1993) for groups of weights, on the Kronecker factors of
Martens and Grosse (2015): removing the weights `W_u` of a reader, and refitting the rest by least
squares, costs `tr(S W_u [(G⁻¹)_uu]⁻¹ W_u')`, with `G` the second moments of its inputs and `S`
those of the gradients at its outputs.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from flexrel.core.graph import GroupMember, PruningGroup, layer_of, tensor_of
from flexrel.criteria.kfac import KFACFactors, LayerFactors
from flexrel.repair import normal_solution

_RIDGE = 1e-3  # of the mean square of an input
_TINY = 1e-9  # of the mean square of a gradient: keeps matrices of few samples regular
_RANK = 1e-6  # by which saliency grows from one unit that goes to the next, at least
_FULL = 0.75  # of what is held, while at least so much of it is left
_WIDE = 1024  # inputs: of so many the inverse is made in single precision
_ROUNDS = 64  # at most, in which units of a group go; between them everything is refitted


def predicted_saliency(
    group: PruningGroup, tensors: Mapping[str, Tensor], factors: KFACFactors
) -> Float[Tensor, "*units"]:
    """Return what each unit's removal costs once the layers that read it are refitted.

    Units go one after the other, the one first whose removal then costs least; each is worth what
    that cost, and no less than the one before. Of single weights it is what that of each alone
    does, so that a refit for many is not known.

    Args:
        group: of channels, heads, or single weights.
        tensors: the network's parameters, by name.
        factors: of the layers that read the units, or, of single weights, of their own.

    Returns:
        float64, in squared outputs of the network, summed over the samples of the factors. Higher
        means keep.

    Source:
        Hassibi and Stork, 1993; the greedy order over groups is ours.
    """
    if not group.members:
        weight = tensors[tensor_of(group.name, tensors)]
        return _weight_saliency(weight, factors.layers[group.name])
    readers = [
        _RefittedReader(member, tensors[member.tensor], factors.layers[layer_of(member.tensor)])
        for member in group.members
        if member.reads
    ]
    left = torch.arange(group.units)
    order, costs = [left[:0]], [torch.empty(0, dtype=torch.float64)]
    while len(left):
        saliency = torch.stack([reader.saliency() for reader in readers]).sum(0)
        taken = saliency.argsort(stable=True)[: -(-group.units // _ROUNDS)]
        order.append(left[taken])
        costs.append(saliency[taken])
        stays = torch.ones(len(left), dtype=torch.bool).index_fill_(0, taken, 0)
        left = left[stays]
        for reader in readers:
            reader.remove_(taken, stays)
    growing = torch.cat(costs).cummax(0).values * (1 + _RANK * torch.arange(group.units))
    return torch.empty_like(growing).index_copy_(0, torch.cat(order), growing)


def refitted(
    member: GroupMember,
    weight: Float[Tensor, "..."],
    factors: LayerFactors,
    kept: Bool[Tensor, "units"],
) -> Float[Tensor, "..."]:
    """Return the weight of a layer that does best with only some of the units that it reads.

    Its bias stays as it is, so the fit is to outputs, not to their distance from a mean.

    Args:
        member: of the layer that reads the units.
        weight: of the layer.
        factors: of the layer.
        kept: which units stay.

    Returns:
        Shape and dtype of the weight; NaN where rounding leaves the least squares no solution.
    """
    rows = _matrices(weight, member.axis, factors)
    means = factors.inputs.centred().x.cpu().double()
    products = factors.covariance().cpu().double() + means[:, :, None] * means[:, None, :]
    xx = _ridged_(products)
    stays = torch.ones(rows.shape[2], dtype=torch.bool)
    stays[_inputs_of_units(member, weight)[~kept].flatten()] = False
    found = torch.zeros_like(rows)
    some = xx[:, :, stays]
    found[:, :, stays] = normal_solution(some[:, stays], rows @ some, single=True)
    shape = weight.shape if member.axis else weight.mT.shape
    found = found.reshape(shape).to(weight)
    return found if member.axis else found.mT


class _RefittedReader:
    """A layer that takes units in, refitted as they go.

    Its inputs are the entries of one axis, each with its kernel positions; a unit owns some. As
    units go, single precision is enough (costs differ by 1e-6).
    """

    def __init__(self, member: GroupMember, weight: Tensor, factors: LayerFactors) -> None:
        rows = _matrices(weight, member.axis, factors)
        # S^(1/2)' W in the place of W: what a refit does to it is the same, and its squares add up
        self._weight = (_square_root(factors.outputs.cpu()).mT @ rows).float()
        self._inverse = _inverse(_ridged_(factors.covariance().cpu()))
        self._inputs = _inputs_of_units(member, weight)
        self._stays = torch.ones(rows.shape[2], dtype=torch.bool)  # of the inputs that are held

    def saliency(self) -> Float[Tensor, "units"]:
        """Return what the removal of each unit that is left costs, in order."""
        at = self._inputs
        inverse = self._inverse[:, at[:, :, None], at[:, None, :]]  # (G⁻¹)_uu: [g, u, n, n]
        weight = self._weight[:, :, at].permute(0, 2, 3, 1)  # [g, u, n, j]
        products = weight @ weight.mT
        costs: Tensor = (torch.linalg.inv(inverse) * products).sum((0, 2, 3)).clamp_min(0)
        return costs.double()

    def remove_(self, taken: Int64[Tensor, "taken"], stays: Bool[Tensor, "units"]) -> None:
        """Take units away together, refit what stays, and forget what went.

        Args:
            taken: which, of those that are left.
            stays: whether each of those is not among them.
        """
        at = self._inputs[taken].flatten()
        self._inputs = self._inputs[stays]
        rows = self._inverse[:, at]
        back = torch.linalg.solve(rows[:, :, at], rows)
        self._weight.baddbmm_(self._weight[:, :, at], back, alpha=-1)
        self._inverse.baddbmm_(rows.mT, back, alpha=-1)
        self._stays[at] = False
        if self._stays.sum() < _FULL * len(self._stays):
            kept = self._stays.nonzero()[:, 0]
            self._weight = self._weight.index_select(2, kept)
            self._inverse = self._inverse.index_select(1, kept).index_select(2, kept)
            self._inputs = (self._stays.cumsum(0) - 1)[self._inputs]
            self._stays = self._stays[kept]


def _weight_saliency(weight: Tensor, factors: LayerFactors) -> Float[Tensor, "..."]:
    """Return what the removal of each single weight costs, of the weight's shape."""
    transposed = factors.transposed
    rows = _matrices(weight, int(not transposed), factors)
    xx = _ridged_(factors.covariance().cpu().double())
    left = 1 / torch.linalg.inv(xx).diagonal(dim1=1, dim2=2)  # [g, k]
    gradients = factors.outputs.cpu().diagonal(dim1=1, dim2=2)
    costs: Tensor = rows.square() * left[:, None, :] * gradients[:, :, None]
    return costs.view(weight.mT.shape).mT if transposed else costs.view(weight.shape)


def _matrices(weight: Tensor, axis: int, factors: LayerFactors) -> Float[Tensor, "g j k"]:
    """Return the weight as a matrix for each group, float64; `axis` of it counts inputs."""
    rows = weight.detach().cpu().double()
    rows = rows if axis else rows.mT  # [out, in / groups, *kernel]
    return rows.reshape(len(factors.outputs), -1, rows[0].numel())


def _inputs_of_units(member: GroupMember, weight: Tensor) -> Int64[Tensor, "units inputs"]:
    """Return which inputs of the layer are each unit's."""
    kernel = weight[0, 0].numel()
    entries = member.index[..., None] * kernel + torch.arange(kernel)  # [units, inner, kernel]
    return entries.flatten(1)


def _ridged_(xx: Float[Tensor, "g k k"]) -> Float[Tensor, "g k k"]:
    """Add a little to the diagonals, so that the matrices can be inverted, and return them."""
    own = xx.diagonal(dim1=1, dim2=2)
    own.add_(_RIDGE * own.mean(1, keepdim=True).clamp_min(1e-30))
    return xx


def _inverse(xx: Float[Tensor, "g k k"]) -> Float[Tensor, "g k k"]:
    """Return the inverses of float32 matrices; where that is quick, by way of double precision."""
    if xx.shape[2] >= _WIDE:
        factor, failed = torch.linalg.cholesky_ex(xx)
        if not failed.any():
            return torch.cholesky_inverse(factor)
    return torch.cholesky_inverse(torch.linalg.cholesky(xx.double())).float()


def _square_root(squares: Float[Tensor, "g j j"]) -> Float[Tensor, "g j j"]:
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
