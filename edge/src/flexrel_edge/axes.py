"""Which rows and columns of one array are those of another: what a cut of channels leaves in place.

Nobody tells: some neighbouring weights are together unlike all others, so where they were and where
they are now says what became of their rows and columns. Rows that are known tell the columns, entry
by entry, and columns the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from flexrel_edge.codec import bits_of
from flexrel_edge.records import Array

NEW: Final = -1  # an entry of an axis that was not there before
_UNLIKE: Final = 4  # bytes that make neighbours unlike others
_SEED: Final = 0  # of the factors of hashes; a wrong match costs bytes, not truth


def axis_maps(old: Array, new: Array) -> list[Array] | None:
    """Return where each entry of each axis was.

    Args:
        old: of any shape.
        new: of the same dtype and number of axes, the third and later of the same lengths.

    Returns:
        For each axis, int64, as long as it is in `new`: the entry of `old` that it was, or `NEW`;
        None if the arrays have nothing to do with each other.
    """
    if not old.size or not new.size or old.shape[2:] != new.shape[2:]:
        return None
    before, after = _units(old), _units(new)
    rows, columns = _voted(before, after, max(_UNLIKE // _unit_bytes(old), 1))
    columns = _told(before, after, rows, columns)
    rows = _told(before.T, after.T, columns, rows)
    if (rows == NEW).all() or (columns == NEW).all():
        return None
    rest = [np.arange(length) for length in new.shape[2:]]
    return [columns] if new.ndim == 1 else [rows, columns, *rest]


def moved(old: Array, maps: Sequence[Array]) -> Array:
    """Return the old array with the entries of its axes where the maps say; zeros where new.

    Axes that shrink go first, so that nothing on the way is larger than both ends.
    """
    for axis in sorted(range(len(maps)), key=lambda n: len(maps[n]) > old.shape[n]):
        entries = maps[axis]
        old = np.take(old, np.maximum(entries, 0), axis)
        gone = [slice(None)] * axis + [entries == NEW]
        old[tuple(gone)] = np.zeros(1, old.dtype)[0]
    return np.ascontiguousarray(old)


def _unit_bytes(array: Array) -> int:
    return array.itemsize * int(np.prod(array.shape[2:], dtype=np.int64))


def _units(array: Array) -> Array:
    """Return `[rows, columns]`: a number for each column of each row, a vector being one row."""
    flat = array.reshape(1, -1, 1) if array.ndim < 2 else array.reshape(*array.shape[:2], -1)  # noqa: PLR2004
    return _hashed(bits_of(flat).astype(np.uint64), 2)


def _hashed(numbers: Array, axis: int) -> Array:
    """Return sums along an axis, each number times a factor of its own; 0 where all are."""
    draw = np.random.default_rng(_SEED)
    factors = draw.integers(1, 2**63, numbers.shape[axis], dtype=np.uint64) * np.uint64(2)
    shape = [1] * numbers.ndim
    shape[axis] = -1
    sums: Array = (numbers * (factors + np.uint64(1)).reshape(shape)).sum(axis, dtype=np.uint64)
    return sums


def _voted(before: Array, after: Array, window: int) -> tuple[Array, Array]:
    """Return where rows and columns were, by neighbours in a row that occur once."""
    window = min(window, before.shape[1], after.shape[1])
    was, now = _matched(
        *(_hashed(sliding_window_view(units, window, 1), 2) for units in (before, after))
    )
    rows = _most(was[0], now[0], len(before), len(after))
    shifts = np.arange(window)
    old, new = (np.add.outer(place[1], shifts).reshape(-1) for place in (was, now))
    return rows, _most(old, new, before.shape[1], after.shape[1])


def _matched(old: Array, new: Array) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Return the places of numbers that occur once in the old array, there and in the new one."""
    values, first, counts = np.unique(old, return_index=True, return_counts=True)
    once = (counts == 1) & (values != 0)
    values, first = values[once], first[once]
    if not len(values):
        nowhere = (np.zeros(0, np.int64),) * old.ndim
        return nowhere, nowhere
    wanted = new.reshape(-1)
    guess = np.minimum(np.searchsorted(values, wanted), len(values) - 1)
    found = np.flatnonzero(values[guess] == wanted)
    return np.unravel_index(first[guess[found]], old.shape), np.unravel_index(found, new.shape)


def _most(was: Array, now: Array, old: int, new: int) -> Array:
    """Return for each new entry the old one that most of its matches come from."""
    pairs, votes = np.unique(now * old + was, return_counts=True)
    order = np.argsort(votes, kind="stable")  # so that the most votes are written last
    entries = np.full(new, NEW, np.int64)
    entries[pairs[order] // old] = pairs[order] % old
    return entries


def _told(before: Array, after: Array, rows: Array, columns: Array) -> Array:
    """Return where columns were: by all rows that are known, or else as voted."""
    known = rows != NEW
    if not known.any():
        return columns
    was, now = _matched(_hashed(before[rows[known]], 0), _hashed(after[known], 0))
    columns = columns.copy()
    columns[now[0]] = was[0]
    return columns
