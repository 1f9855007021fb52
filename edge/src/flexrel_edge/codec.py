"""Flat arrays to parts and back. Pure functions; the layout is in docs/format.md.

A part is either raw, the little-endian elements, or coded, whichever is shorter. It is read in
runs, so that no more than one of them is in memory at a time beside what it becomes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

import numpy as np

from flexrel_edge.errors import FlexrelError, PackError
from flexrel_edge.records import PCODEC, RAW, ZSTD, Array
from flexrel_edge.source import Piece

try:
    from pcodec import ChunkConfig, PagingSpec, wrapped
except ImportError:  # there is no wheel of it for every device
    wrapped = None

RUN: Final = 2**18  # elements that are coded as one
_LEVEL: Final = 19  # of zstd
_WINDOW: Final = 22  # log2 of bytes: no run is longer
_REFUSALS: Final = (RuntimeError, TypeError, ValueError)  # of pcodec
_PANIC: Final = "PanicException"
_LENGTH: Final = np.dtype("<u4")  # of a run, in bytes
_LEAST: Final = 7  # bytes; no run that pcodec 1.1 or zstd writes is shorter


@dataclass(frozen=True)
class Part:
    """A codec's name and the bytes it wrote."""

    codec: str
    data: Piece

    def __len__(self) -> int:
        return len(self.data)


def bits_of(values: Array) -> Array:
    """See each element as the unsigned integer of its width, so that -0.0 and NaN count as kept."""
    return values.view(np.dtype(f"<u{values.itemsize}"))


def encode_part(values: Array, codec: str = PCODEC) -> Part:
    """Code a flat array in the shorter way, raw or with the codec; raw when both are equal."""
    if values.nbytes > _LEAST:
        coded = _coded(values, codec)
        if len(coded) < values.nbytes:
            return Part(codec, coded)
    return Part(RAW, values.tobytes())


def decode_part(part: Part, dtype: np.dtype[Any], count: int) -> Array:
    """Give back the `[count]` elements of a part whose length fits `dtype` and `count`.

    Raises:
        PackError: the part does not hold them.
    """
    if part.codec == RAW:
        return np.frombuffer(part.data, dtype).copy()
    values: Array = np.empty(count, dtype)
    for at, run in _coded_runs(part, count):
        decode_run_into(values[at : at + RUN], run, part.codec)
    return values


def runs_of(part: Part, dtype: np.dtype[Any], count: int) -> Iterator[Array]:
    """Yield the elements of a part in order, `RUN` at a time; the memory of each is used again.

    Raises:
        PackError: the part does not hold them.
    """
    if part.codec == RAW:
        values = np.frombuffer(part.data, dtype)
        yield from (values[at : at + RUN] for at in range(0, count, RUN))
        return
    buffer: Array = np.empty(min(count, RUN), dtype)
    for at, run in _coded_runs(part, count):
        values = buffer[: count - at]
        decode_run_into(values, run, part.codec)
        yield values


def _coded(values: Array, codec: str) -> bytes:
    runs = [encode_run(values[at : at + RUN], codec) for at in range(0, len(values), RUN)]
    lengths = np.array([len(run) for run in runs[:-1]], _LENGTH)
    return b"".join([lengths.tobytes(), *runs])


def _coded_runs(part: Part, count: int) -> Iterator[tuple[int, bytes]]:
    """Yield the runs of a part that is not raw, each with the place of its first element."""
    data = memoryview(part.data)
    starts = range(0, count, RUN)
    if len(starts) == 1:
        yield 0, bytes(data)
        return
    head = (len(starts) - 1) * _LENGTH.itemsize
    if head > len(data):
        raise PackError(f"{len(data)} bytes of {part.codec} are too few for {len(starts)} runs")
    ends = head + np.cumsum(np.frombuffer(data[:head], _LENGTH), dtype=np.int64)
    if len(ends) and ends[-1] > len(data):
        raise PackError(f"a run of {part.codec} ends at {ends[-1]}, beyond the part's {len(data)}")
    bounds = [head, *ends.tolist(), len(data)]
    for at, start, end in zip(starts, bounds, bounds[1:]):
        yield at, bytes(data[start:end])


# --- one run of elements ------------------------------------------------------------------------


def encode_run(values: Array, codec: str) -> bytes:
    """Code at most `RUN` elements.

    Raises:
        FlexrelError: the codec is not installed.
    """
    if codec == ZSTD:
        planes = values.view(np.uint8).reshape(len(values), values.itemsize).T
        coded: bytes = _zstd().compress(np.ascontiguousarray(planes).tobytes(), level=_LEVEL)
        return coded
    _check_pcodec()
    file = wrapped.FileCompressor()
    config = ChunkConfig(paging_spec=PagingSpec.equal_pages_up_to(RUN), enable_8_bit=True)
    chunk = file.chunk_compressor(values, config)
    return b"".join([file.write_header(), chunk.write_meta(), chunk.write_page(0)])


def decode_run_into(values: Array, run: bytes, codec: str) -> None:
    """Fill an array with the elements of a run.

    Raises:
        PackError: the run does not hold them.
        FlexrelError: the codec is not installed.
    """
    if codec == ZSTD:
        _decode_zstd_into(values, run)
    else:
        _decode_pcodec_into(values, run)


def _decode_zstd_into(values: Array, run: bytes) -> None:
    zstd = _zstd()
    window = {zstd.DecompressionParameter.window_log_max: _WINDOW}
    decompressor = zstd.ZstdDecompressor(options=window)
    try:
        data = decompressor.decompress(run, max_length=values.nbytes + 1)
    except zstd.ZstdError as error:
        raise PackError(f"{ZSTD} does not decode: {' '.join(str(error).split())}") from error
    if len(data) != values.nbytes or not decompressor.eof or decompressor.unused_data:
        raise PackError(f"{ZSTD} does not hold {len(values)} elements and nothing else")
    planes = np.frombuffer(data, np.uint8).reshape(values.itemsize, len(values))
    values.view(np.uint8).reshape(len(values), values.itemsize)[:] = planes.T


def _decode_pcodec_into(values: Array, run: bytes) -> None:
    _check_pcodec()
    number_type = f"{values.dtype.kind}{8 * values.itemsize}"
    try:
        file, header = wrapped.FileDecompressor.new(run)
        chunk, meta = file.chunk_decompressor(run[header:], number_type)
        progress, page = chunk.read_page_into(run[header + meta :], len(values), values)
    except BaseException as error:  # a panic of its Rust is no Exception, and has no public type
        if not isinstance(error, _REFUSALS) and type(error).__name__ != _PANIC:
            raise
        reason = " ".join(str(error).split())
        raise PackError(f"{PCODEC} does not decode: {reason}") from error
    if progress.n_processed != len(values) or not progress.finished:
        raise PackError(f"{PCODEC} holds {progress.n_processed} of {len(values)} elements")
    if header + meta + page != len(run):
        raise PackError(f"{PCODEC} ends after {header + meta + page} of {len(run)} bytes")


def _check_pcodec() -> None:
    if wrapped is None:
        raise FlexrelError(
            "this takes pcodec, which is not installed: pip install pcodec, or pack with "
            f"codec={ZSTD!r} for devices that it has no wheel for"
        )


def _zstd() -> Any:  # noqa: ANN401 - a module of Python 3.14, or of a package in its place
    name = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    try:
        return import_module(name)
    except ImportError as error:
        raise FlexrelError(f"codec {ZSTD!r} takes: pip install 'flexrel-edge[zstd]'") from error
