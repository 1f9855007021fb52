"""Updates: what makes one packed file of another, byte for byte; laid out in docs/format.md."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Optional

import numpy as np

from flexrel_edge.axes import NEW, moved
from flexrel_edge.codec import Part, decode_part
from flexrel_edge.container import (
    FILE,
    UPDATE,
    Signed,
    Trust,
    check_trust,
    header_of,
    read_header,
)
from flexrel_edge.delta import STREAMS, Delta, Stream, changed_by
from flexrel_edge.errors import PackError
from flexrel_edge.format import Reader
from flexrel_edge.index import decode_index, inflate, parsed
from flexrel_edge.records import (
    CODERS,
    PCODEC,
    Array,
    Entry,
    check_growth,
    check_part,
    gap_dtype,
    show,
)
from flexrel_edge.source import Source
from flexrel_edge.tensor import Coded, decode_stored, encode_stored

SAME: Final = 0  # the tensor's row: its parts are those of the old file
WHOLE: Final = 1  # its parts are in the update, as they will be in the file
MAP: Final = np.dtype("<u4")  # an entry of an axis: which it was, counted from 1; 0: none
_HEX: Final = 64  # digits of a SHA-256


@dataclass(frozen=True)
class _Row:
    """How one tensor comes about, if neither as it was nor whole.

    Attributes:
        maps: numbers of the maps of its axes; empty: they are as they were.
        streams: `[count, codec, bytes]` of each stream of a `Delta`.
        scales: whether the update has its scales; else they are as they were, rows moved.
    """

    maps: tuple[int, ...]
    streams: tuple[tuple[int, str, int], ...]
    scales: bool


class Update:
    """An update whose checksum and index are verified.

    Args:
        source: of the whole file.
        trust: one of these keys must have signed what it makes; None: nobody need have.

    Raises:
        PackError: it is damaged, or what it makes not trusted.

    Attributes:
        base: SHA-256 of the packed file that it is for, as its header has it.
        result: and of the one that it makes.
        signed: the signature of that.
        tensors: entries of that.
    """

    def __init__(self, source: Source, trust: Trust | None = None) -> None:
        header = read_header(source, UPDATE)
        content = parsed(inflate(bytes(source.read(header.start, header.index))))
        self._source, self._at = source, header.start + header.index
        self.base, self.result, self.signed, self._codec, length, maps, rows = _fields(content)
        if trust is not None:
            check_trust(trust, self.result, self.signed)
        if not 0 <= length <= header.parts:
            raise PackError(f"the new index is said to have {show(length)} bytes")
        self._index = bytes(source.read(self._at, length))
        self.tensors, _ = decode_index(self._index)
        self._maps = [_mapped(row) for row in maps]
        self._rows = [_row(row, self._maps) for row in rows]
        if len(rows) != len(self.tensors):
            raise PackError(f"{len(rows)} rows for {len(self.tensors)} tensors")
        self._check_maps()
        parts = sum(entry.bytes for entry in self.tensors)
        self._header = header_of(self.result, length, parts, FILE, self.signed)
        held = header.parts - length - sum(size for _, _, size in self._maps)
        declared = sum(map(self._length, self._rows, self.tensors))
        if declared != held:
            raise PackError(f"the index declares {declared} bytes of parts, found {held}")

    def pieces(self, old: Reader) -> Iterator[bytes | memoryview]:
        """Yield the bytes of the new file, in order.

        Args:
            old: the file that the update is for.

        Raises:
            PackError: the update is for another file, or what comes out is not what it says.
        """
        if old.contents.sha256 != self.base:
            raise PackError(
                f"the update is for the file with checksum {self.base}, "
                f"this one has {old.contents.sha256}"
            )
        size = old.contents.bytes + self._source.size
        check_growth(self.tensors, size)
        yield self._header
        sha256 = hashlib.sha256()
        for piece in self._content(old):
            sha256.update(piece)
            yield piece
        if sha256.hexdigest() != self.result:
            raise PackError(
                "what the update makes of the file has another checksum: it was made with "
                "another release of the codec; fetch the whole file"
            )

    def _content(self, old: Reader) -> Iterator[bytes | memoryview]:
        yield self._index
        before = {entry.name: entry for entry in old.contents.tensors}
        at = self._at + len(self._index)
        maps: list[Array] = []
        for count, codec, size in self._maps:
            maps.append(decode_part(Part(codec, self._source.read(at, size)), MAP, count))
            at += size
        for row, entry in zip(self._rows, self.tensors):
            size = self._length(row, entry)
            try:
                yield from self._tensor(row, entry, before.get(entry.name), old, maps, at)
            except PackError as error:
                raise PackError(f"tensor {show(entry.name)}: {error}") from error
            except MemoryError as error:
                raise PackError(
                    f"tensor {show(entry.name)} takes more memory to update than there is"
                ) from error
            at += size

    def _tensor(
        self,
        row: _Row | int,
        entry: Entry,
        was: Entry | None,
        old: Reader,
        maps: Sequence[Array],
        at: int,
    ) -> Iterator[bytes | memoryview]:
        if row == WHOLE:
            yield self._source.read(at, entry.bytes)
            return
        if was is None:
            raise PackError("the old file has no tensor of this name")
        parts = old.parts(was)
        if not isinstance(row, _Row):
            if was.lengths != entry.lengths:
                raise PackError("is said to be as it was, but was stored otherwise")
        else:
            parts = self._changed(row, entry, was, parts, maps, at)
            found = tuple((part.codec, len(part)) for part in parts.parts)
            if found != tuple(pair for pair in entry.lengths if pair[0] is not None):
                raise PackError(
                    "comes out in parts of other lengths: the update was made with another "
                    "release of the codec; fetch the whole file"
                )
        yield from (part.data for part in parts.parts)

    def _changed(
        self, row: _Row, entry: Entry, was: Entry, parts: Coded, maps: Sequence[Array], at: int
    ) -> Coded:
        values, scales = decode_stored(parts, was)
        if values.dtype != entry.values_dtype:
            raise PackError(f"was of {values.dtype} values, and would be of {entry.values_dtype}")
        axes = [maps[number] for number in row.maps]
        values = relocated(values.reshape(was.shape), axes, entry.shape).reshape(-1)
        streams = []
        for (count, codec, size), dtype in zip(row.streams, stream_dtypes(entry)):
            check_part("difference", codec, size, count, dtype)
            streams.append(Stream(count, Part(codec, self._source.read(at, size))))
            at += size
        values = changed_by(values, Delta(*streams))
        if row.scales:
            part = Part(str(entry.scales_codec), self._source.read(at, entry.scales_bytes))
            scales = decode_part(part, np.dtype("<f4"), entry.rows)
        elif scales is not None and axes:
            scales = relocated(scales, axes[:1], (entry.rows,))
        if (scales is None) != (entry.scales_codec is None):
            raise PackError("has scales in one of the files and not in the other")
        return encode_stored(values, scales, self._codec, sparse=entry.positions_codec is not None)

    def _check_maps(self) -> None:
        """Refuse maps that are not as long as the axes they are for, before one is decoded."""
        unused = set(range(len(self._maps)))
        for row, entry in zip(self._rows, self.tensors):
            if isinstance(row, _Row) and row.maps:
                lengths = tuple(self._maps[number][0] for number in row.maps)
                if lengths != entry.shape:
                    raise PackError(
                        f"tensor {show(entry.name)} has shape {show(list(entry.shape))}, "
                        f"the maps of its axes have {show(list(lengths))} entries"
                    )
                unused -= set(row.maps)
        if unused:
            raise PackError(f"map {min(unused)} is of no tensor")

    def _length(self, row: _Row | int, entry: Entry) -> int:
        if not isinstance(row, _Row):
            return entry.bytes if row == WHOLE else 0
        return sum(size for _, _, size in row.streams) + row.scales * entry.scales_bytes


def relocated(old: Array, maps: Sequence[Array], shape: tuple[int, ...]) -> Array:
    """Return the old array with its axes mapped; PackError unless it then has the shape."""
    found = tuple(map(len, maps)) if maps else old.shape
    if found != shape or old.ndim != len(shape):
        raise PackError(
            f"would have shape {list(found)} of {old.ndim} axes, the index says {list(shape)}"
        )
    for axis, entries in enumerate(maps):
        if len(entries) and int(entries.max()) > old.shape[axis]:
            raise PackError(f"a map names entry {entries.max()} of an axis of {old.shape[axis]}")
    return moved(old, [entries.astype(np.int64) + NEW for entries in maps]) if maps else old


def stream_dtypes(entry: Entry) -> tuple[np.dtype[Any], ...]:
    """Return of what the streams of a tensor's delta are."""
    gaps, values = gap_dtype(entry.total), entry.values_dtype
    return (gaps, gaps, values, gaps, np.dtype(f"<i{values.itemsize}"))


