"""What turned one array into another: elements that went, that came, and that changed. Exact.

Zeros are places, not values: a plan that changes moves few of them, and fine-tuning none. So the
elements that became zero, those that no longer are, and those that are neither but changed are told
apart; each is a list of gaps, as positions in a packed file are, among what it can be.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from flexrel_edge.codec import Part, decode_part, encode_part
from flexrel_edge.errors import PackError
from flexrel_edge.records import PCODEC, Array, gap_dtype
from flexrel_edge.tensor import bits_of, positions_from

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

    def gaps(at: Array) -> Stream:
        between = np.diff(at, prepend=-1)
        between -= 1
        return stream(between.astype(gap_dtype(len(old))))

    before, after = bits_of(old) != 0, bits_of(new) != 0
    both = before & after
    steps = _ordered(new[both]) - _ordered(old[both])
    moved = np.flatnonzero(steps)
    some = gaps(moved), stream(_signed(steps[moved]))
    every = gaps(moved[:0]), stream(_signed(steps))
    changed, found = min(some, every, key=lambda pair: sum(map(len, pair)))
    return Delta(
        gaps(np.flatnonzero(~after[before])),
        gaps(np.flatnonzero(after[~before])),
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
    kept, zeros = np.flatnonzero(bits_of(old)), np.flatnonzero(bits_of(old) == 0)
    removed = _places(delta.removed, kept, len(old))
    added = _places(delta.added, zeros, len(old))
    new = old.copy()
    new[removed] = np.zeros(1, old.dtype)[0]
    both = np.flatnonzero(bits_of(new))
    places = both
    if delta.steps.count != len(both) or delta.changed.count:
        places = _places(delta.changed, both, len(old))
    if delta.steps.count != len(places) or delta.fresh.count != len(added):
        raise PackError(
            f"{delta.steps.count} steps for {len(places)} elements that changed, "
            f"{delta.fresh.count} values for {len(added)} that came"
        )
    steps = decode_part(delta.steps.part, np.dtype(f"<i{old.itemsize}"), len(places))
    new[places] = _unordered(_ordered(new[places]) + bits_of(steps), old.dtype)
    new[added] = decode_part(delta.fresh.part, old.dtype, len(added))
    return new


def _places(stream: Stream, among: Array, total: int) -> Array:
    if stream.count > len(among):
        raise PackError(f"{stream.count} elements of {len(among)} are said to differ")
    if not stream.count:
        return among[:0]
    gaps = decode_part(stream.part, gap_dtype(total), stream.count)
    return among[positions_from(gaps, len(among))]


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
