"""Bringing the signals of different layers to a common scale."""

from collections.abc import Callable, Iterator, Sequence
from math import sqrt
from typing import Literal

import torch
from torch import Tensor

Scale = Literal["network", "layer", "mean", "rank", "cost"]
SCALES: tuple[Scale, ...] = ("network", "layer", "mean", "rank", "cost")
Maker = Callable[[], Tensor]  # of one layer's signal, afresh each time


def alone(
    makers: Sequence[Maker], scale: Scale, costs: Sequence[float | Tensor]
) -> Iterator[Tensor]:
    """Yield one signal that is blended with none: over the network, its order needs no scale."""
    if scale == "network":
        return (make() for make in makers)
    return scaled(makers, scale, costs)


def scaled(
    makers: Sequence[Maker], scale: Scale, costs: Sequence[float | Tensor]
) -> Iterator[Tensor]:
    """Yield what each maker makes, on a common scale; "network" and "cost" make all twice.

    Making it twice is cheaper than keeping it: one layer is in memory at a time.

    Args:
        makers: one a layer.
        scale: see `FlexRel`.
        costs: what one unit of each layer costs, or each of its units.
    """
    if scale == "network":
        low, high = _range(makers)
        yield from (_from_to(make(), low, high) for make in makers)
    elif scale == "cost":
        pairs = list(zip(makers, map(_worth, costs), strict=True))
        totals = [(float((x.abs() * w).sum()), x.numel()) for make, w in pairs for x in [make()]]
        mean = sum(total for total, _ in totals) / max(sum(count for _, count in totals), 1)
        yield from (make().mul_(w).div_(mean if mean > 0 else 1.0) for make, w in pairs)
    else:
        by_layer = {"layer": _min_max, "mean": _multiples_of_mean, "rank": _ranks}[scale]
        yield from (by_layer(make()) for make in makers)


def _worth(cost: float | Tensor) -> float | Tensor:
    if isinstance(cost, Tensor):
        return cost.clamp(min=1).rsqrt()
    return 1 / sqrt(cost) if cost > 0 else 1.0


def _min_max(values: Tensor) -> Tensor:
    low, high = values.aminmax()
    return _from_to(values, float(low), float(high))


def _multiples_of_mean(values: Tensor) -> Tensor:
    mean = float(values.abs().mean())
    return values.div_(mean if mean > 0 else 1.0)


def _from_to(values: Tensor, low: float, high: float) -> Tensor:
    return values.sub_(low).div_(high - low if high > low else 1.0)


def _range(makers: Sequence[Maker]) -> tuple[float, float]:
    bounds = [make().aminmax() for make in makers]
    return min(float(b.min) for b in bounds), max(float(b.max) for b in bounds)


def _ranks(values: Tensor) -> Tensor:
    distinct, index = torch.unique(values, return_inverse=True)
    ranks: Tensor = index.to(torch.float32) / max(len(distinct) - 1, 1)
    return ranks
