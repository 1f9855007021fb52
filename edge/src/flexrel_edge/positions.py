"""Which elements of a tensor are kept, as numbers: gaps, gaps between blocks, or codes of groups.

Gaps say any mask, and say it in as many bits as it takes where zeros come one by one. Where they
come by blocks, or N in every M along an axis, the blocks or the groups are the fewer to tell.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import prod
from typing import Any, Final

import numpy as np

from flexrel_edge.codec import bits_of
from flexrel_edge.errors import PackError
from flexrel_edge.records import GROUP, Array, Blocks, Groups, Pattern, gap_dtype

STRIDE: Final = 2**15  # elements whose places are in memory together
_MATRIX: Final = 2  # axes: fewer have no blocks
_SIDES: Final = (1, 2, 4, 8, 16, 32)  # of blocks that are looked for
_SIZES: Final = (4, 8)  # of groups that are
_SAMPLE: Final = 2**14  # elements that tell of the others
_KIND: Final = 2  # bytes that a codec takes to say how frequent a number is
_GAIN: Final = 0.95  # of the bytes of gaps, at most: or it is not worth trying


def gaps_of(kept: Array, dtype: np.dtype[Any]) -> Array:
    """Say where a mask is true, as `positions_from` takes it.

    Args:
        kept: `[total]`, bool.
        dtype: that holds `total - 1`.

    Returns:
        `[kept]`: how many elements lie between one that is kept and the next.
    """
    gaps = np.empty(np.count_nonzero(kept), dtype)
    done, last = 0, -1
    for start in range(0, len(kept), STRIDE):
        at = np.flatnonzero(kept[start : start + STRIDE])
        if len(at):
            at += start
            gaps[done : done + len(at)] = np.diff(at, prepend=last) - 1
            done, last = done + len(at), int(at[-1])
    return gaps


def positions_from(gaps: Array, total: int, last: int = -1) -> Array:
    """Turn gaps into the flat indices of kept elements.

    Args:
        gaps: `[kept]`, unsigned: how many elements lie between one kept element and the next.
        total: number of elements of the tensor, below 2**62.
        last: index of the kept element before them; -1: there is none.

    Returns:
        `[kept]`, int64, strictly ascending, in `last + 1 ... total - 1`.

    Raises:
        PackError: they run past the end of the tensor.
    """
    # The float64 sum can't wrap and is right to 1e-9 here; below twice the total, int64 is exact.
    if gaps.sum(dtype=np.float64) < 2.0 * total:
        positions = np.cumsum(gaps, dtype=np.int64)
        positions += np.arange(last + 1, last + 1 + len(gaps))
        if len(gaps) == 0 or positions[-1] < total:
            return positions
    raise PackError(f"a kept position lies beyond the {total} elements")


def parted(values: Array, pattern: Pattern | None) -> tuple[Array, Array, Pattern | None]:
    """Part a tensor into numbers that say which elements are kept, and those.

    Args:
        values: of any shape that the pattern divides, contiguous.
        pattern: None: one by one.

    Returns:
        The numbers; the values, `[stored]`; the pattern, its blocks counted.
    """
    kept = bits_of(values) != 0
    if isinstance(pattern, Groups):
        return _codes(kept, pattern), values[kept], pattern
    if isinstance(pattern, Blocks):
        found = grid(kept, pattern).any((1, 3))
        where = np.nonzero(found)
        gaps = gaps_of(found.reshape(-1), gap_dtype(values.size))
        stored = grid(values, pattern)[where[0], :, where[1], :].reshape(-1)
        return gaps, stored, replace(pattern, kept=len(gaps))
    return gaps_of(kept.reshape(-1), gap_dtype(values.size)), values[kept], None


def grid(tensor: Array, blocks: Blocks) -> Array:
    """View it as `[blocks down, rows of a block, blocks across, columns of a block]`."""
    columns = prod(tensor.shape[1:])
    shape = (len(tensor) // blocks.rows, blocks.rows, columns // blocks.columns, blocks.columns)
    return tensor.reshape(shape)


def masks_of(codes: Array, shape: tuple[int, ...], groups: Groups) -> Iterator[tuple[int, Array]]:
    """Yield where a stretch of a tensor begins, and which elements of it are kept.

    Args:
        codes: `[total / size]`, uint8: of each group the bits of those that are kept, the first
            the lowest; in row-major order of the tensor with groups in place of their axis.
        shape: of the tensor.
        groups: how it is divided.

    Raises:
        PackError: a code has more bits than a group has elements.
    """
    if (codes >> groups.size).any():
        raise PackError(f"a group of {groups.size} has a code beyond its bits")
    inner = prod(shape[groups.axis + 1 :])
    each = inner * groups.size  # elements that lie together
    step = max(STRIDE // each, 1)
    codes = codes.reshape(-1, inner)
    masks = np.arange(256)[:, None] >> np.arange(groups.size) & 1 != 0  # of each code
    for at in range(0, len(codes), step):
        found = masks.take(codes[at : at + step], axis=0)  # far faster than an index
        yield at * each, found.transpose(0, 2, 1).reshape(-1)


def likely(values: Array, gaps: int) -> list[Pattern]:
    """Return the patterns by which fewer bytes may say what is kept, the best of each kind.

    Some rows tell of all.

    Args:
        values: of any shape, contiguous.
        gaps: bytes that gaps take.
    """
    if values.ndim < _MATRIX or not values.size:
        return []
    rows = max(_SAMPLE // prod(values.shape[1:]) // _SIDES[-1] * _SIDES[-1], _SIDES[-1])
    kept = bits_of(values[:rows]) != 0
    groups = [
        (_entropy(np.bincount(_codes(kept, found), minlength=2)), found)
        for axis in range(2)
        for size in _SIZES
        for found in (Groups(size, axis),)
        if kept.shape[axis] % size == 0 and values.shape[axis] % size == 0
    ]
    kinds = (groups, _blocks(kept, len(values), values.itemsize))
    best = [min(kind, key=lambda pair: pair[0]) for kind in kinds if kind]
    most = _GAIN * gaps * len(kept) / len(values)
    return [pattern for size, pattern in best if size < most]


def _codes(kept: Array, groups: Groups) -> Array:
    parts = kept.reshape(-1, groups.size, prod(kept.shape[groups.axis + 1 :])).view(GROUP)
    codes = parts[:, 0].copy()
    for place in range(1, groups.size):
        codes |= parts[:, place] << place
    return codes.reshape(-1)


def _blocks(kept: Array, total: int, width: int) -> list[tuple[float, Pattern]]:
    """Return blocks of any size that divides a matrix of `total` rows, with the bytes they take.

    Zeros in blocks that are kept are values, and taken to be half as long as others, `width`.
    """
    matrix = kept.reshape(len(kept), -1)
    count = np.count_nonzero(matrix)
    found: list[tuple[float, Pattern]] = []
    for columns in sorted({*_SIDES, prod(kept.shape[2:])}):
        if matrix.shape[1] % columns:
            continue
        narrow = np.logical_or.reduce(matrix.reshape(len(matrix), -1, columns), axis=2)
        for rows in _SIDES:
            if len(narrow) % rows or total % rows or rows * columns == 1:
                continue
            blocks = narrow.reshape(-1, rows, narrow.shape[1]).any(1)
            there = np.count_nonzero(blocks)
            if there == blocks.size:
                continue  # dense says it as well
            zeros = there * rows * columns - count
            where = _entropy(np.array([there, blocks.size - there]))
            found.append((where + zeros * width / 2, Blocks(rows, columns, 0)))
    return found


def _entropy(counts: Array) -> float:
    """Return the bytes that so many of each kind take, in any order, and to say how many."""
    counts = counts[counts > 0]
    return float((counts * np.log2(counts.sum() / counts)).sum()) / 8 + _KIND * len(counts)
