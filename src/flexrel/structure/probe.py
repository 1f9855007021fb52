"""Trying a cut: does the network with units removed compute what it does with them zeroed?

A trace can't see what Python does with sizes: `x.view(-1, 320)` runs on the network it was
written for and on no smaller one. So cuts are tried before they are offered, and the one that
is made is checked again before it is returned.
"""

import copy
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from flexrel.batches import Batch
from flexrel.errors import ModelError
from flexrel.records import Attribute, Plan, Site, Structure
from flexrel.running import call, reason, tensors_of, undisturbed
from flexrel.structure.cut import (
    absorbed,
    add_to_bias_,
    blocks_gone,
    masked,
    named_tensors,
    resize_,
    shrink_,
)
from flexrel.structure.skip import pass_over_

_AGREE = 1e-5  # largest difference of outputs, as a share of the largest, dense or masked
_NEAR = 1e-2  # up to here it may be rounding, which double precision tells

_TELLING = re.compile("head|group|inner|hidden|split|width|chan|chs|dim")
Allowed = Callable[[Attribute], bool]
_VARIANTS: tuple[Allowed, ...] = (  # which numbers in modules are taken for lengths of axes
    bool,
    lambda attribute: bool(_TELLING.search(attribute.name)),
    lambda attribute: "head" in attribute.name or "group" in attribute.name,
    lambda attribute: not attribute,
)


def duplicate(model: nn.Module, *, share: bool = False) -> nn.Module:
    """Return a deep copy of the model; with `share`, one of the same parameters and buffers.

    Raises:
        ModelError: it can't be copied.
    """
    tensors = (*model.parameters(), *model.buffers()) if share else ()
    try:
        return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    except (RuntimeError, TypeError) as error:
        raise ModelError(f"the model can't be copied: {reason(error)}") from error


def disagreement(
    model: nn.Module,
    pruned: nn.Module,
    plan: Plan,
    example: Batch,
    dense: Sequence[Tensor] | None = None,
) -> str | None:
    """Return how the pruned network's outputs differ from the masked model's; None: they agree.

    In the masked model what reads the plan's units is zeroed, and biases take over what was
    read of constant ones; if all units that go are constant, it is the model itself. Where
    rounding may be what differs, both run again in double precision.

    Args:
        model: that the plan's structure was read from; not changed.
        pruned: the plan carried out on a copy of it.
        plan: says which units go.
        example: one or two samples.
        dense: the model's outputs, if they are known.

    Raises:
        ModelError: a network does not run on the example.
    """
    have = _outputs(pruned, example)  # first: it may not run
    expected = model if _is_free(plan) else _masked(model, plan)
    dense = _outputs(model, example) if dense is None else dense
    found = _difference(dense, _outputs(expected, example), have)
    if isinstance(found, float) and _AGREE < found <= _NEAR:
        doubles = (duplicate(network).double() for network in (model, expected, pruned))
        try:
            found = _difference(*(_outputs(network, _double(example)) for network in doubles))
        except ModelError:
            return f"the cut network's outputs differ from the masked one's by {found:.3g}"
    if isinstance(found, str):
        return found
    if found <= _AGREE:
        return None
    return f"the cut network's outputs differ from the masked one's by a share of {found:.3g}"


def _is_free(plan: Plan) -> bool:
    """Return whether all units that go are constant."""
    return all(
        bool(mask.all()) or (site.constant is not None and bool((mask | site.constant).all()))
        for site in plan.structure.sites
        for mask in [plan.masks[site.name]]
    )


def _masked(model: nn.Module, plan: Plan) -> nn.Module:
    """Return the model with whatever reads the plan's units zeroed, and blocks passed over."""
    expected = duplicate(model, share=True)
    tensors = named_tensors(model)
    resize_(expected, masked(tensors, plan, readers=True))
    for layer, shift in absorbed(tensors, plan).items():
        add_to_bias_(expected.get_submodule(layer), shift)
    for block in blocks_gone(plan):
        pass_over_(expected.get_submodule(block.module))
    return expected


def _difference(
    dense: Sequence[Tensor], want: Sequence[Tensor], have: Sequence[Tensor]
) -> float | str:
    """Return the largest difference as a share of the largest output, or why there is none."""
    if len(want) != len(have):
        return f"the cut network returns {len(have)} tensors, the masked one {len(want)}"
    worst = 0.0
    for whole, one, two in zip(dense, want, have, strict=True):
        if one.shape != two.shape:
            return f"the cut network returns {list(two.shape)}, the masked one {list(one.shape)}"
        if one.numel() == 0:
            continue
        apart = float(torch.where(one == two, 0.0, one - two).abs().max())  # inf agrees
        largest = max(float(t.nan_to_num(0.0, 0.0, 0.0).abs().max()) for t in (whole, one))
        if apart:
            share = apart / largest if largest else math.inf
            worst = max(worst, math.inf if math.isnan(share) else share)
    return worst


