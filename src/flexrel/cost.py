"""What a plan's network costs: parameters and multiply-adds, counted exactly without making it.

Multiply-adds are those of convolutions and of all products of matrices, for one sample. Zeros
cost as many of them as any other value: only removed units make a network faster.
"""

from collections.abc import Mapping
from fractions import Fraction
from math import prod

from flexrel.records import Plan, Structure, Work


def parameters(structure: Structure, plan: Plan | None = None) -> int:
    """Return how many parameters remain; zeroed elements do not count, tied ones count once."""
    shapes = _shapes(structure, plan)
    total = sum(prod(shape) for shape in shapes.values())
    total += sum(shapes[weight][0] for weight in _given_biases(structure, plan))
    return total - (plan.removed if plan and structure.granularity == "element" else 0)


def macs(structure: Structure, plan: Plan | None = None) -> int:
    """Return the multiply-adds of one sample."""
    shapes = _shapes(structure, plan)
    masks = plan.masks if plan else {}
    gone = {site: int((~mask).sum()) for site, mask in masks.items()}
    return sum(times * prod(shapes[weight]) for weight, times in structure.uses) + sum(
        _remaining(work, gone) for work in structure.work
    )


def _remaining(work: Work, gone: Mapping[str, int]) -> int:
    macs = Fraction(work.macs)
    for length, units in work.axes:
        macs *= Fraction(length - sum(gone.get(site, 0) * each for site, each in units), length)
    return int(macs)


def unit_macs(structure: Structure) -> dict[str, float]:
    """Return the multiply-adds of one sample that go with one unit of each site, all else dense."""
    uses: dict[str, int] = {}
    for weight, times in structure.uses:
        uses[weight] = uses.get(weight, 0) + times
    found = {}
    for site in structure.sites:
        found[site.name] = sum(
            uses.get(part.tensor, 0)
            * prod(structure.shapes[part.tensor])
            * part.index.shape[1]
            / structure.shapes[part.tensor][part.axis]
            for part in site.slices
            if part.tensor in structure.shapes
        ) + sum(
            work.macs * each / length
            for work in structure.work
            for length, units in work.axes
            for name, each in units
            if name == site.name
        )
    return found


def sparsity(structure: Structure, plan: Plan) -> float:
    """Return the share of prunable units removed: weights for elements, channels for channels."""
    return plan.removed / structure.units


def _given_biases(structure: Structure, plan: Plan | None) -> set[str]:
    """Return the weights of layers that get a bias, in place of constant units that go."""
    return {
        part.tensor
        for site in structure.sites
        for part in site.slices
        if plan and part.values is not None
        if part.tensor.removesuffix("weight") + "bias" not in structure.shapes
        if bool(part.values[~plan.masks[site.name].flatten()].any())
    }


def _shapes(structure: Structure, plan: Plan | None) -> dict[str, list[int]]:
    """Return every parameter's shape once the plan's channels are gone."""
    shapes = {name: list(shape) for name, shape in structure.shapes.items()}
    for site in structure.sites if plan else ():
        gone = site.units - int(plan.masks[site.name].sum()) if plan else 0
        for part in site.slices:
            if part.tensor in shapes:  # buffers are no parameters
                shapes[part.tensor][part.axis] -= gone * part.index.shape[1]
    return shapes
