"""From a model and one batch to what can be pruned of it, and why the rest can't."""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import prod

from torch import fx, nn

from flexrel.core.batches import Batch
from flexrel.core.granularity import Pattern
from flexrel.core.graph import (
    ProductMacs,
    Protected,
    PruningGraph,
    PruningGroup,
    SizeAttribute,
    layer_of,
    tensor_of,
)
from flexrel.core.running import fingerprint
from flexrel.errors import UnprunableError, UsageError
from flexrel.structure.constant import with_constants
from flexrel.structure.dependencies import Axis, AxisDependencies
from flexrel.structure.depth import blocks_of
from flexrel.structure.groups import (
    ResolvedUnits,
    Shrinkage,
    group_of_units,
    groups_of,
    reason_for,
    resolve,
    shrinkage,
)
from flexrel.structure.modules import module_numbers
from flexrel.structure.program_sizes import program_sizes_of
from flexrel.structure.rules import dependencies_of
from flexrel.structure.trace import trace
from flexrel.structure.verify import probe
from flexrel.structure.weights import (
    LayerWeights,
    groups_of_weights,
    weights_in_products,
    weights_of_layers,
)


def analyse(
    model: nn.Module,
    example: Batch,
    granularity: str,
    keep: Sequence[str] = (),
    program: fx.GraphModule | None = None,
) -> PruningGraph:
    """Return what can be pruned of the model, what can't and why, and what its tensors cost.

    Args:
        model: is run on the example, in evaluation mode, and left as it was; for channels,
            copies of it are cut and run too.
        example: one or two samples are enough.
        granularity: one of `flexrel.core.granularity.GRANULARITIES`, such as "channel" or "2:4".
        keep: names of layers to leave alone.
        program: the model exported; what is read, tried and cut then is this.

    Raises:
        UsageError: an unknown granularity or layer name.
        UnprunableError: nothing can be pruned.
        ModelError: the model does not run on the example.
    """
    pattern = Pattern.of(granularity)
    weights = weights_of_layers(model)
    if not pattern.zeros:
        _check_names(keep, tuple(weights))
    network = program or model
    traced = trace(network, example)
    dependencies = dependencies_of(traced)
    if granularity == "depth":
        return blocks_of(network, example, traced, dependencies, keep)
    touched = {traced.parameters.get(r.key) for op in traced.operations for r in op.inputs}
    graph = PruningGraph(
        granularity,
        (),
        (),
        {name: tuple(tensor.shape) for name, tensor in network.named_parameters()},
        tuple(dependencies.uses),
        tuple(ProductMacs(macs, ()) for macs, _ in dependencies.products),
        fingerprint=fingerprint(network),
    )
    if pattern.zeros:
        weights = weights_in_products(model, dependencies)
        _check_names(keep, tuple(weights))
        groups, protected = groups_of_weights(model, pattern, weights, dependencies, graph.shapes)
    else:
        units = resolve(dependencies)
        every = groups_of(dependencies, units)
        graph = _with_shrinkage(graph, network, program, dependencies, units, every)
        groups = [group for group in every if granularity in ("channel", group.kind)]
        cut, wanted = _layers(every, weights), set(_layers(groups, weights))
        weights = {**weights, **_others(graph, every, weights)}
        candidates = {n: w for n, w in weights.items() if w in touched and n not in cut}
        protected = _barred(dependencies, units, candidates)
        protected += [
            Protected(name, f"it makes no {granularity}s")
            for name in dict.fromkeys(cut)
            if name not in wanted
        ]
    protected += _untouched(groups, weights, touched, {p.name for p in protected})
    groups, kept = _without_kept(groups, weights, keep)
    graph = replace(graph, groups=tuple(groups), protected=(*protected, *kept))
    if not pattern.zeros:
        tried, failed = probe(network, example, graph)
        refused = [
            Protected(name, failed[group.name])
            for group in graph.groups
            if group.name in failed
            for name in _layers([group], weights)
        ]
        graph = replace(tried, protected=(*graph.protected, *refused))
        graph = with_constants(network, example, graph)
    if not graph.groups:
        shown = [f"{p.name or 'the model itself'}: {p.reason}" for p in graph.protected[:3]]
        reasons = "; ".join(shown) or "it has no layers"
        raise UnprunableError(f"no layer of the network can be pruned by {granularity} ({reasons})")
    return graph


def _check_names(keep: Sequence[str], layers: Sequence[str]) -> None:
    for name in keep:
        if name not in layers:
            close = difflib.get_close_matches(name, layers, n=3) or layers[:3]
            raise UsageError(
                f"there is no layer {name!r} to keep among {len(layers)} layers; "
                f"did you mean {', '.join(close) or 'none'}?"
            )


# --- layers that are left alone -----------------------------------------------------------------


