"""What turned one array into another: elements that went, that came, and that changed. Exact.

Zeros are places, not values: a plan that changes moves few of them, and fine-tuning none. So the
elements that became zero, those that no longer are, and those that are neither but changed are told
apart; each is a list of gaps, as positions in a packed file are, among what it can be.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from flexrel_edge.codec import RUN, Part, bits_of, encode_part, runs_of
from flexrel_edge.errors import PackError
from flexrel_edge.positions import gaps_of, positions_from
from flexrel_edge.records import PCODEC, Array, gap_dtype

STREAMS: Final = 5  # of a delta


@dataclass(frozen=True)
class Stream:
    """A part, and how many elements it has."""

    count: int
    part: Part

    def __len__(self) -> int:
        return len(self.part)


@dataclass(frozen=True)
class Delta:
    """The difference of two arrays of the same dtype and length.

    Attributes:
        removed: gaps; which of the old kept elements are zero now.
        added: gaps; which of the old zeros are kept now.
        fresh: the values of those.
        changed: gaps; which of the elements kept in both have another value now.
        steps: how far apart the values are, in the order of numbers: of those that changed, or,
            where they are more than `changed` lists, of all elements kept in both.
    """

    removed: Stream
    added: Stream
    fresh: Stream
    changed: Stream
    steps: Stream

    @property
    def streams(self) -> tuple[Stream, ...]:
        """All, in the order of an update."""
        return (self.removed, self.added, self.fresh, self.changed, self.steps)

    def __len__(self) -> int:
        return sum(map(len, self.streams))


def delta_of(old: Array, new: Array, codec: str = PCODEC) -> Delta:
    """Return what makes `new` of `old`.

    Args:
        old: `[total]`, contiguous.
        new: of the same dtype and length.
        codec: of the streams.
    """

    def stream(values: Array) -> Stream:
        return Stream(len(values), encode_part(values, codec))

    def gaps(mask: Array) -> Stream:
        return stream(gaps_of(mask, gap_dtype(len(old))))

    before, after = bits_of(old) != 0, bits_of(new) != 0
    both = before & after
    steps = _ordered(new[both]) - _ordered(old[both])
    moved = steps != 0
    some = gaps(moved), stream(_signed(steps[moved]))
    every = gaps(moved[:0]), stream(_signed(steps))
    changed, found = min(some, every, key=lambda pair: sum(map(len, pair)))
    return Delta(
        gaps(~after[before]),
        gaps(after[~before]),
        stream(new[after & ~before]),
        changed,
        found,
    )


def changed_by(old: Array, delta: Delta) -> Array:
    """Return the array that a delta makes of another.

    Args:
        old: `[total]`, contiguous.
        delta: any.

    Raises:
        PackError: the delta is not of an array like this.
    """
    new = old.copy()
    mask = bits_of(old) != 0
    for at in _places(delta.removed, mask):
        new[at] = np.zeros(1, old.dtype)[0]
    both = bits_of(new) != 0
    np.logical_not(mask, out=mask)
    every = not delta.changed.count and delta.steps.count == np.count_nonzero(both)
    changed = delta.steps.count if every else delta.changed.count
    if delta.steps.count != changed or delta.fresh.count != delta.added.count:
        raise PackError(
            f"{delta.steps.count} steps for {changed} elements that changed, "
            f"{delta.fresh.count} values for {delta.added.count} that came"
        )
    moved = _chosen(both, _all(changed)) if every else _places(delta.changed, both)
    signed = np.dtype(f"<i{old.itemsize}")
    for at, steps in zip(moved, runs_of(delta.steps.part, signed, changed)):
        new[at] = _unordered(_ordered(new[at]) + bits_of(steps), old.dtype)
    for at, values in zip(
        _places(delta.added, mask), runs_of(delta.fresh.part, old.dtype, delta.fresh.count)
    ):
        new[at] = values
    return new


def _places(stream: Stream, mask: Array) -> Iterator[Array]:
    """Yield the indices of the true elements that a stream names, `RUN` at a time."""
    among = int(np.count_nonzero(mask))
    if stream.count > among:
        raise PackError(f"{stream.count} elements of {among} are said to differ")
    return _chosen(mask, _ordinals(stream, len(mask), among))


def _ordinals(stream: Stream, total: int, among: int) -> Iterator[Array]:
    last = -1
    for gaps in runs_of(stream.part, gap_dtype(total), stream.count):
        ordinals = positions_from(gaps, among, last)
        if len(ordinals):
            last = int(ordinals[-1])
        yield ordinals


def _all(count: int) -> Iterator[Array]:
    return (np.arange(at, min(at + RUN, count)) for at in range(0, count, RUN))


def _chosen(mask: Array, runs: Iterable[Array]) -> Iterator[Array]:
    """Yield where the true elements with these ordinals are; they ascend from run to run."""
    blocks = range(0, len(mask), RUN)
    ends = np.cumsum([np.count_nonzero(mask[at : at + RUN]) for at in blocks], dtype=np.int64)
    for ordinals in runs:
        cuts = np.searchsorted(ordinals, ends)
        places = np.empty_like(ordinals)
        first = 0
        for block, cut, end in zip(blocks, cuts.tolist(), ends.tolist()):
            if cut > first:
                true = np.flatnonzero(mask[block : block + RUN])
                places[first:cut] = true[ordinals[first:cut] - (end - len(true))] + block
                first = cut
        yield places


def _ordered(values: Array) -> Array:
    """Number all bit patterns so that those of floats are in the order of their values."""
    bits = bits_of(values)
    if values.dtype.kind != "f":
        return bits
    top = bits.dtype.type(1 << 8 * values.itemsize - 1)
    return np.where(bits & top, ~bits, bits | top)


def _unordered(numbers: Array, dtype: np.dtype[Any]) -> Array:
    if dtype.kind != "f":
        return numbers.view(dtype)
    top = numbers.dtype.type(1 << 8 * dtype.itemsize - 1)
    return np.where(numbers & top, numbers ^ top, ~numbers).view(dtype)


def _signed(numbers: Array) -> Array:
    return numbers.view(np.dtype(f"<i{numbers.itemsize}"))
