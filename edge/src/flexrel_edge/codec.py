"""Flat arrays to parts and back. Pure functions; the layout is in docs/format.md.

A part is either raw, the little-endian elements, or coded, whichever is shorter. It is read in
runs, so that no more than one of them is in memory at a time beside what it becomes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from flexrel_edge.coders import RUN, decode_run_into, encode_run
from flexrel_edge.errors import PackError
from flexrel_edge.records import PCODEC, RAW, Array
from flexrel_edge.source import Piece

_LENGTH: Final = np.dtype("<u4")  # of a run, in bytes
_LEAST: Final = 7  # bytes; no run that pcodec 1.1 or zstd writes is shorter


@dataclass(frozen=True)
class Part:
    """A codec's name and the bytes it wrote."""

    codec: str
    data: Piece

    def __len__(self) -> int:
        return len(self.data)


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
