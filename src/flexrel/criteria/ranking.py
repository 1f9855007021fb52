"""From scores to masks: in which order units go, and exactly how many.

All units of the network stand in one order, least worth keeping first. A plan is that order cut
after `k` units, so plans are nested, a cost can only fall as `k` grows, and meeting any budget is a
bisection over one number. N:M leaves a layer no choice of how much goes: there the order is over
layers, and `k` counts those that have the pattern.
"""

from collections.abc import Callable, Iterator, Mapping
from math import gcd
from operator import itemgetter

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flexrel.core.granularity import WeightLayout
from flexrel.core.graph import PruningGraph, PruningGroup
from flexrel.core.measurement import Scores
from flexrel.core.plan import Plan
from flexrel.errors import UsageError

_LARGEST = float(np.finfo(np.float32).max)  # an infinite score counts as this

Normalization = Callable[[Scores], Scores]
"""Makes a criterion's scores comparable over layers, so says how much each loses; higher = keep."""


def as_scored(scores: Scores) -> Scores:
    """Return the scores as they are: layers lose as much as their units deserve."""
    return scores


def ranks_in_layer(scores: Scores) -> Scores:
    """Return each unit's rank in its layer, from 0 to 1: of every layer the same share goes."""
    ranks = {}
    for name, values in scores.items():
        order = torch.argsort(values.flatten(), descending=True, stable=True)
        rank = torch.empty(len(order))
        rank[order] = 1 - (torch.arange(len(order)) + 0.5) / len(order)
        ranks[name] = rank.view(values.shape)
    return ranks


ALLOCATIONS: Mapping[str, Normalization] = {"global": as_scored, "per-layer": ranks_in_layer}
"""How units are shared out over layers, by the names that `prune` takes."""


def pattern_mask(
    scores: Float[Tensor, "..."], layout: WeightLayout, kept: int, of: int
) -> Bool[Tensor, "..."]:
    """Return the N:M mask of a weight: in each group of inputs, those with the highest scores.

    A group is `of` consecutive inputs of one output at one kernel position. Inputs left over at
    the end, fewer than a group, stay. Of equal scores the earlier stays.

    Args:
        scores: one an entry, of the weight's shape.
        layout: of the weight.
        kept: N, of each group.
        of: M, the size of a group.

    Returns:
        A mask of the weight's shape.
    """
    rows = layout.matrix(scores)
    whole = layout.inputs - layout.inputs % of
    groups = rows[..., :whole].unflatten(-1, (-1, of))
    best = groups.argsort(dim=-1, descending=True, stable=True)[..., :kept]
    keep = torch.ones(rows.shape, dtype=torch.bool)
    keep[..., :whole] = (
        torch.zeros(groups.shape, dtype=torch.bool).scatter_(-1, best, True).flatten(-2)
    )
    return layout.weight(keep)


class PatternRanking:
    """The order in which layers take the pattern N:M; `plan(k)` is the plan in which `k` have it.

    The layer whose weights that go have the lowest mean score takes it first; of equals, the later
    in the network. That mean is the loss by each weight saved, so a layer's size decides nothing.
    """

    def __init__(self, graph: PruningGraph, scores: Scores) -> None:
        """Take the scores of all weights, comparable over the network."""
        self.graph = graph
        self.removable = len(graph.groups)
        self._masks: dict[str, Tensor] = {}
        losses: list[tuple[float, int, str]] = []
        for place, group in enumerate(graph.groups):
            if group.layout is None:
                raise UsageError(f"group {group.name!r} has no layout, so no groups of inputs")
            values = scores[group.name].clamp(-_LARGEST, _LARGEST)
            mask = pattern_mask(values, group.layout, *graph.pattern.size)
            self._masks[group.name] = mask
            losses.append((float(values[~mask].double().mean()), -place, group.name))
        self._order = [name for _, _, name in sorted(losses)]

    def plan(self, count: int) -> Plan:
        """Return the plan in which exactly `count` layers have the pattern; the others stay whole.

        Raises:
            UsageError: there are fewer layers.
        """
        if not 0 <= count <= self.removable:
            raise UsageError(
                f"asked for {self.graph.granularity} on {count:,} layers, but "
                f"{self.removable:,} can have it"
            )
        first = set(self._order[:count])
        masks = {
            group.name: self._masks[group.name]
            if group.name in first
            else torch.ones(group.shape, dtype=torch.bool)
            for group in self.graph.groups
        }
        return Plan(self.graph, masks)


