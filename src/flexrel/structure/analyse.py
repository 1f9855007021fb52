"""From a model and one batch to what can be pruned of it, and why the rest can't."""

import difflib
from collections.abc import Sequence

from torch import nn

from flexrel.batches import Batch
from flexrel.errors import ModelError, UsageError
from flexrel.records import GRANULARITIES, Granularity, Protected, Site, Structure, weight_of
from flexrel.relevance import Layer
from flexrel.structure.couple import Space
from flexrel.structure.rules import couple
from flexrel.structure.trace import trace


def analyse(
    model: nn.Module, example: Batch, granularity: Granularity, keep: Sequence[str] = ()
) -> Structure:
    """Return what can be pruned of the model, what can't and why, and what its tensors cost.

    Args:
        model: is run once on the example, in evaluation mode, and left as it was.
        example: one or two samples are enough.
        granularity: "element" or "channel".
        keep: names of layers to leave alone.

    Raises:
        UsageError: an unknown granularity or layer name.
        ModelError: nothing can be pruned, or the model does not run on the example.
    """
    if granularity not in GRANULARITIES:
        raise UsageError(
            f"granularity {granularity!r} is not known; there are: {', '.join(GRANULARITIES)}"
        )
    layers = [name for name, module in model.named_modules() if isinstance(module, Layer)]
    _check_names(keep, layers)
    traced = trace(model, example)
    coupler = couple(traced)
    used = dict.fromkeys(weight for weight, _ in coupler.uses)
    if granularity == "channel":
        sites, protected = _channel_sites(coupler.owned_spaces(), layers)
    else:
        sites, protected = _element_sites(model, used)
    never = [
        n
        for n in layers
        if weight_of(n) not in used and weight_of(n) in dict(model.named_parameters())
    ]
    protected += [Protected(name, "it is never called on the example input") for name in never]
    protected += [Protected(site.name, "kept on request") for site in sites if site.name in keep]
    sites = [site for site in sites if site.name not in keep]
    if not sites:
        reasons = "; ".join(f"{p.name}: {p.reason}" for p in protected[:3]) or "it has no layers"
        raise ModelError(f"no layer of the network can be pruned by {granularity} ({reasons})")
    shapes = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    return Structure(granularity, tuple(sites), tuple(protected), shapes, tuple(coupler.uses))


def _check_names(keep: Sequence[str], layers: Sequence[str]) -> None:
    for name in keep:
        if name not in layers:
            close = difflib.get_close_matches(name, layers, n=3) or layers[:3]
            raise UsageError(
                f"there is no layer {name!r} to keep among {len(layers)} Linear and Conv layers; "
                f"did you mean {', '.join(close) or 'none'}?"
            )


def _channel_sites(
    spaces: Sequence[Space], layers: Sequence[str]
) -> tuple[list[Site], list[Protected]]:
    sites, protected = [], []
    known = {weight_of(name): name for name in layers}
    for space in spaces:
        producers = [s.tensor for s in space.slices.values() if s.role == "producer"]
        if not producers:
            continue  # the network's own input, or a vector that no layer makes
        name = known.get(producers[0], producers[0])
        reasons = list(dict.fromkeys(space.reasons))
        if space.units == 1:
            reasons.append("it has one channel")
        if all(s.role != "consumer" for s in space.slices.values()):
            reasons = reasons or ["no layer reads it"]
        if reasons:
            names = [known.get(tensor, tensor) for tensor in producers]
            protected += [Protected(layer, reasons[0]) for layer in names]
        else:
            sites.append(Site(name, (space.units,), tuple(space.slices.values())))
    return sites, protected


def _element_sites(model: nn.Module, used: dict[str, None]) -> tuple[list[Site], list[Protected]]:
    sites, protected = [], []
    parameters = dict(model.named_parameters())
    for name, module in model.named_modules():
        weight = weight_of(name)
        if isinstance(module, Layer) and weight in used:
            sites.append(Site(name, tuple(parameters[weight].shape)))
            parameters.pop(weight)
    for name, tensor in parameters.items():
        if tensor.ndim > 1:
            protected.append(Protected(name, "it is not the weight of a Linear or Conv layer"))
    return sites, protected
