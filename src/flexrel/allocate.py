"""From scores to masks: in which order units go, and exactly how many.

Every allocation is one order over all units of the network, least worth keeping first. A plan
is that order cut after `k` units, so plans are nested, a cost can only fall as `k` grows, and
meeting any budget is a bisection over one number.
"""

from collections.abc import Callable, Iterator
from math import gcd
from operator import itemgetter

import numpy as np
import torch
from torch import Tensor

from flexrel.errors import UsageError
from flexrel.records import Plan, Scores, Site, Structure

_LARGEST = np.finfo(np.float32).max  # an infinite score counts as this

Values = np.ndarray[tuple[int], np.dtype[np.float32]]
Flags = np.ndarray[tuple[int], np.dtype[np.bool_]]

Allocation = Callable[[Scores], Scores]
"""Makes scores that are compared over the network out of a criterion's: higher = keep."""


def global_order(scores: Scores) -> Scores:
    """Compare all units of the network with each other: layers lose as much as they deserve."""
    return scores


def per_layer_order(scores: Scores) -> Scores:
    """Take the same share of every layer: a unit is worth its rank among its layer's units."""
    shares = {}
    for name, values in scores.items():
        order = torch.argsort(values.flatten(), descending=True, stable=True)
        share = torch.empty(len(order))
        share[order] = 1 - (torch.arange(len(order)) + 0.5) / len(order)
        shares[name] = share.view(values.shape)
    return shares


ALLOCATIONS: dict[str, Allocation] = {"global": global_order, "per-layer": per_layer_order}


class Removal:
    """An order in which units go; `plan(k)` is the plan that removes the first `k`.

    The unit worth most of each site never goes, so no layer is left empty. Equal scores go in
    a fixed order: the later in the network, and in its layer, the earlier it goes.

    With `multiple_of` the widths that remain are rounded up to multiples of it, with the best of
    the units that would have gone: fewer go than asked for. A width that was none stays whole
    rather than be rounded to more than it was.
    """

    def __init__(self, structure: Structure, scores: Scores, multiple_of: int = 1) -> None:
        """Take the scores of all units, comparable over the network."""
        self.structure = structure
        self.multiple_of = multiple_of
        self.removable = structure.units - len(structure.sites)
        self._values: dict[str, Values] = {}
        for site in structure.sites:
            values = np.clip(scores[site.name].flatten().numpy(), -_LARGEST, _LARGEST)
            values[values.argmax()] = np.inf
            self._values[site.name] = values
        self._all = np.concatenate(list(self._values.values()))

    def plan(self, count: int) -> Plan:
        """Return the plan that removes exactly `count` units, or fewer where widths are rounded.

        Raises:
            UsageError: more are asked for than can go.
        """
        if not 0 <= count <= self.removable:
            raise UsageError(
                f"asked to remove {count:,} units, but {self.removable:,} of "
                f"{self.structure.units:,} can go: every layer keeps its best"
            )
        masks: dict[str, Tensor] = {}
        last = np.partition(self._all, count - 1)[count - 1] if count else -np.inf
        below = sum(int((values < last).sum()) for values in self._values.values())
        ties = count - below if count else 0
        for site in reversed(self.structure.sites):
            values = self._values[site.name]
            keep = values >= last
            if ties:
                equal = np.flatnonzero(values == last)[-ties:]
                keep[equal] = False
                ties -= len(equal)
            self._round(site, keep, values)
            masks[site.name] = torch.from_numpy(keep).view(site.shape)
        return Plan(self.structure, masks)

    def _round(self, site: Site, keep: Flags, values: Values) -> None:
        """Keep as many more units that the width of what remains is a multiple."""
        width = next((part.index.shape[1] for part in site.slices if part.makes), 1)
        step = self.multiple_of // gcd(self.multiple_of, width)
        kept = int(keep.sum())
        more = min(-(-kept // step) * step, len(keep)) - kept
        if more:
            gone = np.flatnonzero(~keep)
            best = np.argsort(-values[gone], kind="stable")[:more]
            keep[gone[best]] = True

    def best_removed(self, count: int) -> Iterator[tuple[str, int]]:
        """Yield the units that `plan(count)` removes, by site and number, the best first."""
        plan = self.plan(count)
        gone: list[tuple[float, str, int]] = []
        for site in self.structure.sites:
            values = self._values[site.name]
            removed = np.flatnonzero(~plan.masks[site.name].flatten().numpy())
            gone += [(float(values[at]), site.name, int(at)) for at in removed]
        gone.sort(key=itemgetter(0), reverse=True)
        yield from ((name, at) for _, name, at in gone)