def fitting_multiple(multiple: int, width: int) -> int:
    """Return the multiple, halved until a width is at least two of it, so that it can shrink."""
    while multiple > 1 and 2 * multiple > width:
        multiple //= 2
    return multiple


class UnitRanking:
    """An order in which units go; `plan(k)` is the plan that removes the first `k`.

    The unit worth most of each group never goes, so no layer is left empty. Equal scores go in
    a fixed order: the later in the network, and in its layer, the earlier it goes.

    With `multiple_of` the widths that remain are rounded up to multiples of it, with the best of
    the units that would have gone: fewer go than asked for. A width that was none stays whole
    rather than be rounded to more than it was.
    """

    def __init__(
        self, graph: PruningGraph, scores: Scores, multiple_of: int = 1, *, halved: bool = False
    ) -> None:
        """Take the scores of all units, comparable over the network.

        Args:
            graph: of the network.
            scores: of its units.
            multiple_of: what widths are rounded up to.
            halved: of a width that is less than two multiples, half of it, and so on.
        """
        self.graph = graph
        self.multiple_of = multiple_of
        self._halved = halved
        self.removable = graph.units - len(graph.groups)
        self._scores: dict[str, np.ndarray[tuple[int], np.dtype[np.float32]]] = {}
        for group in graph.groups:
            values = np.clip(scores[group.name].flatten().numpy(), -_LARGEST, _LARGEST)
            values[values.argmax()] = np.inf
            self._scores[group.name] = values
        self._all = np.concatenate(list(self._scores.values()))

    def plan(self, count: int) -> Plan:
        """Return the plan that removes exactly `count` units, or fewer where widths are rounded.

        Raises:
            UsageError: more are asked for than can go.
        """
        if not 0 <= count <= self.removable:
            raise UsageError(
                f"asked to remove {count:,} units, but {self.removable:,} of "
                f"{self.graph.units:,} can go: every layer keeps its best"
            )
        masks: dict[str, Tensor] = {}
        last = np.partition(self._all, count - 1)[count - 1] if count else -np.inf
        below = sum(int((values < last).sum()) for values in self._scores.values())
        ties = count - below if count else 0
        for group in reversed(self.graph.groups):
            values = self._scores[group.name]
            keep = values >= last
            if ties:
                equal = np.flatnonzero(values == last)[-ties:]
                keep[equal] = False
                ties -= len(equal)
            kept = int(keep.sum())
            if more := self._rounded(group, kept) - kept:
                gone = np.flatnonzero(~keep)
                best = np.argsort(-values[gone], kind="stable")[:more]
                keep[gone[best]] = True
            masks[group.name] = torch.from_numpy(keep).view(group.shape)
        return Plan(self.graph, masks)

    def _rounded(self, group: PruningGroup, kept: int) -> int:
        """Return how many units to keep, so that what is left of the width is a multiple."""
        width = next((member.index.shape[1] for member in group.members if member.makes), 1)
        multiple = self.multiple_of
        if self._halved:
            multiple = fitting_multiple(multiple, width * group.units)
        step = multiple // gcd(multiple, width)
        return min(-(-kept // step) * step, group.units)

    def best_removed(self, count: int) -> Iterator[tuple[str, int]]:
        """Yield the units that `plan(count)` removes, by group and number, the best first."""
        plan = self.plan(count)
        gone: list[tuple[float, str, int]] = []
        for group in self.graph.groups:
            values = self._scores[group.name]
            removed = np.flatnonzero(~plan.masks[group.name].flatten().numpy())
            gone += [(float(values[at]), group.name, int(at)) for at in removed]
        gone.sort(key=itemgetter(0), reverse=True)
        for _, name, at in gone:
            yield name, at


Ranking = UnitRanking | PatternRanking


def rank_units(
    graph: PruningGraph, scores: Scores, multiple_of: int = 1, *, halved: bool = False
) -> Ranking:
    """Return the order in which units go, or in which layers take the pattern N:M.

    Args:
        graph: as for `UnitRanking`.
        scores: likewise.
        multiple_of: likewise.
        halved: likewise.
    """
    if graph.pattern.unit == "n:m":
        return PatternRanking(graph, scores)
    return UnitRanking(graph, scores, multiple_of, halved=halved)
