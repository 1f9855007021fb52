"""Cuts that leave the same share of every group: timed as a whole where layers are timed alone."""

from collections.abc import Iterator
from typing import Final

import torch

from flexrel.core.graph import PruningGraph
from flexrel.core.plan import Plan
from flexrel.criteria import fitting_multiple
from flexrel.io import DeviceProfile

_LEFT: Final = (0.75, 0.5, 0.25)  # of the units of every group
_MULTIPLE: Final = 8  # of their widths


def even_plans(graph: PruningGraph) -> Iterator[tuple[str, Plan]]:
    """Yield cuts that leave the same share of every group, by name: the same for the same graph."""
    for share in _LEFT:
        masks = {}
        for group in graph.groups:
            step = fitting_multiple(_MULTIPLE, group.units)
            left = min(max(-(-round(share * group.units) // step) * step, 1), group.units)
            masks[group.name] = (torch.arange(group.units) < left).view(group.shape)
        yield f"{share:g} of the units", Plan(graph, masks)


def profiled_cuts(graph: PruningGraph, profile: DeviceProfile) -> Iterator[tuple[Plan, float]]:
    """Yield the cuts that a device timed, and their milliseconds."""
    for name, plan in even_plans(graph):
        if name in profile.networks:
            yield plan, profile.networks[name]
