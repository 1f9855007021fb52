"""The score that knows that a repair follows: what a refit of the readers can't make up for.

Optimal Brain Surgeon (Hassibi and Stork, 1993) for groups of weights, on the Kronecker-factored
curvature of Martens and Grosse (2015): removing the weights `W_u` of a reader, and refitting the
rest by least squares, costs `tr(S W_u [(G⁻¹)_uu]⁻¹ W_u')`, with `G` the second moments of its
inputs and `S` those of the gradients at its outputs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flexrel.criteria import Evidence
from flexrel.curvature import Curvature, LayerCurvature
from flexrel.errors import UsageError
from flexrel.records import Protected, Slice, Structure, layer_of, weight_of

_RIDGE = 1e-3  # of the mean square of an input
_TINY = 1e-9  # of the mean square of a gradient: keeps matrices of few samples regular
_RANK = 1e-6  # by which scores grow from one unit that goes to the next, at least
_FULL = 0.75  # of what is held, while at least so much of it is left
_ROUNDS = 64  # at most, in which units of a site go; between them everything is refitted


@dataclass(frozen=True, slots=True)
class OBS:
    """Keep what a least-squares refit can't make up for; for cuts that are repaired.

    Units of a layer go one after the other, the one first whose removal costs least once the
    layers that read it are refitted; each is worth what its removal then cost, over the
    multiply-adds that go with it. The cost is the squared change of the network's outputs, so that
    layers compare. No labels.

    Source:
        Hassibi and Stork, 1993; the greedy order over groups, and the division by multiply-adds,
        are ours.
    """

    name: str = "obs"
    needs_relevance: bool = False
    needs_curvature: bool = True

    def scores(self, evidence: Sequence[Evidence]) -> Iterator[Tensor]:
        """Yield what each unit's removal costs; of single weights, what that of each alone does."""
        for site in evidence:
            if site.site.blocks:
                raise UsageError("criterion 'obs' can't score residual blocks; use another")
            yield _units(site) if site.site.slices else _weights(site)


def without_uncurved(structure: Structure, curvature: Curvature) -> Structure:
    """Return the structure without the sites of whose readers the curvature is not known.

    Raises:
        ModelError: no site is left.
    """
    sites, protected = [], []
    for site in structure.sites:
        missing = sorted(site.readers - curvature.keys())
        if missing and not site.blocks:
            reason = f"what a refit of {missing[0]} can make up for was not measured"
            protected.append(Protected(site.name, reason))
        else:
            sites.append(site)
    return structure.only(sites, protected)


def _units(site: Evidence) -> Tensor:
    readers = [
        _Reader(part, site.tensors[part.tensor], site.curved(layer_of(part.tensor)))
        for part in site.site.slices
        if part.reads
    ]
    count = site.site.units
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
    worth = torch.empty(count, dtype=torch.float64).index_copy_(0, torch.cat(gone), grown)
    return (worth / torch.as_tensor(site.macs).clamp_min(1.0)).float()


class _Reader:
    """A layer that takes units in, refitted as they go.

    Its inputs are the entries of one axis, each with its kernel positions; a unit owns some.
    """

    def __init__(self, part: Slice, weight: Tensor, curvature: LayerCurvature) -> None:
        rows = weight.detach().cpu().double()
        rows = rows if part.axis else rows.mT  # [out, in / groups, *kernel]
        kernel = rows[0, 0].numel()
        groups, inputs = len(curvature.outputs), rows[0].numel()
        # S^(1/2)' W in the place of W: what a refit does to it is the same, and its squares add up
        self._weight = _root(curvature.outputs.cpu()).mT @ rows.reshape(groups, -1, inputs)
        xx = curvature.covariance().cpu()
        sizes = xx.diagonal(dim1=1, dim2=2).mean(1)
        xx.diagonal(dim1=1, dim2=2).add_(_RIDGE * sizes[:, None].clamp_min(1e-30))
        self._inverse = torch.cholesky_inverse(torch.linalg.cholesky(xx))
        entries = part.index[..., None] * kernel + torch.arange(kernel)  # [units, inner, kernel]
        self._columns = entries.flatten(1)
        self._here = torch.ones(inputs, dtype=torch.bool)

    def errors(self) -> Tensor:
        """Return what the removal of each unit that is left costs, in order: `[units]`."""
        at = self._columns
        inverse = self._inverse[:, at[:, :, None], at[:, None, :]]  # (G⁻¹)_uu: [g, u, n, n]
        weight = self._weight[:, :, at].permute(0, 2, 3, 1)  # [g, u, n, j]
        products = weight @ weight.mT
        errors: Tensor = (torch.linalg.inv(inverse) * products).sum((0, 2, 3)).clamp_min(0)
        return errors

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


def _weights(site: Evidence) -> Tensor:
    """Return what the removal of each single weight costs, of the weight's shape."""
    curvature = site.curved(site.site.name)
    weight = site.tensors[weight_of(site.site.name)].detach().float().cpu()
    groups = len(curvature.outputs)
    xx = curvature.covariance().cpu()
    inputs = xx.shape[-1]
    transposed = weight.ndim == 2 and weight.shape[1] != inputs  # noqa: PLR2004
    rows = (weight.mT if transposed else weight).reshape(groups, -1, inputs)
    xx.diagonal(dim1=1, dim2=2).add_(_RIDGE * xx.diagonal(dim1=1, dim2=2).mean(1)[:, None])
    left = 1 / torch.linalg.inv(xx).diagonal(dim1=1, dim2=2)  # [g, k]
    gradients = curvature.outputs.cpu().diagonal(dim1=1, dim2=2)
    scores: Tensor = (rows.square() * left[:, None, :] * gradients[:, :, None]).float()
    return scores.view(weight.mT.shape).mT if transposed else scores.view(weight.shape)