def probe(
    model: nn.Module, example: Batch, structure: Structure
) -> tuple[Structure, dict[str, str]]:
    """Return the structure with the sites that can be removed, and why the others can't, by name.

    Args:
        model: is copied and cut by half of the units at every site; where that fails, kind by
            kind, and within a kind by halves. Each time, numbers in modules
            that may be lengths of axes are changed with them: all, those whose names say so, none.
        example: one or two samples.
        structure: as the trace shows it, with all numbers that may be lengths.
    """
    trial = _Trial(model, example, structure)
    good = trial.accept(structure.sites)
    sites = tuple(site for site in structure.sites if site.name in good)
    return replace(structure, sites=sites, attributes=trial.attributes(good)), trial.failed


class _Trial:
    def __init__(self, model: nn.Module, example: Batch, structure: Structure) -> None:
        self._model, self._example, self._structure = model, example, structure
        self._dense = _outputs(model, example)
        self._good: dict[str, Allowed] = {}
        self.failed: dict[str, str] = {}

    def accept(self, sites: Sequence[Site]) -> dict[str, Allowed]:
        """Return which of the sites can be cut, and which numbers change with each."""
        if self._all_of(sites) is not None:
            kinds = _kinds(sites)
            for kind in kinds:
                if len(kinds) == 1 or self._all_of(kind) is not None:
                    self._tell_apart(kind)
        return self._good

    def _tell_apart(self, kind: Sequence[Site]) -> None:
        """Find out which sites of a kind fail; where two lots do, all of them are taken to."""
        first = self._or_refuse(kind[:1])
        rest = kind[1:]
        if first and rest and self._all_of(rest) is not None:
            self._halve(rest)
        elif rest and not first:
            self._or_refuse(rest)

    def _halve(self, sites: Sequence[Site]) -> None:
        """Find those that fail, of sites that fail together though others like them don't."""
        middle = len(sites) // 2
        for half in (sites[:middle], sites[middle:]) if middle else ():
            if self._all_of(half) is not None:
                self._halve(half)
        if not middle:
            self._or_refuse(sites)

    def _or_refuse(self, sites: Sequence[Site]) -> bool:
        failure = self._all_of(sites)
        if failure is not None:
            self.failed |= dict.fromkeys((site.name for site in sites), failure)
        return failure is None

    def _all_of(self, sites: Sequence[Site]) -> str | None:
        """Try to add all of the sites; return why they can't be."""
        failure = ""
        tried: list[tuple[Attribute, ...]] = []
        for allowed in _VARIANTS if sites else ():
            trial = self._good | dict.fromkeys((site.name for site in sites), allowed)
            attributes = self.attributes(trial)
            if attributes in tried:
                continue
            tried.append(attributes)
            found = self._failure(trial)
            if found is None:
                self._good = trial
                return None
            failure = failure or f"a cut of {_names(sites)} was tried and failed: {found}"
        return failure or None

    def attributes(self, good: dict[str, Allowed]) -> tuple[Attribute, ...]:
        """Return the numbers that change when the sites are cut."""
        return tuple(
            attribute
            for attribute in self._structure.attributes
            if all(good[site](attribute) for site, _ in attribute.units if site in good)
            and any(site in good for site, _ in attribute.units)
        )

    def _failure(self, good: dict[str, Allowed]) -> str | None:
        sites = tuple(site for site in self._structure.sites if site.name in good)
        structure = replace(self._structure, sites=sites, attributes=self.attributes(good))
        masks = {site.name: torch.arange(site.units) < (site.units + 1) // 2 for site in sites}
        plan = Plan(structure, masks)
        try:
            pruned = duplicate(self._model, share=True)
            shrink_(pruned, plan)
            return disagreement(self._model, pruned, plan, self._example, self._dense)
        except ModelError as error:
            return str(error)


def _kinds(sites: Sequence[Site]) -> list[list[Site]]:
    """Return the sites by their names but for numbers: layers of one kind fail together."""
    kinds: dict[str, list[Site]] = {}
    for site in sites:
        kinds.setdefault(re.sub(r"\d+", "", site.name), []).append(site)
    return sorted(kinds.values(), key=lambda kind: kind[0].kind == "head")


def _names(sites: Sequence[Site]) -> str:
    return "it" if len(sites) == 1 else f"it, together with {len(sites) - 1} layers like it,"


def _double(example: Batch) -> Batch:
    kwargs = {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in example.kwargs.items()
    }
    args = tuple(x.double() if x.is_floating_point() else x for x in example.args)
    return replace(example, args=args, kwargs=kwargs)


def _outputs(network: nn.Module, example: Batch) -> list[Tensor]:
    with undisturbed(network), torch.no_grad():
        return [t if t.is_complex() else t.double() for t in tensors_of(call(network, example))]
