"""One tensor to its parts and back: dense or sparse, as it is or scaled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from flexrel_edge.codec import Part, decode_part, encode_part, runs_of
from flexrel_edge.errors import PackError
from flexrel_edge.records import SCALED, SCALES, Array, Entry, gap_dtype
from flexrel_edge.scales import MAX_SCALE, on_grid, scaled

_MATRIX: Final = 2  # axes: fewer have no rows that could share a scale
_STRIDE: Final = 2**15  # elements whose places are in memory together
_ROW: Final = 16  # bytes that scales may take in the index


@dataclass(frozen=True)
class Coded:
    """One tensor's parts.

    Attributes:
        kept: elements with a bit pattern other than zero.
        values: all of them (dense), or the kept ones (sparse); whole numbers if there are scales.
        positions: gaps between kept elements; None: dense.
        scales: one for each row, by which whole numbers are multiplied; None: values as they are.
    """

    kept: int
    values: Part
    positions: Part | None = None
    scales: Part | None = None

    @property
    def parts(self) -> tuple[Part, ...]:
        """Those that there are, in the order of the file."""
        every = (self.values, self.positions, self.scales)
        return tuple(part for part in every if part is not None)

    def __len__(self) -> int:
        return sum(map(len, self.parts))


def bits_of(values: Array) -> Array:
    """See each element as the unsigned integer of its width, so that -0.0 and NaN count as kept."""
    return values.view(np.dtype(f"<u{values.itemsize}"))


def encode_tensor(tensor: Array, codec: str) -> Coded:
    """Code a tensor in the shortest of the ways there are; dense and unscaled when all are equal.

    Args:
        tensor: contiguous, of a dtype in `STORAGE`.
        codec: of parts that are not raw.

    Returns:
        The parts, and how many elements have a bit pattern other than zero.
    """
    found = [
        encode_stored(values, scales, codec, sparse=sparse)
        for values, scales in _ways(tensor)
        for sparse in ((False, True) if not bits_of(values).all() else (False,))
    ]
    return min(found, key=lambda coded: len(coded) + _ROW * (coded.scales is not None))


def encode_stored(values: Array, scales: Array | None, codec: str, *, sparse: bool) -> Coded:
    """Code what stands for the elements, in one way.

    Args:
        values: `[total]`, contiguous: the elements, or whole numbers.
        scales: `[rows]`, what whole numbers are multiplied by.
        codec: of parts that are not raw.
        sparse: whether positions are coded, and zeros are not; then there must be one.

    Returns:
        The same parts for the same arguments and release of the codec.
    """
    coded = None if scales is None else encode_part(scales, codec)
    kept = bits_of(values) != 0
    count = int(np.count_nonzero(kept))
    if not sparse:
        return Coded(count, encode_part(values, codec), None, coded)
    positions = encode_part(gaps_of(kept, gap_dtype(len(values))), codec)
    return Coded(count, encode_part(values[kept], codec), positions, coded)


def _ways(tensor: Array) -> Iterator[tuple[Array, Array | None]]:
    """Yield what can stand for the elements, flat, and the scales it takes."""
    yield tensor.reshape(-1), None
    if tensor.dtype == SCALED and tensor.ndim >= _MATRIX and tensor.size:
        grid = on_grid(tensor.reshape(len(tensor), -1))
        if grid is not None:
            yield grid[0].reshape(-1), grid[1]


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
    return scaled(values.reshape(entry.rows, -1), scales[:, None]).reshape(entry.shape)


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
    gaps = runs_of(positions, gap_dtype(entry.total), entry.kept)
    last = -1
    for run, between in zip(runs_of(values, entry.values_dtype, entry.kept), gaps):
        if not bits_of(run).all():
            raise PackError("a value at a kept position is zero")
        for start in range(0, len(run), _STRIDE):
            at = positions_from(between[start : start + _STRIDE], entry.total, last)
            last = int(at[-1])
            spread[at] = run[start : start + _STRIDE]
    return spread


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
    for start in range(0, len(kept), _STRIDE):
        at = np.flatnonzero(kept[start : start + _STRIDE])
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
