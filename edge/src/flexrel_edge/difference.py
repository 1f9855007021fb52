"""What an update says: of each tensor the shortest way to make it of the old one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from flexrel_edge.axes import NEW, axis_maps
from flexrel_edge.changes import MAP, SAME, SHARED, WHOLE, Kind, stream_dtypes
from flexrel_edge.codec import Part, bits_of, decode_part, encode_part
from flexrel_edge.container import UPDATE, header_of
from flexrel_edge.delta import Delta, delta_of
from flexrel_edge.format import Reader
from flexrel_edge.index import canonical, deflate
from flexrel_edge.records import PCODEC, Array, Entry
from flexrel_edge.tensor import Coded, decode_stored
from flexrel_edge.update import relocated

_ROW: Final = 8  # bytes that a changed tensor takes in the index, about
_MAP: Final = 16  # and a map, beside one for each entry


@dataclass(frozen=True)
class _Way:
    """One way to make a tensor of the old one."""

    maps: tuple[Array, ...]
    delta: Delta
    scales: Part | None

    def cost(self, known: _Maps) -> int:
        """Return about how many bytes it takes; maps that are known take none."""
        new = sum(_MAP + len(entries) for entries in self.maps if known.place(entries) is None)
        return len(self.delta) + (len(self.scales) if self.scales else 0) + _ROW + new


@dataclass
class _Maps:
    """Maps of axes: most tensors of a network share theirs with others."""

    found: list[Array] = field(default_factory=list)

    def place(self, entries: Array) -> int | None:
        """Return a map's number; None if it is new."""
        places = (n for n, known in enumerate(self.found) if np.array_equal(known, entries))
        return next(places, None)

    def number(self, entries: Array) -> int:
        """Return a map's number; it is added if it is new."""
        place = self.place(entries)
        if place is None:
            self.found.append(entries)
        return len(self.found) - 1 if place is None else place

    def between(self, old: int, new: int) -> Iterator[Array]:
        """Yield those that could lead from an axis of one length to one of another."""
        return (m for m in self.found if len(m) == new and m.max(initial=0) <= old)


@dataclass
class _Shared:
    """Streams of few elements, which are coded together: a codec takes some bytes for each."""

    found: dict[Kind, dict[str, Array]] = field(default_factory=dict)

    def add(self, name: str, place: int, values: Array) -> None:
        """Take a tensor's stream, if it has elements."""
        if len(values):
            self.found.setdefault((place, values.dtype.str), {})[name] = values

    def streams(self) -> Iterator[Array]:
        """Yield each kind's, in their order; in it tensors are in the order of their names."""
        for _, tensors in sorted(self.found.items()):
            yield np.concatenate([values for _, values in sorted(tensors.items())])


def difference(old: Reader, new: Reader) -> bytes:
    """Return the bytes of an update.

    Args:
        old: the file that whoever gets it has.
        new: the file that it is to become, byte for byte.

    Raises:
        PackError: one of them is damaged.
    """
    before = {entry.name: entry for entry in old.contents.tensors}
    codec = new.contents.codec
    maps, shared = _Maps(), _Shared()
    rows: dict[str, object] = {}
    parts: dict[str, list[bytes | memoryview]] = {}
    for entry in sorted(new.contents.tensors, key=lambda e: -e.total):  # the largest tell most
        was, coded = before.get(entry.name), new.parts(entry)
        rows[entry.name], parts[entry.name] = WHOLE, [part.data for part in coded.parts]
        if was is None:
            continue
        whole = old.parts(was)
        if was == entry and whole == coded:
            rows[entry.name], parts[entry.name] = SAME, []
        elif _comparable(was, entry):
            way = _shortest(was, whole, entry, coded, maps, codec)
            if way is not None and way.cost(maps) < entry.bytes:
                rows[entry.name], parts[entry.name] = _written(way, entry, maps, shared)
    return _joined(old, new, maps, shared, rows, parts)


def _comparable(was: Entry, entry: Entry) -> bool:
    kinds = [(e.dtype, e.scales_codec is None, len(e.shape)) for e in (was, entry)]
    return kinds[0] == kinds[1]


def _shortest(
    was: Entry, whole: Coded, entry: Entry, coded: Coded, maps: _Maps, codec: str
) -> _Way | None:
    old, old_scales = decode_stored(whole, was)
    new, new_scales = decode_stored(coded, entry)
    old = old.reshape(was.shape)
    ways: list[_Way] = []
    for axes in _axes(old, new.reshape(entry.shape), maps):
        scales = None
        if old_scales is not None and new_scales is not None:
            kept = relocated(old_scales, axes[:1], (len(new_scales),))
            scales = None if np.array_equal(bits_of(kept), bits_of(new_scales)) else coded.scales
        base = relocated(old, axes, entry.shape).reshape(-1)
        ways.append(_Way(axes, delta_of(base, new, codec), scales))
    return min(ways, key=lambda way: way.cost(maps), default=None)


def _axes(old: Array, new: Array, maps: _Maps) -> Iterator[tuple[Array, ...]]:
    """Yield the maps that may lead from one to the other; none where they have the same shape."""
    if old.shape == new.shape:
        yield ()
    elif new.ndim == 1:
        yield from ((known,) for known in maps.between(len(old), len(new)))
    found = axis_maps(old, new)
    if found is not None:
        axes = tuple((entries - NEW).astype(MAP) for entries in found)
        identity = all(np.array_equal(m, np.arange(1, len(m) + 1)) for m in axes)
        if old.shape != new.shape or not identity:
            yield axes


def _written(
    way: _Way, entry: Entry, maps: _Maps, shared: _Shared
) -> tuple[list[object], list[bytes | memoryview]]:
    numbers = [maps.number(entries) for entries in way.maps]
    streams: list[object] = []
    parts: list[bytes | memoryview] = []
    for place, (stream, dtype) in enumerate(zip(way.delta.streams, stream_dtypes(entry))):
        if stream.count <= SHARED:
            shared.add(entry.name, place, decode_part(stream.part, dtype, stream.count))
            streams.append(stream.count)
        else:
            streams.append([stream.count, stream.part.codec, len(stream.part)])
            parts.append(stream.part.data)
    if way.scales is not None:
        parts.append(way.scales.data)
    return [numbers, streams, int(way.scales is not None)], parts


def _joined(
    old: Reader,
    new: Reader,
    maps: _Maps,
    shared: _Shared,
    rows: dict[str, object],
    parts: dict[str, list[bytes | memoryview]],
) -> bytes:
    names: Sequence[str] = [entry.name for entry in new.contents.tensors]
    codec = new.contents.codec
    streams = [*maps.found, *shared.streams()]
    coded = [encode_part(values, codec) for values in streams]
    written = [[len(v), p.codec, len(p)] for v, p in zip(streams, coded)]
    content: dict[str, object] = {
        "base": old.contents.sha256,
        "index": len(new.index),
        "maps": written[: len(maps.found)],
        "result": new.contents.sha256,
        "shared": written[len(maps.found) :],
        "tensors": [rows[name] for name in names],
    }
    if codec != PCODEC:
        content["codec"] = codec
    if new.header.signed is not None:
        content["signed"] = list(new.header.signed.texts)
    index = deflate(canonical(content))
    pieces = [index, new.index, *(part.data for part in coded)]
    for name in names:
        pieces += parts[name]
    sha256 = hashlib.sha256()
    for piece in pieces:
        sha256.update(piece)
    length = sum(map(len, pieces)) - len(index)
    return b"".join([header_of(sha256.hexdigest(), len(index), length, UPDATE), *pieces])
