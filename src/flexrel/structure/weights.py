"""Weights that can be zeroed, one by one or by a pattern. No shape changes: nothing goes along."""

from collections.abc import Mapping
from math import prod

from torch import nn

from flexrel.core.granularity import Pattern, WeightLayout
from flexrel.core.graph import Protected, PruningGroup, layer_of, weight_of
from flexrel.structure.modules import TransposedConv

LayerWeights = Mapping[
    str, str | None
]  # layer -> its weight in `named_parameters()`, None: computed


def groups_of_weights(
    model: nn.Module,
    pattern: Pattern,
    weights: LayerWeights,
    used: set[str],
    shapes: Mapping[str, tuple[int, ...]],
) -> tuple[list[PruningGroup], list[Protected]]:
    """Return one group a weight that takes the pattern, and what stays whole.

    Args:
        model: the module itself, also where a program of it is pruned.
        pattern: of zeros.
        weights: of all Linear and Conv layers.
        used: the weights that take part in a product.
        shapes: of all parameters.
    """
    first: dict[str | None, str] = {}  # of the layers that share a weight
    for name, weight in weights.items():
        first.setdefault(weight, name)
    groups, few = [], []
    for name, weight in weights.items():
        if weight in used and first[weight] == name and _is_of_layer(weight):
            layer = layer_of(weight)  # an embedding's name if it has the weight first
            if pattern.unit == "element":
                groups.append(PruningGroup(layer, shapes[weight]))
                continue
            tied = [other for other, theirs in weights.items() if theirs == weight]
            layout = _layout(model.get_submodule(tied[0]), shapes[weight], pattern)
            if reason := _obstacle(layout, pattern):
                few += [Protected(other, reason) for other in tied]
            else:
                groups.append(PruningGroup(layer, layout.grid, layout=layout))
    protected = [
        Protected(name, "it is not the weight of a Linear or Conv layer")
        for name, shape in shapes.items()
        if len(shape) > 1 and name not in first
    ]
    protected += [
        Protected(name, f"its weight is {weight!r}, a parameter that is no layer's own")
        for name, weight in weights.items()
        if weight in used and not _is_of_layer(weight)
    ]
    return groups, [*protected, *few]


def _is_of_layer(weight: str) -> bool:
    return weight_of(layer_of(weight)) == weight


def _layout(layer: nn.Module, shape: tuple[int, ...], pattern: Pattern) -> WeightLayout:
    block = pattern.size if pattern.unit == "block" else None
    return WeightLayout(
        shape, getattr(layer, "groups", 1), isinstance(layer, TransposedConv), block
    )


def _obstacle(layout: WeightLayout, pattern: Pattern) -> str:
    """Return why a weight has no room for the pattern, or nothing."""
    if pattern.unit == "n:m" and layout.inputs < pattern.size[1]:
        return f"a group takes {pattern.size[1]} inputs, and an output of it has {layout.inputs}"
    return "its weight is one block" if prod(layout.grid) == 1 else ""
