"""What a plan's network costs: parameters and multiply-adds, counted exactly without making it.

Multiply-adds are those of weights in convolutions and linear layers, for one sample. Zeros cost
as many of them as any other value: only removed channels make a network faster.
"""

from math import prod

from flexrel.records import Plan, Structure


def parameters(structure: Structure, plan: Plan | None = None) -> int:
    """Return how many parameters remain; zeroed elements do not count, tied ones count once."""
    total = sum(prod(shape) for shape in _shapes(structure, plan).values())
    return total - (plan.removed if plan and structure.granularity == "element" else 0)


def macs(structure: Structure, plan: Plan | None = None) -> int:
    """Return the multiply-adds of one sample."""
    shapes = _shapes(structure, plan)
    return sum(times * prod(shapes[weight]) for weight, times in structure.uses)


def sparsity(structure: Structure, plan: Plan) -> float:
    """Return the share of prunable units removed: weights for elements, channels for channels."""
    return plan.removed / structure.units


def _shapes(structure: Structure, plan: Plan | None) -> dict[str, list[int]]:
    """Return every parameter's shape once the plan's channels are gone."""
    shapes = {name: list(shape) for name, shape in structure.shapes.items()}
    for site in structure.sites if plan else ():
        kept = int(plan.masks[site.name].sum()) if plan else site.units
        for part in site.slices:
            if part.tensor in shapes:  # buffers are no parameters
                shapes[part.tensor][part.axis] = kept * part.inner
    return shapes
