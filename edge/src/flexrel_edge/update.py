"""Updates: what makes one packed file of another, byte for byte; laid out in docs/format.md."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from flexrel_edge.axes import NEW, moved
from flexrel_edge.changes import (
    MAP,
    WHOLE,
    Change,
    Kind,
    Row,
    check_streams,
    content_of,
    shared_kinds,
    stream_dtypes,
)
from flexrel_edge.codec import Part, decode_part
from flexrel_edge.container import FILE, UPDATE, Trust, check_trust, header_of, read_header
from flexrel_edge.delta import Delta, Stream, changed_by
from flexrel_edge.errors import PackError
from flexrel_edge.format import Reader
from flexrel_edge.index import check_growth, decode_index, inflate, parsed
from flexrel_edge.records import RAW, Array, Entry, check_part, show
from flexrel_edge.source import Source
from flexrel_edge.tensor import Coded, decode_stored, encode_stored


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
        content = content_of(parsed(inflate(bytes(source.read(header.start, header.index)))))
        self._content, self._source, self._at = content, source, header.start + header.index
        self.base, self.result, self.signed = content.base, content.result, content.signed
        if trust is not None:
            check_trust(trust, self.result, self.signed)
        if not 0 <= content.index <= header.parts:
            raise PackError(f"the new index is said to have {show(content.index)} bytes")
        self._index = bytes(source.read(self._at, content.index))
        self.tensors, _ = decode_index(self._index)
        if len(content.rows) != len(self.tensors):
            raise PackError(f"{len(content.rows)} rows for {len(self.tensors)} tensors")
        check_streams(content, self.tensors)
        parts = sum(entry.bytes for entry in self.tensors)
        self._header = header_of(self.result, content.index, parts, FILE, self.signed)
        held = header.parts - content.index - sum(s for _, _, s in content.maps + content.shared)
        declared = sum(map(_length, content.rows, self.tensors))
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
        for piece in self._pieces(old):
            sha256.update(piece)
            yield piece
        if sha256.hexdigest() != self.result:
            raise PackError(
                "what the update makes of the file has another checksum: it was made with "
                "another release of the codec; fetch the whole file"
            )

    def _pieces(self, old: Reader) -> Iterator[bytes | memoryview]:
        yield self._index
        before = {entry.name: entry for entry in old.contents.tensors}
        at = self._at + len(self._index)
        maps: list[Array] = []
        for count, codec, size in self._content.maps:
            maps.append(decode_part(Part(codec, self._source.read(at, size)), MAP, count))
            at += size
        shared = _Shared()
        for (place, dtype), (count, codec, size) in zip(
            shared_kinds(self._content.rows, self.tensors), self._content.shared
        ):
            part = Part(codec, self._source.read(at, size))
            shared.add(place, decode_part(part, np.dtype(dtype), count))
            at += size
        for row, entry in zip(self._content.rows, self.tensors):
            size = _length(row, entry)
            try:
                yield from self._tensor(row, entry, before.get(entry.name), old, maps, shared, at)
            except PackError as error:
                raise PackError(f"tensor {show(entry.name)}: {error}") from error
            except MemoryError as error:
                raise PackError(
                    f"tensor {show(entry.name)} takes more memory to update than there is"
                ) from error
            at += size

    def _tensor(
        self,
        row: Row,
        entry: Entry,
        was: Entry | None,
        old: Reader,
        maps: Sequence[Array],
        shared: _Shared,
        at: int,
    ) -> Iterator[bytes | memoryview]:
        if row == WHOLE:
            yield self._source.read(at, entry.bytes)
            return
        if was is None:
            raise PackError("the old file has no tensor of this name")
        parts = old.parts(was)
        if not isinstance(row, Change):
            if was.lengths != entry.lengths:
                raise PackError("is said to be as it was, but was stored otherwise")
        else:
            parts = self._changed(row, entry, was, parts, maps, shared, at)
            found = tuple((part.codec, len(part)) for part in parts.parts)
            if found != tuple(pair for pair in entry.lengths if pair[0] is not None):
                raise PackError(
                    "comes out in parts of other lengths: the update was made with another "
                    "release of the codec; fetch the whole file"
                )
        yield from (part.data for part in parts.parts)

    def _changed(
        self,
        row: Change,
        entry: Entry,
        was: Entry,
        parts: Coded,
        maps: Sequence[Array],
        shared: _Shared,
        at: int,
    ) -> Coded:
        values, scales = decode_stored(parts, was)
        if values.dtype != entry.values_dtype:
            raise PackError(f"was of {values.dtype} values, and would be of {entry.values_dtype}")
        axes = [maps[number] for number in row.maps]
        values = relocated(values.reshape(was.shape), axes, entry.shape).reshape(-1)
        streams = []
        for place, (stream, dtype) in enumerate(zip(row.streams, stream_dtypes(entry))):
            if isinstance(stream, int):
                streams.append(shared.take(place, dtype, stream))
                continue
            count, codec, size = stream
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
        return encode_stored(
            values.reshape(entry.shape),
            scales,
            self._content.codec,
            sparse=entry.positions_codec is not None,
            pattern=entry.pattern,
        )


class _Shared:
    """Streams of many tensors, each of which takes the next elements."""

    def __init__(self) -> None:
        self._left: dict[Kind, Array] = {}

    def add(self, place: int, values: Array) -> None:
        self._left[place, values.dtype.str] = values

    def take(self, place: int, dtype: np.dtype[Any], count: int) -> Stream:
        if not count:
            return Stream(0, Part(RAW, b""))
        values = self._left[place, dtype.str]
        self._left[place, dtype.str] = values[count:]
        return Stream(count, Part(RAW, values[:count].tobytes()))


def _length(row: Row, entry: Entry) -> int:
    """Return how many bytes an update has of a tensor's own."""
    if isinstance(row, Change):
        return row.bytes + row.scales * entry.scales_bytes
    return entry.bytes if row == WHOLE else 0


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
