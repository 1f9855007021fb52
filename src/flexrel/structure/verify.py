"""Trying a cut: does the network with units removed compute what it does with them zeroed?

A trace can't see what Python does with sizes: `x.view(-1, 320)` runs on the network it was
written for and on no smaller one. So cuts are tried before they are offered, and the one that
is made is checked again before it is returned.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from flexrel.core.batches import Batch
from flexrel.core.cost import removed_blocks
from flexrel.core.graph import Masks, PruningGraph, PruningGroup, SizeAttribute
from flexrel.core.plan import Plan
from flexrel.core.running import call, duplicate, reason, tensors_of, undisturbed
from flexrel.errors import ModelError
from flexrel.structure.modules import pass_over_
from flexrel.structure.surgery import (
    absorbed,
    add_to_bias_,
    masked,
    named_tensors,
    resize_,
    shrink_,
)

_AGREE = 1e-5  # largest difference of outputs, as a share of the largest, dense or masked
_NEAR = 1e-2  # up to here it may be rounding, which double precision tells
_QUARTERS = 4  # in a trial at least one of so many parts of a group is left
_TELLING = re.compile("head|group|inner|hidden|split|width|chan|chs|dim")

Allowed = Callable[[SizeAttribute], bool]
_VARIANTS: tuple[Allowed, ...] = (  # which numbers in modules are taken for lengths of axes
    bool,
    lambda attribute: bool(_TELLING.search(attribute.name)),
    lambda attribute: "head" in attribute.name or "group" in attribute.name,
    lambda attribute: not attribute,
)


def verify(model: nn.Module, pruned: nn.Module, plan: Plan, example: Batch) -> None:
    """Check that the pruned network computes what the model with zeroed units computes.

    Raises:
        ModelError: it does not, or it does not run; says by how much they differ.
    """
    reason = disagreement(model, pruned, plan, example)
    if reason is not None:
        raise ModelError(
            f"{reason}; nothing was returned. Leave layers alone with keep= to find the cause"
        )


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
        model: that the plan's graph was read from; not changed.
        pruned: the plan carried out on a copy of it.
        plan: says which units go.
        example: one or two samples.
        dense: the model's outputs, if they are known.

    Raises:
        ModelError: a network does not run on the example.
    """
    have = outputs(pruned, example)  # first: it may not run
    expected = _masked(model, plan)
    dense = outputs(model, example) if dense is None else dense
    found = difference(dense, outputs(expected, example), have)
    if isinstance(found, float) and _AGREE < found <= _NEAR:
        doubles = (duplicate(network).double() for network in (model, expected, pruned))
        try:
            double = example.mapped(_double)
            found = difference(*(outputs(network, double) for network in doubles))
        except ModelError:
            return f"the cut network's outputs differ from the masked one's by {found:.3g}"
    if isinstance(found, str):
        return found
    if found <= _AGREE:
        return None
    return f"the cut network's outputs differ from the masked one's by a share of {found:.3g}"


def _masked(model: nn.Module, plan: Plan) -> nn.Module:
    """Return the model with whatever reads the plan's units zeroed, and blocks passed over.

    If all units that go are constant, it is the model itself.
    """
    if all(
        bool(mask.all()) or (group.constant is not None and bool((mask | group.constant).all()))
        for group in plan.graph.groups
        for mask in [plan.masks[group.name]]
    ):
        return model
    expected = duplicate(model, share=True)
    tensors = named_tensors(model)
    resize_(expected, masked(tensors, plan, readers=True))
    for layer, shift in absorbed(tensors, plan).items():
        add_to_bias_(expected.get_submodule(layer), shift)
    for block in removed_blocks(plan.graph, plan.masks):
        pass_over_(expected.get_submodule(block.module))
    return expected


def difference(
    dense: Sequence[Tensor], want: Sequence[Tensor], have: Sequence[Tensor]
) -> float | str:
    """Return the largest difference as a share of the largest output, or why there is none.

    Args:
        dense: outputs of the network as it came; with `want` they say what is large.
        want: outputs as they should be.
        have: outputs as they are.
    """
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


def outputs(network: nn.Module, example: Batch) -> list[Tensor]:
    """Return all tensors that the network returns, in double precision."""
    with undisturbed(network), torch.no_grad():
        return [t if t.is_complex() else t.double() for t in tensors_of(call(network, example))]


def _double(value: Any) -> Any:  # noqa: ANN401 - anything in a batch
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def untrainable(network: nn.Module, example: Batch) -> str | None:
    """Return why no gradient goes back through the network; None: it does, or there is none."""
    with undisturbed(network), torch.enable_grad():
        made = [t for t in tensors_of(call(network, example)) if t.requires_grad]
        wanted = [p for p in network.parameters() if p.requires_grad]
        try:
            if made and wanted:
                scalar = torch.stack([t.abs().sum().float() for t in made]).sum()
                torch.autograd.grad(scalar, wanted, allow_unused=True)
        except RuntimeError as error:
            return f"no gradient goes back through the cut network: {reason(error)}"
    return None


