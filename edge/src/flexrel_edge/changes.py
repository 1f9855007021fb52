"""What the index of an update says, checked: how each tensor comes about; docs/format.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Union

import numpy as np

from flexrel_edge.container import Signed
from flexrel_edge.delta import STREAMS
from flexrel_edge.errors import PackError
from flexrel_edge.records import CODERS, PCODEC, Entry, check_part, gap_dtype, show

SAME: Final = 0  # the tensor's row: its parts are those of the old file
WHOLE: Final = 1  # its parts are in the update, as they will be in the file
MAP: Final = np.dtype("<u4")  # an entry of an axis: which it was, counted from 1; 0: none
SHARED: Final = 4096  # elements of a tensor that may lie in a shared stream
_HEX: Final = 64  # digits of a SHA-256

Counted = tuple[int, str, int]  # elements, codec and bytes of a stream
Kind = tuple[int, str]  # of shared streams: which of a delta's, and the dtype


@dataclass(frozen=True)
class Change:
    """How one tensor comes about, if neither as it was nor whole.

    Attributes:
        maps: numbers of the maps of its axes; empty: they are as they were.
        streams: of a `Delta`; elements alone where they lie in a shared stream.
        scales: whether the update has its scales; else they are as they were, rows moved.
    """

    maps: tuple[int, ...]
    streams: tuple[int | Counted, ...]
    scales: bool

    @property
    def bytes(self) -> int:
        """Length of its own streams."""
        return sum(stream[2] for stream in self.streams if not isinstance(stream, int))


Row = Union[Change, int]


@dataclass(frozen=True)
class Content:
    """The index of an update.

    Attributes:
        base: SHA-256 of the packed file that it is for, as its header has it.
        result: and of the one that it makes.
        signed: the signature of that.
        codec: of the streams that are not raw.
        index: bytes of the new file's index.
        maps: of axes.
        shared: streams of many tensors, in the order of their kinds.
        rows: `SAME`, `WHOLE` or how it changed, of each tensor.
    """

    base: str
    result: str
    signed: Signed | None
    codec: str
    index: int
    maps: tuple[Counted, ...]
    shared: tuple[Counted, ...]
    rows: tuple[Row, ...]


def content_of(value: object) -> Content:
    """Read the JSON of an update's index; PackError for what is not one."""
    names = ["base", "index", "maps", "result", "shared", "tensors"]
    if not isinstance(value, dict) or sorted(value.keys() - {"codec", "signed"}) != names:
        raise PackError(f"the index is not an object of {', '.join(names)}")
    signed = None
    if "signed" in value:
        texts = value["signed"]
        if not isinstance(texts, list) or len(texts) != 2:  # noqa: PLR2004 - as it says
            raise PackError(f"{show(texts)} is not a counter and a signature")
        signed = Signed.of(*texts)
    codec = value.get("codec", PCODEC)
    if codec not in CODERS:
        raise PackError(f"{show(codec)} is no codec; version 1 knows {', '.join(CODERS)}")
    base, length, maps, result, shared, rows = (value[name] for name in names)
    for sum_ in (base, result):
        if not isinstance(sum_, str) or len(sum_) != _HEX or set(sum_) - set("0123456789abcdef"):
            raise PackError(f"{show(sum_)} is no SHA-256 in hexadecimal")
    if type(length) is not int or not all(isinstance(one, list) for one in (maps, shared, rows)):
        raise PackError("the index has a length, maps, streams or tensors of another type")
    read = tuple(_row(row, len(maps)) for row in rows)
    kept, others = (tuple(map(_counted, found)) for found in (maps, shared))
    return Content(base, result, signed, codec, length, kept, others, read)


def stream_dtypes(entry: Entry) -> tuple[np.dtype[Any], ...]:
    """Return of what the streams of a tensor's delta are."""
    gaps, values = gap_dtype(entry.total), entry.values_dtype
    return (gaps, gaps, values, gaps, np.dtype(f"<i{values.itemsize}"))


def shared_kinds(rows: Sequence[Row], entries: Iterable[Entry]) -> dict[Kind, int]:
    """Return the kinds of shared streams that there are, in their order, and their elements.

    Raises:
        PackError: a tensor has more in one of them than may be.
    """
    found: dict[Kind, int] = {}
    for row, entry in zip(rows, entries):
        if not isinstance(row, Change):
            continue
        for place, (count, dtype) in enumerate(zip(row.streams, stream_dtypes(entry))):
            if isinstance(count, int) and count:
                if count > min(SHARED, entry.total):
                    raise PackError(
                        f"tensor {show(entry.name)} of {entry.total} elements has {show(count)} "
                        f"in a shared stream, {SHARED} may be"
                    )
                found[place, dtype.str] = found.get((place, dtype.str), 0) + count
    return dict(sorted(found.items()))


def check_streams(content: Content, entries: Sequence[Entry]) -> None:
    """Refuse streams that no tensor takes, or that are not as long as tensors say.

    Raises:
        PackError: there are some.
    """
    for count, codec, size in content.maps:
        check_part("map", codec, size, count, MAP)
    unused = set(range(len(content.maps)))
    for row, entry in zip(content.rows, entries):
        if isinstance(row, Change) and row.maps:
            lengths = tuple(content.maps[number][0] for number in row.maps)
            if lengths != entry.shape:
                raise PackError(
                    f"tensor {show(entry.name)} has shape {show(list(entry.shape))}, "
                    f"the maps of its axes have {show(list(lengths))} entries"
                )
            unused -= set(row.maps)
    if unused:
        raise PackError(f"map {min(unused)} is of no tensor")
    kinds = shared_kinds(content.rows, entries)
    counts = [count for count, _, _ in content.shared]
    if counts != list(kinds.values()):
        raise PackError(
            f"shared streams have {show(counts)} elements, tensors have "
            f"{show(list(kinds.values()))} in them"
        )
    for (_, dtype), (count, codec, size) in zip(kinds, content.shared):
        check_part("difference", codec, size, count, np.dtype(dtype))


def _counted(row: object) -> Counted:
    if isinstance(row, list) and [type(field) for field in row] == [int, str, int]:
        count, codec, size = row
        if count >= 0 and size >= 0:
            return count, codec, size
    raise PackError(f"{show(row)} is not a count, a codec and a length")


def _stream(row: object) -> int | Counted:
    return row if type(row) is int and row >= 0 else _counted(row)


def _row(row: object, maps: int) -> Row:
    if type(row) is int and row in (SAME, WHOLE):
        return row
    fields = 3
    if isinstance(row, list) and len(row) == fields:
        axes, streams, scales = row
        numbers = isinstance(axes, list) and all(type(n) is int and 0 <= n < maps for n in axes)
        if numbers and isinstance(streams, list) and len(streams) == STREAMS and scales in (0, 1):
            return Change(tuple(axes), tuple(map(_stream, streams)), bool(scales))
    raise PackError(f"a row is neither of an old, a new nor a changed tensor: {show(row)}")
