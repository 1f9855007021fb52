"""Weights that can be zeroed, one by one or by a pattern. No shape changes: nothing goes along."""

from collections.abc import Mapping
from math import prod

from torch import nn

from flexrel.core.granularity import Pattern, WeightLayout
from flexrel.core.graph import Protected, PruningGroup, layer_of
from flexrel.structure.dependencies import AxisDependencies
from flexrel.structure.modules import LinearOrConv, TransposedConv

# layer, or parameter that is no layer's -> its weight in `named_parameters()`, None: computed
LayerWeights = Mapping[str, str | None]

_MATRIX = 2  # axes


def weights_of_layers(model: nn.Module) -> LayerWeights:
    """Return the weights of all Linear and Conv layers."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        name: names.get(id(module.weight))
        for name, module in model.named_modules()
        if isinstance(module, LinearOrConv)
    }


def weights_in_products(model: nn.Module, dependencies: AxisDependencies) -> LayerWeights:
    """Return the weights of all Linear and Conv layers, and all others that products multiply by.

    They are in the order of the modules; a weight of several names is a layer's, if one has it.
    """
    layers = weights_of_layers(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    others = {*dependencies.weights} - {*layers.values()}
    found: dict[str, str | None] = {}
    for path, module in model.named_modules():
        found |= {path: layers[path]} if path in layers else {}
        for parameter in module.parameters(recurse=False):
            name = names[id(parameter)]
            if name in others and parameter.ndim >= _MATRIX:
                found.setdefault(layer_of(name), name)
    return found


def groups_of_weights(
    model: nn.Module,
    pattern: Pattern,
    weights: LayerWeights,
    dependencies: AxisDependencies,
    shapes: Mapping[str, tuple[int, ...]],
) -> tuple[list[PruningGroup], list[Protected]]:
    """Return one group a weight that takes the pattern, and what stays whole.

    Args:
        model: the module itself, also where a program of it is pruned.
        pattern: of zeros.
        weights: as `weights_in_products` returns them.
        dependencies: of the network.
        shapes: of all parameters.
    """
    used = {*dependencies.weights, *(name for name, _ in dependencies.uses)}
    first: dict[str | None, str] = {}  # of the layers that share a weight
    for name, weight in weights.items():
        first.setdefault(weight, name)
    groups, few = [], []
    for name, weight in weights.items():
        if weight in used and first[weight] == name:
            layer = layer_of(weight)  # an embedding's name if it has the weight first
            if pattern.unit == "element":
                groups.append(PruningGroup(layer, shapes[weight]))
                continue
            tied = [other for other, theirs in weights.items() if theirs == weight]
            layout = _layout(model, tied[0], weight, shapes[weight], dependencies, pattern)
            if layout is None:
                few += [Protected(other, _UNKNOWN) for other in tied]
            elif reason := _obstacle(layout, pattern):
                few += [Protected(other, reason) for other in tied]
            else:
                groups.append(PruningGroup(layer, layout.grid, layout=layout))
    protected = [
        Protected(name, "no product multiplies by its entries")
        for name, shape in shapes.items()
        if len(shape) >= _MATRIX and name not in first
    ]
    return groups, [*protected, *few]


_UNKNOWN = "which of its axes are outputs and inputs is not known"


def _layout(
    model: nn.Module,
    layer: str,
    weight: str,
    shape: tuple[int, ...],
    dependencies: AxisDependencies,
    pattern: Pattern,
) -> WeightLayout | None:
    """Return how a weight lies, as its layer says, or the products that a matrix is used in."""
    block = pattern.size if pattern.unit == "block" else None
    modules = dict(model.named_modules())
    if isinstance(module := modules.get(layer), LinearOrConv):
        groups = getattr(module, "groups", 1)
        return WeightLayout(shape, groups, isinstance(module, TransposedConv), block)
    roles = [dependencies.roles.get((weight, axis)) for axis in range(_MATRIX)]
    if len(shape) != _MATRIX or {*roles} != {"producer", "consumer"}:
        return None
    return WeightLayout(shape, 1, roles[0] == "consumer", block)


def _obstacle(layout: WeightLayout, pattern: Pattern) -> str:
    """Return why a weight has no room for the pattern, or nothing."""
    if pattern.unit == "n:m" and layout.inputs < pattern.size[1]:
        return f"a group takes {pattern.size[1]} inputs, and an output of it has {layout.inputs}"
    return "its weight is one block" if prod(layout.grid) == 1 else ""
