"""From a model and one batch to what can be pruned of it, and why the rest can't."""

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod

from torch import fx, nn

from flexrel.core.batches import Batch
from flexrel.core.fingerprint import fingerprint
from flexrel.core.granularity import Layout, Pattern
from flexrel.core.graph import (
    Attribute,
    GroupMember,
    Numeral,
    Protected,
    PruningGraph,
    PruningGroup,
    Work,
    layer_of,
    weight_of,
)
from flexrel.errors import UnprunableError, UsageError
from flexrel.structure.constant import with_constants
from flexrel.structure.cut import Layer, Transposed
from flexrel.structure.dependencies import AxisDependencies
from flexrel.structure.depth import blocks_of
from flexrel.structure.groups import attributes_of, groups_of, reason_for, work_of
from flexrel.structure.numbers import numbers_of
from flexrel.structure.probe import probe
from flexrel.structure.resolve import Units, resolve
from flexrel.structure.rules import couple
from flexrel.structure.trace import Trace, trace

Weights = Mapping[str, str | None]  # layer -> its weight in `named_parameters()`, None: computed


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
        granularity: one of `flexrel.granularity.GRANULARITIES`, such as "channel" or "2:4".
        keep: names of layers to leave alone.
        program: the model exported; what is read, tried and cut then is this.

    Raises:
        UsageError: an unknown granularity or layer name.
        UnprunableError: nothing can be pruned.
        ModelError: the model does not run on the example.
    """
    pattern = Pattern.of(granularity)
    weights = _weights(model)
    _check_names(keep, tuple(weights))
    module, model = model, program or model
    traced = trace(model, example)
    coupling = couple(traced)
    if granularity == "depth":
        return blocks_of(model, example, traced, coupling, keep)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    attributes: list[Attribute] = []
    numbers: list[Numeral] = []
    uses, work = coupling.uses, [Work(macs, ()) for macs, _ in coupling.work]
    if pattern.zeros:
        groups, protected = _element_groups({name for name, _ in coupling.uses}, weights, shapes)
        if pattern.unit != "element":
            groups, others = _patterned(module, groups, weights, pattern)
            protected += others
    else:
        units = resolve(coupling)
        groups = groups_of(coupling, units)
        attributes = attributes_of(model, coupling, units, groups)
        numbers = [*numbers_of(program, coupling, units, groups)] if program else []
        uses, work = work_of(coupling, units, groups)
        protected = _barred(coupling, units, groups, weights, traced)
        groups, others = _of_kind(groups, weights, granularity)
        protected += others
    known = {*_layers(groups, weights), *_computed(groups, weights), *(p.name for p in protected)}
    protected += _untouched(traced, weights, known)
    groups, kept = _without_kept(groups, weights, keep)
    graph = PruningGraph(
        granularity,
        tuple(groups),
        (*protected, *kept),
        shapes,
        tuple(uses),
        tuple(work),
        tuple(attributes),
        fingerprint(model),
        tuple(numbers),
    )
    if not pattern.zeros:
        graph = _without_failing(model, example, graph, weights)
        graph = with_constants(model, example, graph)
    if not graph.groups:
        shown = [f"{p.name or 'the model itself'}: {p.reason}" for p in graph.protected[:3]]
        reasons = "; ".join(shown) or "it has no layers"
        raise UnprunableError(f"no layer of the network can be pruned by {granularity} ({reasons})")
    return graph


def _weights(model: nn.Module) -> Weights:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    layers = ((name, m) for name, m in model.named_modules() if isinstance(m, Layer))
    return {name: names.get(id(layer.weight)) for name, layer in layers}


def _check_names(keep: Sequence[str], layers: Sequence[str]) -> None:
    for name in keep:
        if name not in layers:
            close = difflib.get_close_matches(name, layers, n=3) or layers[:3]
            raise UsageError(
                f"there is no layer {name!r} to keep among {len(layers)} Linear and Conv layers; "
                f"did you mean {', '.join(close) or 'none'}?"
            )


def _barred(
    coupling: AxisDependencies,
    units: Units,
    groups: Sequence[PruningGroup],
    weights: Weights,
    traced: Trace,
) -> list[Protected]:
    """Return the layers that are called, but of which nothing that they make can be cut."""
    touched = _touched(traced)
    cut = {*_layers(groups, weights)}
    protected = []
    for name, weight in weights.items():
        if weight in touched and weight is not None and name not in cut:
            axis = 1 if coupling.roles.get((weight, 1)) in ("producer", "both") else 0
            if why := reason_for(coupling, units, weight, axis):
                protected.append(Protected(name, why))
    return protected


def _of_kind(
    groups: Sequence[PruningGroup], weights: Weights, granularity: str
) -> tuple[list[PruningGroup], list[Protected]]:
    wanted = [group for group in groups if granularity in ("channel", group.kind)]
    cut = set(_layers(wanted, weights))
    others = [name for name in _layers(groups, weights) if name not in cut]
    return wanted, [
        Protected(name, f"it makes no {granularity}s") for name in dict.fromkeys(others)
    ]


def _makers(members: Iterable[GroupMember], weights: Weights) -> Iterator[str]:
    """Yield the layers that make or pass on the units, those that make them first."""
    makers = [part.tensor for part in members if part.makes]
    followers = [part.tensor for part in members if part.role == "follower" and part.axis == 0]
    for tensor in (*makers, *followers):
        layers = [name for name, weight in weights.items() if weight == tensor]
        yield from layers or ([tensor] if tensor in makers else [])


def _element_groups(
    used: set[str], weights: Weights, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[list[PruningGroup], list[Protected]]:
    first: dict[str | None, str] = {}  # of the layers that share a weight
    for name, weight in weights.items():
        first.setdefault(weight, name)
    groups = [
        PruningGroup(
            layer_of(weight), shapes[weight]
        )  # an embedding's name if it has the weight first
        for name, weight in weights.items()
        if weight in used and first[weight] == name and _is_of_layer(weight)
    ]
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
    return groups, protected


def _is_of_layer(weight: str) -> bool:
    return weight_of(layer_of(weight)) == weight


def _patterned(
    model: nn.Module, elements: Sequence[PruningGroup], weights: Weights, pattern: Pattern
) -> tuple[list[PruningGroup], list[Protected]]:
    """Return the groups of the layers that have room for the pattern, and why the others don't."""
    groups, protected = [], []
    for group in elements:
        names = _layers([group], weights)
        layer = model.get_submodule(names[0])
        layout = Layout(
            group.shape,
            getattr(layer, "groups", 1),
            isinstance(layer, Transposed),
            pattern.size if pattern.unit == "block" else None,
        )
        reason = ""
        if pattern.unit == "n:m" and layout.inputs < pattern.size[1]:
            reason = f"a group takes {pattern.size[1]} inputs, and an output of it has "
            reason += str(layout.inputs)
        elif prod(layout.grid) == 1:
            reason = "its weight is one block"
        if reason:
            protected += [Protected(name, reason) for name in names]
        else:
            groups.append(PruningGroup(group.name, layout.grid, layout=layout))
    return groups, protected


