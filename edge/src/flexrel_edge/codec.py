"""Flat arrays to coded parts and back. Pure functions; the layout is in docs/format.md.

A part is either raw, the little-endian elements, or coded with pcodec, whichever is shorter.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from pcodec import ChunkConfig, PagingSpec, wrapped

from flexrel_edge.errors import PackError
from flexrel_edge.records import PCODEC, RAW, STORAGE, Array, Entry, gap_dtype

RUN: Final = 2**18  # elements that pcodec codes as one
_LENGTH: Final = np.dtype("<u4")  # of a run, in bytes
_PCODEC_LEAST: Final = 7  # bytes; no run that pcodec 1.1 writes is shorter
_CONFIG: Final = ChunkConfig(paging_spec=PagingSpec.equal_pages_up_to(RUN), enable_8_bit=True)


@dataclass(frozen=True, slots=True)
class Part:
    """A codec's name and the bytes it wrote."""

    codec: str
    data: bytes | memoryview


@dataclass(frozen=True, slots=True)
class Coded:
    """One tensor's parts. Dense: no positions, all values. Sparse: gaps, and the kept values."""

    kept: int
    values: Part
    positions: Part | None = None


def bits_of(values: Array) -> Array:
    """See each element as the unsigned integer of its width, so that -0.0 and NaN count as kept."""
    return values.view(np.dtype(f"<u{values.itemsize}"))


def encode_tensor(values: Array) -> Coded:
    """Code a tensor dense or sparse, whichever is shorter; dense when both are equal.

    Args:
        values: `[total]`, contiguous, of a dtype in `STORAGE`.

    Returns:
        The parts, and how many elements have a bit pattern other than zero.
    """
    bits = bits_of(values)
    kept = int(np.count_nonzero(bits))
    dense = Coded(kept, encode_part(values))
    if kept == len(values):
        return dense
    positions = np.flatnonzero(bits)
    gaps = np.diff(positions, prepend=-1)
    gaps -= 1
    sparse = Coded(
        kept, encode_part(values[positions]), encode_part(gaps.astype(gap_dtype(len(values))))
    )
    return sparse if _length(sparse) < _length(dense) else dense


def decode_tensor(coded: Coded, entry: Entry) -> Array:
    """Give back the values that `encode_tensor` got.

    Args:
        coded: parts of the lengths that the entry declares.
        entry: their description.

    Returns:
        `[total]`, of the entry's storage dtype, in memory of its own.

    Raises:
        PackError: the parts don't hold what the entry declares.
    """
    dtype = STORAGE[entry.dtype]
    if coded.positions is None:
        values = decode_part(coded.values, dtype, entry.total)
        kept = int(np.count_nonzero(bits_of(values)))
        if kept != entry.kept:
            raise PackError(f"declares {entry.kept} kept elements, found {kept}")
    else:
        values = np.zeros(entry.total, dtype)
        kept_values = decode_part(coded.values, dtype, entry.kept)
        if not bits_of(kept_values).all():
            raise PackError("a value at a kept position is zero")
        gaps = decode_part(coded.positions, gap_dtype(entry.total), entry.kept)
        values[positions_from(gaps, entry.total)] = kept_values
    if entry.dtype == "bool" and (values > 1).any():
        raise PackError("a bool is neither 0 nor 1")
    return values


def positions_from(gaps: Array, total: int) -> Array:
    """Turn gaps into the flat indices of kept elements.

    Args:
        gaps: `[kept]`, unsigned: the index of the first kept element, then how many elements
            lie between one and the next.
        total: number of elements of the tensor, below 2**62.

    Returns:
        `[kept]`, int64, strictly ascending, in `0 ... total - 1`.

    Raises:
        PackError: they run past the end of the tensor.
    """
    # The float64 sum can't wrap and is right to 1e-9 here; below twice the total, int64 is exact.
    if gaps.sum(dtype=np.float64) < 2.0 * total:
        positions = np.cumsum(gaps, dtype=np.int64)
        positions += np.arange(len(gaps))
        if len(gaps) == 0 or positions[-1] < total:
            return positions
    raise PackError(f"a kept position lies beyond the {total} elements")


def encode_part(values: Array) -> Part:
    """Code a flat array in the shorter way; raw when both are equal."""
    if values.nbytes > _PCODEC_LEAST:
        coded = _encode_pcodec(values)
        if len(coded) < values.nbytes:
            return Part(PCODEC, coded)
    return Part(RAW, values.tobytes())


def decode_part(part: Part, dtype: np.dtype[Any], count: int) -> Array:
    """Give back the `[count]` elements of a part whose length fits `dtype` and `count`."""
    if part.codec == RAW:
        return np.frombuffer(part.data, dtype).copy()
    return _decode_pcodec(part.data, dtype, count)


def _length(coded: Coded) -> int:
    return len(coded.values.data) + (len(coded.positions.data) if coded.positions else 0)


def _encode_pcodec(values: Array) -> bytes:
    runs = [_encode_run(values[at : at + RUN]) for at in range(0, len(values), RUN)]
    lengths = np.array([len(run) for run in runs[:-1]], _LENGTH)
    return b"".join([lengths.tobytes(), *runs])


def _encode_run(values: Array) -> bytes:
    file = wrapped.FileCompressor()
    chunk = file.chunk_compressor(values, _CONFIG)
    return b"".join([file.write_header(), chunk.write_meta(), chunk.write_page(0)])


def _decode_pcodec(data: bytes | memoryview, dtype: np.dtype[Any], count: int) -> Array:
    starts = range(0, count, RUN)
    head = (len(starts) - 1) * _LENGTH.itemsize
    if head > len(data):
        raise PackError(f"{len(data)} bytes of {PCODEC} are too few for {len(starts)} runs")
    ends = head + np.cumsum(np.frombuffer(data[:head], _LENGTH), dtype=np.int64)
    if len(ends) and ends[-1] > len(data):
        raise PackError(f"a run of {PCODEC} ends at {ends[-1]}, beyond the part's {len(data)}")
    bounds = [head, *ends.tolist(), len(data)]
    values: Array = np.empty(count, dtype)
    for number, at in enumerate(starts):
        run = bytes(data[bounds[number] : bounds[number + 1]])
        _decode_run_into(values[at : at + RUN], run)
    return values


def _decode_run_into(values: Array, run: bytes) -> None:
    number_type = f"{values.dtype.kind}{8 * values.itemsize}"
    try:
        file, header = wrapped.FileDecompressor.new(run)
        chunk, meta = file.chunk_decompressor(run[header:], number_type)
        progress, page = chunk.read_page_into(run[header + meta :], len(values), values)
    except (RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise PackError(f"{PCODEC} does not decode: {reason}") from error
    if progress.n_processed != len(values) or not progress.finished:
        raise PackError(f"{PCODEC} holds {progress.n_processed} of {len(values)} elements")
    if header + meta + page != len(run):
        raise PackError(f"{PCODEC} ends after {header + meta + page} of {len(run)} bytes")