# --- which groups can be cut --------------------------------------------------------------------


def probe(
    model: nn.Module, example: Batch, graph: PruningGraph
) -> tuple[PruningGraph, dict[str, str]]:
    """Return the graph with the groups that can be removed, and why the others can't, by name.

    Args:
        model: is copied and cut by half of the units at every group; where that fails, kind by
            kind, and within a kind by halves. Each time, numbers in modules
            that may be lengths of axes are changed with them: all, those whose names say so, none.
        example: one or two samples.
        graph: as the trace shows it, with all numbers that may be lengths.
    """
    trial = _Trial(model, example, graph)
    good = trial.accept(graph.groups)
    groups = tuple(group for group in graph.groups if group.name in good)
    return replace(graph, groups=groups, attributes=trial.attributes(good)), trial.failed


class _Trial:
    def __init__(self, model: nn.Module, example: Batch, graph: PruningGraph) -> None:
        self._model, self._example, self._graph = model, example, graph
        self._dense = outputs(model, example)
        self._good: dict[str, Allowed] = {}
        self.failed: dict[str, str] = {}

    def accept(self, groups: Sequence[PruningGroup]) -> dict[str, Allowed]:
        """Return which of the groups can be cut, and which numbers change with each."""
        if self._all_of(groups) is not None:
            kinds = _kinds(groups)
            for kind in kinds:
                if len(kinds) == 1 or self._all_of(kind) is not None:
                    self._tell_apart(kind)
        return self._good

    def _tell_apart(self, kind: Sequence[PruningGroup]) -> None:
        """Find out which groups of a kind fail; where two lots do, all of them are taken to."""
        first = self._or_refuse(kind[:1])
        rest = kind[1:]
        if first and rest and self._all_of(rest) is not None:
            self._halve(rest)
        elif rest and not first:
            self._or_refuse(rest)

    def _halve(self, groups: Sequence[PruningGroup]) -> None:
        """Find those that fail, of groups that fail together though others like them don't."""
        middle = len(groups) // 2
        for half in (groups[:middle], groups[middle:]) if middle else ():
            if self._all_of(half) is not None:
                self._halve(half)
        if not middle:
            self._or_refuse(groups)

    def _or_refuse(self, groups: Sequence[PruningGroup]) -> bool:
        failure = self._all_of(groups)
        if failure is not None:
            self.failed |= dict.fromkeys((group.name for group in groups), failure)
        return failure is None

    def _all_of(self, groups: Sequence[PruningGroup]) -> str | None:
        """Try to add all of the groups; return why they can't be."""
        failure = ""
        tried: list[tuple[SizeAttribute, ...]] = []
        for allowed in _VARIANTS if groups else ():
            trial = self._good | dict.fromkeys((group.name for group in groups), allowed)
            attributes = self.attributes(trial)
            if attributes in tried:
                continue
            tried.append(attributes)
            found = self._failure(trial)
            if found is None:
                self._good = trial
                return None
            failure = failure or f"a cut of {_names(groups)} was tried and failed: {found}"
        return failure or None

    def attributes(self, good: dict[str, Allowed]) -> tuple[SizeAttribute, ...]:
        """Return the numbers that change when the groups are cut."""
        return tuple(
            attribute
            for attribute in self._graph.attributes
            if all(good[group](attribute) for group, _ in attribute.units if group in good)
            and any(group in good for group, _ in attribute.units)
        )

    def _failure(self, good: dict[str, Allowed]) -> str | None:
        groups = tuple(group for group in self._graph.groups if group.name in good)
        graph = replace(self._graph, groups=groups, attributes=self.attributes(good))
        plan = Plan(graph, _halves(groups))
        try:
            pruned = duplicate(self._model, share=True)
            shrink_(pruned, plan)
            return disagreement(self._model, pruned, plan, self._example, self._dense)
        except ModelError as error:
            return str(error)


def _halves(groups: Sequence[PruningGroup]) -> Masks:
    """Return masks that leave about half of each group, of groups of one size not the same number.

    What code takes for one width may be that of two groups: halves alike would fit by chance.
    """
    alike: Counter[int] = Counter()
    masks = {}
    for group in groups:
        less = alike[group.units] % (group.units // _QUARTERS + 1)
        alike[group.units] += 1
        masks[group.name] = torch.arange(group.units) < (group.units + 1) // 2 - less
    return masks


def _kinds(groups: Sequence[PruningGroup]) -> list[list[PruningGroup]]:
    """Return the groups by their names but for numbers: layers of one kind fail together."""
    kinds: dict[str, list[PruningGroup]] = {}
    for group in groups:
        kinds.setdefault(re.sub(r"\d+", "", group.name), []).append(group)
    return sorted(kinds.values(), key=lambda kind: kind[0].kind == "head")


def _names(groups: Sequence[PruningGroup]) -> str:
    return "it" if len(groups) == 1 else f"it, together with {len(groups) - 1} layers like it,"