def _layers(groups: Iterable[PruningGroup], weights: Weights) -> list[str]:
    """Return all layers that lose something when the groups do: tied and depthwise ones too."""
    names: list[str] = []
    for group in groups:
        tied = [name for name, weight in weights.items() if weight == weight_of(group.name)]
        names += list(_makers(group.members, weights)) if group.members else tied
    return names


def _computed(groups: Iterable[PruningGroup], weights: Weights) -> list[str]:
    """Return layers whose weights are computed of parameters that groups cut."""
    cut = {part.tensor for group in groups for part in group.members if part.makes}
    return [
        name
        for name, weight in weights.items()
        if weight is None and any(tensor.startswith(f"{name}.") for tensor in cut)
    ]


def _untouched(traced: Trace, weights: Weights, known: set[str]) -> list[Protected]:
    """Return the layers that the trace says nothing of, with the reason."""
    touched = _touched(traced)
    protected = []
    for name, weight in weights.items():
        if name in known:
            continue
        reason = "its weight is used in a way that can't be followed yet"
        if weight is None:
            reason = "its weight is computed from other parameters"
        elif weight not in touched:
            reason = "it is never called on the example input"
        protected.append(Protected(name, reason))
    return protected


def _touched(traced: Trace) -> set[str | None]:
    refs = (ref for operation in traced.operations for ref in operation.inputs)
    return {traced.parameters.get(ref.key) for ref in refs}


def _without_kept(
    groups: Iterable[PruningGroup], weights: Weights, keep: Sequence[str]
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


def _without_failing(
    model: nn.Module, example: Batch, graph: PruningGraph, weights: Weights
) -> PruningGraph:
    tried, failed = probe(model, example, graph)
    refused = [
        Protected(name, failed[group.name])
        for group in graph.groups
        if group.name in failed
        for name in _layers([group], weights)
    ]
    return replace(tried, protected=(*graph.protected, *refused))
