"""One tensor to its parts and back: dense or sparse, as it is or scaled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from flexrel_edge.codec import Part, bits_of, decode_part, encode_part, runs_of
from flexrel_edge.errors import PackError
from flexrel_edge.positions import (
    STRIDE,
    grid,
    likely,
    masks_of,
    parted,
    positions_from,
)
from flexrel_edge.records import (
    FLOATING,
    GROUP,
    SCALES,
    Array,
    Blocks,
    Entry,
    Groups,
    Pattern,
    gap_dtype,
)
from flexrel_edge.scales import MAX_SCALE, on_grid, scaled

_MATRIX: Final = 2  # axes: fewer have no rows that could share a scale
_SCALED: Final = 16  # bytes that scales may take in the index
_PATTERN: Final = 8  # and a pattern


@dataclass(frozen=True)
class Coded:
    """One tensor's parts.

    Attributes:
        kept: elements with a bit pattern other than zero.
        values: all of them (dense), or the kept ones (sparse); whole numbers if there are scales.
        positions: which elements are kept; None: dense.
        scales: one for each row, by which whole numbers are multiplied; None: values as they are.
        pattern: by what positions say it; None: by gaps.
    """

    kept: int
    values: Part
    positions: Part | None = None
    scales: Part | None = None
    pattern: Pattern | None = None

    @property
    def parts(self) -> tuple[Part, ...]:
        """Those that there are, in the order of the file."""
        every = (self.values, self.positions, self.scales)
        return tuple(part for part in every if part is not None)

    def __len__(self) -> int:
        return sum(map(len, self.parts))


def encode_tensor(tensor: Array, dtype: str, codec: str) -> Coded:
    """Code a tensor in the shortest of the ways there are; dense and unscaled when all are equal.

    Args:
        tensor: contiguous, as `STORAGE` has the dtype.
        dtype: a key of it.
        codec: of parts that are not raw.

    Returns:
        The parts, and how many elements have a bit pattern other than zero.
    """
    found = []
    for values, scales in _ways(tensor, dtype):
        found.append(encode_stored(values, scales, codec, sparse=False))
        if not bits_of(values).all():
            by_gaps = encode_stored(values, scales, codec, sparse=True)
            patterns = likely(values, len(by_gaps.positions or ()))
            found.append(by_gaps)
            found += (
                encode_stored(values, scales, codec, sparse=True, pattern=p) for p in patterns
            )
    return min(found, key=_cost)


def _cost(coded: Coded) -> int:
    return len(coded) + _SCALED * (coded.scales is not None) + _PATTERN * bool(coded.pattern)


def encode_stored(
    values: Array,
    scales: Array | None,
    codec: str,
    *,
    sparse: bool,
    pattern: Pattern | None = None,
) -> Coded:
    """Code what stands for the elements, in one way.

    Args:
        values: of the tensor's shape, contiguous: the elements, or whole numbers.
        scales: `[rows]`, what whole numbers are multiplied by.
        codec: of parts that are not raw.
        sparse: whether positions are coded, and zeros are not; then there must be one.
        pattern: by which positions say it; None: by gaps.

    Returns:
        The same parts for the same arguments and release of the codec.
    """
    coded = None if scales is None else encode_part(scales, codec)
    count = int(np.count_nonzero(bits_of(values)))
    if not sparse:
        return Coded(count, encode_part(values.reshape(-1), codec), None, coded)
    positions, stored, pattern = parted(values, pattern)
    return Coded(count, encode_part(stored, codec), encode_part(positions, codec), coded, pattern)


def _ways(tensor: Array, dtype: str) -> Iterator[tuple[Array, Array | None]]:
    """Yield what can stand for the elements, and the scales it takes."""
    yield tensor, None
    if dtype in FLOATING and tensor.ndim >= _MATRIX and tensor.size:
        grid = on_grid(tensor.reshape(len(tensor), -1), dtype)
        if grid is not None:
            yield grid[0].reshape(tensor.shape), grid[1]


def decode_tensor(coded: Coded, entry: Entry) -> Array:
    """Give back the tensor that `encode_tensor` got.

    Args:
        coded: parts of the lengths that the entry declares.
        entry: their description.

    Returns:
        Of the entry's shape and storage dtype, in memory of its own.

    Raises:
        PackError: the parts don't hold what the entry declares.
    """
    values, scales = decode_stored(coded, entry)
    if scales is None:
        return values.reshape(entry.shape)
    rows = values.reshape(entry.rows, -1)
    return scaled(rows, scales[:, None], entry.dtype).reshape(entry.shape)


def decode_stored(coded: Coded, entry: Entry) -> tuple[Array, Array | None]:
    """Give back what stands for the elements, zeros included, and the scales if there are any.

    Args:
        coded: parts of the lengths that the entry declares.
        entry: their description.

    Returns:
        `[total]`, of the entry's dtype of values, and `[rows]` or None.

    Raises:
        PackError: the parts don't hold what the entry declares.
    """
    scales = None
    if coded.scales is not None:
        scales = decode_part(coded.scales, SCALES, entry.rows)
        if not ((scales > 0) & (scales <= MAX_SCALE)).all():
            raise PackError(f"a scale is not a number above 0 and at most {MAX_SCALE}")
    if coded.positions is None:
        values = decode_part(coded.values, entry.values_dtype, entry.total)
        kept = int(np.count_nonzero(bits_of(values)))
        if kept != entry.kept:
            raise PackError(f"declares {entry.kept} kept elements, found {kept}")
    else:
        values = _spread(coded.values, coded.positions, entry)
    if entry.dtype == "bool" and (values > 1).any():
        raise PackError("a bool is neither 0 nor 1")
    return values, scales


def _spread(values: Part, positions: Part, entry: Entry) -> Array:
    """Put kept values where they belong."""
    spread = np.zeros(entry.total, entry.values_dtype)
    if isinstance(entry.pattern, Blocks):
        _spread_blocks(spread.reshape(entry.shape), values, positions, entry, entry.pattern)
    elif isinstance(entry.pattern, Groups):
        _spread_groups(spread, values, positions, entry, entry.pattern)
    else:
        _spread_elements(spread, values, positions, entry)
    return spread


def _spread_elements(spread: Array, values: Part, positions: Part, entry: Entry) -> None:
    gaps = runs_of(positions, gap_dtype(entry.total), entry.kept)
    last = -1
    for run, between in zip(runs_of(values, entry.values_dtype, entry.kept), gaps):
        if not bits_of(run).all():
            raise PackError("a value at a kept position is zero")
        for start in range(0, len(run), STRIDE):
            at = positions_from(between[start : start + STRIDE], entry.total, last)
            last = int(at[-1])
            spread[at] = run[start : start + STRIDE]


def _spread_groups(
    spread: Array, values: Part, positions: Part, entry: Entry, groups: Groups
) -> None:
    codes = decode_part(positions, GROUP, entry.positions[0])
    kept = decode_part(values, entry.values_dtype, entry.kept)
    if not bits_of(kept).all():
        raise PackError("a value at a kept position is zero")
    found = 0
    for start, mask in masks_of(codes, entry.shape, groups):
        at = np.flatnonzero(mask)
        before, found = found, found + len(at)
        if found > entry.kept:
            break
        spread[start:][at] = kept[before:found]
    if found != entry.kept:
        raise PackError(f"declares {entry.kept} kept elements, found another number in its groups")


def _spread_blocks(
    spread: Array, values: Part, positions: Part, entry: Entry, blocks: Blocks
) -> None:
    size = blocks.rows * blocks.columns
    stored = decode_part(values, entry.values_dtype, entry.stored)
    if np.count_nonzero(bits_of(stored)) != entry.kept:
        raise PackError(f"declares {entry.kept} kept elements, its blocks have another number")
    stored = stored.reshape(-1, blocks.rows, blocks.columns)
    there, step = grid(spread, blocks), max(STRIDE // size, 1)
    done, last = 0, -1
    for gaps in runs_of(positions, gap_dtype(entry.total), blocks.kept):
        for start in range(0, len(gaps), step):
            at = positions_from(gaps[start : start + step], entry.total // size, last)
            last = int(at[-1])
            some = stored[done : done + len(at)]
            if not bits_of(some).any((1, 2)).all():
                raise PackError("a block at a kept position is zero")
            down, across = np.divmod(at, there.shape[2])
            there[down, :, across, :] = some
            done += len(at)
