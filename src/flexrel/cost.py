"""What a plan's network costs: parameters and multiply-adds, counted exactly without making it.

Multiply-adds are those of convolutions and of all products of matrices, for one sample. Zeros
cost as many of them as any other value: only removed units make a network faster.
"""

from collections.abc import Mapping
from fractions import Fraction
from math import prod
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from flexrel.records import Block, Plan, Structure, Work

Cost = float | Float[Tensor, "units"]
Resource = Literal["parameters", "MACs"]


def parameters(structure: Structure, plan: Plan | None = None) -> int:
    """Return how many parameters remain; zeroed entries do not count, tied ones count once."""
    shapes = _shapes(structure, plan)
    total = sum(prod(shape) for shape in shapes.values())
    total += sum(shapes[weight][0] for weight in _given_biases(structure, plan))
    return total - (_zeroed(plan) if plan and structure.pattern.zeros else 0)


def _zeroed(plan: Plan) -> int:
    gone = [(site.layout, ~plan.masks[site.name]) for site in plan.structure.sites]
    return sum(layout.entries(mask) if layout else int(mask.sum()) for layout, mask in gone)


def macs(structure: Structure, plan: Plan | None = None) -> int:
    """Return the multiply-adds of one sample."""
    if plan and (blocks := _blocks(structure, plan)):
        return macs(structure) - sum(block.macs for block in blocks)
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


def unit_costs(structure: Structure, resource: Resource) -> dict[str, Cost]:
    """Return what goes with one unit of each site, all else dense: `unit_macs` or parameters.

    Of blocks, which differ, it is one number a unit; of single weights 0.
    """
    return (unit_macs if resource == "MACs" else _unit_parameters)(structure)


def _unit_parameters(structure: Structure) -> dict[str, Cost]:
    shapes = structure.shapes
    found: dict[str, Cost] = {}
    for site in structure.sites:
        if site.blocks:
            sizes = [sum(prod(shapes[n]) for n in b.tensors if n in shapes) for b in site.blocks]
            found[site.name] = torch.tensor(sizes, dtype=torch.float32)
            continue
        found[site.name] = sum(
            prod(shapes[part.tensor]) * part.index.shape[1] / shapes[part.tensor][part.axis]
            for part in site.slices
            if part.tensor in shapes  # buffers are no parameters
        )
    return found


def unit_macs(structure: Structure) -> dict[str, Cost]:
    """Return the multiply-adds of one sample that go with one unit of each site, all else dense.

    Of blocks, which differ, it is one number a unit.
    """
    uses: dict[str, int] = {}
    for weight, times in structure.uses:
        uses[weight] = uses.get(weight, 0) + times
    found: dict[str, Cost] = {}
    for site in structure.sites:
        if site.blocks:
            found[site.name] = torch.tensor([float(block.macs) for block in site.blocks])
            continue
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
    """Return the share of prunable units removed: weights, blocks, channels or heads."""
    return plan.removed / structure.units


def _blocks(structure: Structure, plan: Plan | None = None) -> list[Block]:
    """Return all blocks, or those that the plan removes."""
    return [
        block
        for site in structure.sites
        for unit, block in enumerate(site.blocks)
        if plan is None or not plan.masks[site.name][unit]
    ]


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
    """Return every parameter's shape once the plan's channels or blocks are gone."""
    shapes = {name: list(shape) for name, shape in structure.shapes.items()}
    if plan:
        passed = _blocks(structure, plan)
        kept = set(_blocks(structure)) - set(passed)
        for name in {t for b in passed for t in b.tensors} - {t for b in kept for t in b.tensors}:
            del shapes[name]
    for site in structure.sites if plan else ():
        gone = site.units - int(plan.masks[site.name].sum()) if plan else 0
        for part in site.slices:
            if part.tensor in shapes:  # buffers are no parameters
                shapes[part.tensor][part.axis] -= gone * part.index.shape[1]
    return shapes
