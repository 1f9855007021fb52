"""How long the work on a wide layer takes, said before it starts."""

import time
from typing import Final

import torch

from flexrel.core.measurement import Progress

_LONG: Final = 10.0  # seconds: of what takes less nothing is said
_SIZE: Final = 384  # of a product that is timed
_SHARE: Final = 0.4  # of a product's speed, at which matrices are factored and inverted
_MINUTE: Final = 60


def forecast(progress: Progress, layer: str, inputs: int, work: float, shorter: str) -> None:
    """Tell a progress how long a layer will take, if that is long, and what would take less.

    Args:
        progress: is told it as a step of the stage.
        layer: that takes long.
        inputs: that each of its outputs has.
        work: multiply-adds, about.
        shorter: what to do, in words.
    """
    if work < _LONG * _SLOWEST:
        return
    seconds = work / (_SHARE * multiply_adds_a_second())
    if seconds >= _LONG:
        told = duration(seconds)
        progress(f"{layer} has {inputs:,} inputs: about {told}; {shorter}", 0, None)


_SLOWEST: Final = 1e9  # multiply-adds a second; less work than that takes need not be timed


def multiply_adds_a_second() -> float:
    """Return how fast this machine multiplies matrices now."""
    matrix = torch.ones(_SIZE, _SIZE)
    best = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        matrix @ matrix
        best = min(best, time.perf_counter() - began)
    return float(_SIZE**3 / max(best, 1e-9))


def duration(seconds: float) -> str:
    """Return a time in minutes and seconds."""
    minutes, rest = divmod(round(seconds), _MINUTE)
    return f"{minutes:,} min {rest} s" if minutes else f"{rest} s"
