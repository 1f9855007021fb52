"""How large units are, and how relevant, of some layers: a sample that people can look at."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor, nn

from flexrel.core.graph import PruningGroup
from flexrel.core.plan import Plan, changes
from flexrel.criteria import GroupSignals, History
from flexrel.errors import UsageError
from flexrel.relevance import RelevanceStats
from flexrel.structure import named_tensors

_LAYERS: Final = 12
_POINTS: Final = 400  # of a layer


@dataclass(frozen=True, slots=True)
class UnitScores:
    """Magnitude and relevance of units of one group, spread evenly over it.

    Attributes:
        name: of the group.
        unit: what its units are, in the plural.
        units: how many there are.
        magnitude: of those shown, as `GroupSignals.magnitude` has it; higher = keep.
        relevance: likewise.
        kept: whether each stays.
    """

    name: str
    unit: str
    units: int
    magnitude: tuple[float, ...]
    relevance: tuple[float, ...]
    kept: tuple[bool, ...]

    def as_json(self) -> dict[str, Any]:
        """Return what `result.json` has of it; `kept` is a text of 0 and 1."""
        return {
            "name": self.name,
            "unit": self.unit,
            "units": self.units,
            "magnitude": list(self.magnitude),
            "relevance": list(self.relevance),
            "kept": "".join(str(int(one)) for one in self.kept),
        }


def unit_scores(
    plan: Plan, dense: nn.Module, stats: RelevanceStats | None, history: History | None
) -> tuple[UnitScores, ...]:
    """Return at most 400 units of each of the 12 groups that have the most, in their order.

    Args:
        plan: that decided on them.
        dense: the network as it came.
        stats: its relevance; None: not measured, so nothing is returned. Nor are groups whose
            relevance it lacks.
        history: averages over training, which stand for its weights.
    """
    if stats is None:
        return ()
    tracked = {} if history is None else history.magnitudes
    tensors = {**named_tensors(dense), **tracked}
    units = {one.name: one.unit for one in changes(plan.graph, plan.masks)}
    largest = sorted(plan.graph.groups, key=lambda group: -group.units)[:_LAYERS]
    found = []
    for group in plan.graph.groups:
        if group in largest:
            both = _both(group, tensors, stats)
            found += [_sampled(group, units[group.name], plan, *both)] if both else []
    return tuple(found)


def _both(
    group: PruningGroup, tensors: Mapping[str, Tensor], stats: RelevanceStats
) -> tuple[Tensor, Tensor] | None:
    """Return each unit's magnitude and relevance, of the group's shape; None if one is unknown."""
    scored = replace(group, shape=group.layout.shape) if group.layout else group
    known = GroupSignals(scored, tensors, stats)
    try:
        both = known.magnitude(), known.relevance()
    except UsageError:  # no relevance came to a layer
        return None
    first, second = (group.layout.means(one) if group.layout else one for one in both)
    return first, second


def _sampled(
    group: PruningGroup, unit: str, plan: Plan, magnitude: Tensor, relevance: Tensor
) -> UnitScores:
    places = torch.linspace(0, group.units - 1, min(group.units, _POINTS)).long()
    kept = plan.masks[group.name].flatten()[places]
    return UnitScores(
        group.name,
        unit,
        group.units,
        _short(magnitude.flatten()[places]),
        _short(relevance.flatten()[places]),
        tuple(map(bool, kept.tolist())),
    )


def _short(values: Tensor) -> tuple[float, ...]:
    """Return numbers with four digits, which are enough to look at."""
    return tuple(float(f"{value:.4g}") for value in values.tolist())