def _layers(groups: Iterable[PruningGroup], weights: LayerWeights) -> list[str]:
    """Return all layers that lose something when the groups do: tied and depthwise ones too.

    Of each group those that make its units come before those that pass them on.
    """
    names: list[str] = []
    for group in groups:
        makers = [member.tensor for member in group.members if member.makes]
        followers = [m.tensor for m in group.members if m.role == "follower" and m.axis == 0]
        alone = tensor_of(group.name, {*filter(None, weights.values())})  # of single weights
        for tensor in (*makers, *followers) if group.members else (alone,):
            layers = [name for name, weight in weights.items() if weight == tensor]
            names += layers or ([tensor] if tensor in makers else [])
    return names


def _barred(
    dependencies: AxisDependencies, units: ResolvedUnits, candidates: LayerWeights
) -> list[Protected]:
    """Return those of the layers of which nothing that they make can be cut."""
    protected = []
    for name, weight in candidates.items():
        if weight is not None:
            axis = 1 if dependencies.roles.get((weight, 1)) in ("producer", "both") else 0
            if why := reason_for(dependencies, units, weight, axis):
                protected.append(Protected(name, why))
    return protected


def _others(
    graph: PruningGraph, groups: Iterable[PruningGroup], weights: LayerWeights
) -> LayerWeights:
    """Return the weights of no Linear and no Conv layer that no group has a part of."""
    known = {member.tensor for group in groups for member in group.members} | {*weights.values()}
    return {
        layer_of(name): name
        for name, shape in graph.shapes.items()
        if len(shape) > 1 and name not in known
    }


def _untouched(
    groups: Sequence[PruningGroup],
    weights: LayerWeights,
    touched: set[str | None],
    known: set[str],
) -> list[Protected]:
    """Return the layers of which neither the groups nor the names that are known say anything."""
    cut = {member.tensor for group in groups for member in group.members if member.makes}
    known = {*known, *_layers(groups, weights)}
    protected = []
    for name, weight in weights.items():
        computed = weight is None and any(tensor.startswith(f"{name}.") for tensor in cut)
        if name in known or computed:  # of parameters that groups cut
            continue
        reason = "its weight is used in a way that can't be followed yet"
        if weight is None:
            reason = "its weight is computed from other parameters"
        elif weight not in touched:
            reason = "it is never called on the example input"
        protected.append(Protected(name, reason))
    return protected


def _without_kept(
    groups: Iterable[PruningGroup], weights: LayerWeights, keep: Sequence[str]
) -> tuple[list[PruningGroup], list[Protected]]:
    rest, kept = [], []
    for group in groups:
        layers = _layers([group], weights)
        wanted = [name for name in layers if name in keep]
        if not wanted:
            rest.append(group)
        for name in layers if wanted else ():
            with_it = f"it goes together with {wanted[0]}, which is kept on request"
            kept.append(Protected(name, "kept on request" if name in keep else with_it))
    return rest, kept


# --- what shrinks as units go -------------------------------------------------------------------


def _with_shrinkage(
    graph: PruningGraph,
    network: nn.Module,
    program: fx.GraphModule | None,
    dependencies: AxisDependencies,
    units: ResolvedUnits,
    groups: Sequence[PruningGroup],
) -> PruningGraph:
    """Return the graph with all multiply-adds and sizes that fall as units of the groups go.

    A number of a module is taken for the length of an axis if the module's own code sizes an axis
    of that length, and no two of that length are cut differently. Whether it is shows in a trial.
    """
    owner = {unit: name for unit, (name, _) in group_of_units(dependencies, units, groups).items()}

    def shrinking(axes: Iterable[Axis]) -> tuple[tuple[int, Shrinkage], ...]:
        pairs = ((prod(map(len, axis)), shrinkage(axis, units, owner)) for axis in axes)
        return tuple((length, by) for length, by in pairs if by)

    uses = []
    products = [ProductMacs(macs, shrinking(axes)) for macs, axes in dependencies.products]
    for (weight, times), rows in zip(dependencies.uses, dependencies.rows, strict=True):
        if shrinking(rows):
            own = dependencies.parameters[weight]
            entries = prod(prod(map(len, axis)) for axis in own)
            products.append(ProductMacs(times * entries, shrinking((*rows, *own))))
        else:
            uses.append((weight, times))
    attributes = []
    for path, axes in dependencies.sizes.items():
        ways: dict[int, set[Shrinkage]] = {}
        for length, by in shrinking(axes):
            ways.setdefault(length, set()).add(by)
        for name, place, number in module_numbers(network.get_submodule(path)) if ways else ():
            if len(ways.get(number, ())) == 1:
                attributes.append(SizeAttribute(path, name, place, *ways[number]))
    sizes = program_sizes_of(program, dependencies, units, groups) if program else ()
    return replace(
        graph,
        uses=tuple(uses),
        products=tuple(products),
        attributes=tuple(attributes),
        program_sizes=tuple(sizes),
    )
