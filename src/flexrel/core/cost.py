"""What a plan's network costs: parameters and multiply-adds, counted exactly without making it.

Multiply-adds are those of convolutions and of all products of matrices, for one sample. Zeros
cost as many of them as any other value: only removed units make a network faster.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flexrel.core.graph import Masks, PruningGraph, ResidualBlock, ShrinkingAxes, tensor_of

Cost = float | Float[Tensor, "units"]


def parameters(graph: PruningGraph, masks: Masks | None = None) -> int:
    """Return how many parameters remain; zeroed entries do not count, tied ones count once."""
    return sum(layer_parameters(graph, masks).values())


def layer_parameters(graph: PruningGraph, masks: Masks | None = None) -> dict[str, int]:
    """Return how many entries of each parameter remain, by its name; zeroed ones do not count.

    A bias that a layer gets in place of constant units counts with its weight; what goes whole is
    left out.
    """
    shapes = shapes_left(graph, masks)
    found = {name: prod(shape) for name, shape in shapes.items()}
    for weight in _given_biases(graph, masks):
        found[weight] += shapes[weight][0]
    if masks and graph.pattern.zeros:
        for group in graph.groups:
            gone = ~masks[group.name]
            entries = group.layout.entries(gone) if group.layout else int(gone.sum())
            found[tensor_of(group.name, shapes)] -= entries
    return found


def macs(graph: PruningGraph, masks: Masks | None = None) -> int:
    """Return the multiply-adds of one sample."""
    if masks and (blocks := removed_blocks(graph, masks)):
        return macs(graph) - sum(block.macs for block in blocks)
    gone = {group: int((~mask).sum()) for group, mask in (masks or {}).items()}
    return sum(weight_macs(graph, masks).values()) + sum(
        remaining(work.macs, work.axes, gone) for work in graph.products
    )


def weight_macs(graph: PruningGraph, masks: Masks | None = None) -> dict[str, int]:
    """Return the multiply-adds of one sample that each weight takes part in, by its name."""
    shapes = shapes_left(graph, masks)
    found: dict[str, int] = {}
    for weight, times in graph.uses:
        left = prod(shapes[weight]) if weight in shapes else 0
        found[weight] = found.get(weight, 0) + times * left
    return found


def remaining(amount: int, axes: ShrinkingAxes, gone: Mapping[str, int]) -> int:
    """Return what is left of a product of axes' lengths.

    Args:
        amount: the product, times what no axis has a part in.
        axes: that shrink.
        gone: group -> how many of its units go.
    """
    left = Fraction(amount)
    for length, units in axes:
        left *= Fraction(length - sum(gone.get(group, 0) * each for group, each in units), length)
    return int(left)


def unit_parameters(graph: PruningGraph) -> dict[str, Cost]:
    """Return how many parameters go with one unit of each group, all else dense.

    Of blocks, which differ, it is one number a unit; of single weights 0.
    """
    shapes = graph.shapes
    found: dict[str, Cost] = {}
    for group in graph.groups:
        if group.blocks:
            sizes = [sum(prod(shapes[n]) for n in b.tensors if n in shapes) for b in group.blocks]
            found[group.name] = torch.tensor(sizes, dtype=torch.float32)
            continue
        found[group.name] = sum(
            prod(shapes[part.tensor]) * part.index.shape[1] / shapes[part.tensor][part.axis]
            for part in group.members
            if part.tensor in shapes  # buffers are no parameters
        )
    return found


def unit_macs(graph: PruningGraph) -> dict[str, Cost]:
    """Return the multiply-adds of one sample that go with one unit of each group, all else dense.

    Of blocks, which differ, it is one number a unit.
    """
    uses: dict[str, int] = {}
    for weight, times in graph.uses:
        uses[weight] = uses.get(weight, 0) + times
    found: dict[str, Cost] = {}
    for group in graph.groups:
        if group.blocks:
            found[group.name] = torch.tensor([float(block.macs) for block in group.blocks])
            continue
        found[group.name] = sum(
            uses.get(part.tensor, 0)
            * prod(graph.shapes[part.tensor])
            * part.index.shape[1]
            / graph.shapes[part.tensor][part.axis]
            for part in group.members
            if part.tensor in graph.shapes
        ) + sum(
            work.macs * each / length
            for work in graph.products
            for length, units in work.axes
            for name, each in units
            if name == group.name
        )
    return found


def weights_removed(network: nn.Module, dense: nn.Module) -> float:
    """Return the share of a dense network's weights that another has no more, or has zero.

    Weights are the parameters of two axes or more; tied ones count once. What is counted is what
    the networks hold: zeros that were there before, and that rounding made, are zeros too.
    """
    whole = sum(weight.numel() for weight in dense.parameters() if weight.ndim > 1)
    stay = sum(int(weight.count_nonzero()) for weight in network.parameters() if weight.ndim > 1)
    return 1 - stay / whole if whole else 0.0


def _weights(shapes: Mapping[str, Sequence[int]]) -> int:
    return sum(prod(shape) for shape in shapes.values() if len(shape) > 1)


def left_whole(graph: PruningGraph) -> dict[str, float]:
    """Return the modules with weights that no group has a part of, and their share of all.

    Returns:
        Module as in `model.named_modules()`, or parameter that is none's -> share, of the
        parameters of two axes or more, tied ones counted once.
    """
    touched = {member.tensor for group in graph.groups for member in group.members}
    touched |= {name for group in graph.groups for b in group.blocks for name in b.tensors}
    touched |= {tensor_of(group.name, graph.shapes) for group in graph.groups if group.is_weight}
    found: dict[str, float] = {}
    for name, shape in graph.shapes.items():
        if len(shape) > 1 and name not in touched:
            module = name.rpartition(".")[0] or name
            share = prod(shape) / _weights(graph.shapes)
            found[module] = found.get(module, 0.0) + share
    return found


def removed_blocks(graph: PruningGraph, masks: Masks) -> list[ResidualBlock]:
    """Return the residual blocks that the masks remove."""
    return [
        block
        for group in graph.groups
        for unit, block in enumerate(group.blocks)
        if not masks[group.name][unit]
    ]


def _given_biases(graph: PruningGraph, masks: Masks | None) -> set[str]:
    """Return the weights of layers that get a bias, in place of constant units that go."""
    return {
        part.tensor
        for group in graph.groups
        for part in group.members
        if masks and part.values is not None
        if part.tensor.removesuffix("weight") + "bias" not in graph.shapes
        if bool(part.values[~masks[group.name].flatten()].any())
    }


def shapes_left(graph: PruningGraph, masks: Masks | None) -> dict[str, list[int]]:
    """Return every parameter's shape once channels or blocks are gone; what goes whole is none."""
    shapes = {name: list(shape) for name, shape in graph.shapes.items()}
    if masks:
        passed = removed_blocks(graph, masks)
        kept = {block for group in graph.groups for block in group.blocks} - set(passed)
        for name in {t for b in passed for t in b.tensors} - {t for b in kept for t in b.tensors}:
            del shapes[name]
    for group in graph.groups if masks else ():
        gone = int((~masks[group.name]).sum()) if masks else 0
        for part in group.members:
            if part.tensor in shapes:  # buffers are no parameters
                shapes[part.tensor][part.axis] -= gone * part.index.shape[1]
    return shapes