_Fields = tuple[str, str, Optional[Signed], str, int, list[object], list[object]]


def _fields(content: object) -> _Fields:
    names = ["base", "index", "maps", "result", "tensors"]
    if not isinstance(content, dict) or sorted(content.keys() - {"codec", "signed"}) != names:
        raise PackError(f"the index is not an object of {', '.join(names)}")
    signed = None
    if "signed" in content:
        texts = content["signed"]
        if not isinstance(texts, list) or len(texts) != 2:  # noqa: PLR2004 - as it says
            raise PackError(f"{show(texts)} is not a counter and a signature")
        signed = Signed.of(*texts)
    codec = content.get("codec", PCODEC)
    if codec not in CODERS:
        raise PackError(f"{show(codec)} is no codec; version 1 knows {', '.join(CODERS)}")
    base, length, maps, result, rows = (content[name] for name in names)
    for sum_ in (base, result):
        if not isinstance(sum_, str) or len(sum_) != _HEX or set(sum_) - set("0123456789abcdef"):
            raise PackError(f"{show(sum_)} is no SHA-256 in hexadecimal")
    if type(length) is not int or not isinstance(maps, list) or not isinstance(rows, list):
        raise PackError("the index has a length, maps or tensors of another type")
    return base, result, signed, codec, length, maps, rows


def _mapped(row: object) -> tuple[int, str, int]:
    stream = _counted(row)
    check_part("map", stream[1], stream[2], stream[0], MAP)
    return stream


def _counted(row: object) -> tuple[int, str, int]:
    if isinstance(row, list) and [type(field) for field in row] == [int, str, int]:
        count, codec, size = row
        if count >= 0 and size >= 0:
            return count, codec, size
    raise PackError(f"{show(row)} is not a count, a codec and a length")


def _row(row: object, maps: Sequence[object]) -> _Row | int:
    if type(row) is int and row in (SAME, WHOLE):
        return row
    fields = 3
    if isinstance(row, list) and len(row) == fields:
        axes, streams, scales = row
        numbers = isinstance(axes, list) and all(
            type(n) is int and 0 <= n < len(maps) for n in axes
        )
        if numbers and isinstance(streams, list) and len(streams) == STREAMS and scales in (0, 1):
            return _Row(tuple(axes), tuple(map(_counted, streams)), bool(scales))
    raise PackError(f"a row is neither of an old, a new nor a changed tensor: {show(row)}")
