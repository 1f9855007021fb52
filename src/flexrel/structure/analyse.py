"""From a model and one batch to what can be pruned of it, and why the rest can't."""

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod

from torch import fx, nn

from flexrel.batches import Batch
from flexrel.errors import UnprunableError, UsageError
from flexrel.fingerprint import fingerprint
from flexrel.granularity import Layout, Pattern
from flexrel.records import (
    Attribute,
    Numeral,
    Protected,
    Site,
    Slice,
    Structure,
    Work,
    layer_of,
    weight_of,
)
from flexrel.structure.constant import with_constants
from flexrel.structure.couple import Coupling
from flexrel.structure.cut import Layer, Transposed
from flexrel.structure.depth import blocks_of
from flexrel.structure.numbers import numbers_of
from flexrel.structure.probe import probe
from flexrel.structure.resolve import Units, resolve
from flexrel.structure.rules import couple
from flexrel.structure.sites import attributes_of, reason_for, sites_of, work_of
from flexrel.structure.trace import Trace, trace

Weights = Mapping[str, str | None]  # layer -> its weight in `named_parameters()`, None: computed


def analyse(
    model: nn.Module,
    example: Batch,
    granularity: str,
    keep: Sequence[str] = (),
    program: fx.GraphModule | None = None,
) -> Structure:
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
        sites, protected = _element_sites({name for name, _ in coupling.uses}, weights, shapes)
        if pattern.unit != "element":
            sites, others = _patterned(module, sites, weights, pattern)
            protected += others
    else:
        units = resolve(coupling)
        sites = sites_of(coupling, units)
        attributes = attributes_of(model, coupling, units, sites)
        numbers = [*numbers_of(program, coupling, units, sites)] if program else []
        uses, work = work_of(coupling, units, sites)
        protected = _barred(coupling, units, sites, weights, traced)
        sites, others = _of_kind(sites, weights, granularity)
        protected += others
    known = {*_layers(sites, weights), *_computed(sites, weights), *(p.name for p in protected)}
    protected += _untouched(traced, weights, known)
    sites, kept = _without_kept(sites, weights, keep)
    structure = Structure(
        granularity,
        tuple(sites),
        (*protected, *kept),
        shapes,
        tuple(uses),
        tuple(work),
        tuple(attributes),
        fingerprint(model),
        tuple(numbers),
    )
    if not pattern.zeros:
        structure = _without_failing(model, example, structure, weights)
        structure = with_constants(model, example, structure)
    if not structure.sites:
        shown = [f"{p.name or 'the model itself'}: {p.reason}" for p in structure.protected[:3]]
        reasons = "; ".join(shown) or "it has no layers"
        raise UnprunableError(f"no layer of the network can be pruned by {granularity} ({reasons})")
    return structure


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
    coupling: Coupling, units: Units, sites: Sequence[Site], weights: Weights, traced: Trace
) -> list[Protected]:
    """Return the layers that are called, but of which nothing that they make can be cut."""
    touched = _touched(traced)
    cut = {*_layers(sites, weights)}
    protected = []
    for name, weight in weights.items():
        if weight in touched and weight is not None and name not in cut:
            axis = 1 if coupling.roles.get((weight, 1)) in ("producer", "both") else 0
            if why := reason_for(coupling, units, weight, axis):
                protected.append(Protected(name, why))
    return protected


def _of_kind(
    sites: Sequence[Site], weights: Weights, granularity: str
) -> tuple[list[Site], list[Protected]]:
    wanted = [site for site in sites if granularity in ("channel", site.kind)]
    cut = set(_layers(wanted, weights))
    others = [name for name in _layers(sites, weights) if name not in cut]
    return wanted, [
        Protected(name, f"it makes no {granularity}s") for name in dict.fromkeys(others)
    ]


def _makers(slices: Iterable[Slice], weights: Weights) -> Iterator[str]:
    """Yield the layers that make or pass on the units, those that make them first."""
    makers = [part.tensor for part in slices if part.makes]
    followers = [part.tensor for part in slices if part.role == "follower" and part.axis == 0]
    for tensor in (*makers, *followers):
        layers = [name for name, weight in weights.items() if weight == tensor]
        yield from layers or ([tensor] if tensor in makers else [])


def _element_sites(
    used: set[str], weights: Weights, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[list[Site], list[Protected]]:
    first: dict[str | None, str] = {}  # of the layers that share a weight
    for name, weight in weights.items():
        first.setdefault(weight, name)
    sites = [
        Site(layer_of(weight), shapes[weight])  # an embedding's name if it has the weight first
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
    return sites, protected


def _is_of_layer(weight: str) -> bool:
    return weight_of(layer_of(weight)) == weight


def _patterned(
    model: nn.Module, elements: Sequence[Site], weights: Weights, pattern: Pattern
) -> tuple[list[Site], list[Protected]]:
    """Return the sites of the layers that have room for the pattern, and why the others don't."""
    sites, protected = [], []
    for site in elements:
        names = _layers([site], weights)
        layer = model.get_submodule(names[0])
        layout = Layout(
            site.shape,
            getattr(layer, "groups", 1),
            isinstance(layer, Transposed),
            pattern.size if pattern.unit == "block" else None,
        )
        reason = ""
        if pattern.unit == "group" and layout.inputs < pattern.size[1]:
            reason = f"a group takes {pattern.size[1]} inputs, and an output of it has "
            reason += str(layout.inputs)
        elif prod(layout.grid) == 1:
            reason = "its weight is one block"
        if reason:
            protected += [Protected(name, reason) for name in names]
        else:
            sites.append(Site(site.name, layout.grid, layout=layout))
    return sites, protected


def _layers(sites: Iterable[Site], weights: Weights) -> list[str]:
    """Return all layers that lose something when the sites do: tied and depthwise ones too."""
    names: list[str] = []
    for site in sites:
        tied = [name for name, weight in weights.items() if weight == weight_of(site.name)]
        names += list(_makers(site.slices, weights)) if site.slices else tied
    return names


def _computed(sites: Iterable[Site], weights: Weights) -> list[str]:
    """Return layers whose weights are computed of parameters that sites cut."""
    cut = {part.tensor for site in sites for part in site.slices if part.makes}
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
    sites: Iterable[Site], weights: Weights, keep: Sequence[str]
) -> tuple[list[Site], list[Protected]]:
    rest, kept = [], []
    for site in sites:
        layers = _layers([site], weights)
        wanted = [name for name in layers if name in keep]
        if not wanted:
            rest.append(site)
        for name in layers if wanted else ():
            with_it = f"it goes together with {wanted[0]}, which is kept on request"
            kept.append(Protected(name, "kept on request" if name in keep else with_it))
    return rest, kept


def _without_failing(
    model: nn.Module, example: Batch, structure: Structure, weights: Weights
) -> Structure:
    tried, failed = probe(model, example, structure)
    refused = [
        Protected(name, failed[site.name])
        for site in structure.sites
        if site.name in failed
        for name in _layers([site], weights)
    ]
    return replace(tried, protected=(*structure.protected, *refused))
