"""Whole files as bytes to tensors and back. The layout is in docs/format.md."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Union

import numpy as np

from flexrel_edge.codec import Part, bits_of
from flexrel_edge.container import FILE, VERSION, Signed, Trust, header_of, read_header
from flexrel_edge.errors import FlexrelError, PackError
from flexrel_edge.index import check_growth, decode_index, encode_index, is_metadata
from flexrel_edge.records import (
    CODERS,
    FLOATING,
    PCODEC,
    STORAGE,
    ZSTD,
    Array,
    Bfloat16,
    Entry,
    is_text,
    show,
)
from flexrel_edge.source import InMemory, Piece, Source
from flexrel_edge.tensor import Coded, decode_tensor, encode_tensor

Tensor = Union[Array, Bfloat16]
_PIECE: Final = 2**20  # bytes
NO_METADATA: Final[Mapping[str, str]] = MappingProxyType({})


@dataclass(frozen=True, eq=False)
class Packed:
    """All that a file holds.

    Attributes:
        tensors: by name, in ascending order; of the packed shape and dtype.
        metadata: what the packer added.
        version: of the format.
    """

    tensors: dict[str, Array | Bfloat16]
    metadata: dict[str, str]
    version: int


@dataclass(frozen=True)
class Contents:
    """What a file says of itself, its checksum verified, no tensor decoded.

    Attributes:
        version: of the format.
        bytes: length of the whole file.
        sha256: of the index and the data, hexadecimal.
        metadata: what the packer added.
        tensors: in ascending order of their names.
        counter: of versions, that was signed with the checksum; None: it is not signed. Who has
            no key to check the signature by takes its word.
    """

    version: int
    bytes: int
    sha256: str
    metadata: dict[str, str]
    tensors: tuple[Entry, ...]
    counter: int | None = None

    @property
    def codec(self) -> str:
        """What its parts are coded with, those that are not raw."""
        found = {codec for entry in self.tensors for codec, _ in entry.lengths}
        return ZSTD if ZSTD in found else PCODEC


def encode(
    tensors: Mapping[str, Tensor],
    *,
    metadata: Mapping[str, str] = NO_METADATA,
    codec: str = PCODEC,
) -> bytes:
    """Pack tensors without losing a bit, but for the sign of zeros: -0.0 returns as 0.0.

    Args:
        tensors: by name; of bool, an integer or floating dtype of 8 to 64 bits, or `Bfloat16`;
            of any shape. Their order does not matter.
        metadata: texts to keep with them.
        codec: "pcodec-1", or "zstd-1" for devices that pcodec has no wheel for; larger files.

    Returns:
        The bytes of a version 1 file; the same for the same tensors, metadata and codecs.

    Raises:
        FlexrelError: a name, a dtype, a shape or the metadata can't be packed.
    """
    if codec not in CODERS:
        raise FlexrelError(f"codec {show(codec)} is not known; there are: {', '.join(CODERS)}")
    for name in tensors:
        if not (name and is_text(name)):
            raise FlexrelError(f"can't pack a tensor named {show(name)}: use a non-empty text")
    if not is_metadata(metadata):
        raise FlexrelError("can't pack these metadata: every key and every value must be a text")
    try:
        coded = [_encode_tensor(name, tensors[name], codec) for name in sorted(tensors)]
        index = encode_index([entry for entry, _ in coded], metadata)
        parts = [part.data for _, one in coded for part in one.parts]
        data = joined(index, parts)
        check_growth((entry for entry, _ in coded), len(data))
    except PackError as error:  # the same rules as for reading, but no file is at fault
        raise FlexrelError(f"can't pack: {error}") from error
    return data


def decode(data: bytes) -> Packed:
    """Verify and unpack the bytes of a file.

    Args:
        data: the whole file.

    Returns:
        What `encode` got, bit for bit; -0.0 is 0.0. bfloat16 tensors are `Bfloat16` records.

    Raises:
        PackError: the bytes are not what `encode` writes; the message says where.
    """
    return Reader(InMemory(data)).packed()


def describe(data: bytes) -> Contents:
    """Verify the checksum and the index, decode no tensor.

    Args:
        data: the whole file.

    Returns:
        What the file says of itself.

    Raises:
        PackError: the file is damaged, its tensors' own bytes apart.
    """
    return Reader(InMemory(data)).contents


class Reader:
    """A packed file whose checksum and index are verified, and whose tensors come when asked for.

    Args:
        source: of the whole file.
        trust: one of these keys must have signed it; None: nobody need have.

    Raises:
        PackError: it is damaged, its tensors' own bytes apart, or not trusted.
    """

    def __init__(self, source: Source, trust: Trust | None = None) -> None:
        header = read_header(source, trust=trust)
        self.index = bytes(source.read(header.start, header.index))
        entries, metadata = decode_index(self.index)
        declared, held = sum(entry.bytes for entry in entries), header.parts
        if declared != held:
            raise PackError(f"the index declares {declared} bytes of parts, found {held}")
        check_growth(entries, source.size)
        counter = None if header.signed is None else header.signed.counter
        self.contents = Contents(VERSION, source.size, header.sha256, metadata, entries, counter)
        self.header = header
        self._source = source
        self._starts: dict[str, int] = {}
        at = header.start + header.index
        for entry in entries:
            self._starts[entry.name] = at
            at += entry.bytes

    def tensor(self, entry: Entry) -> Tensor:
        """Decode one tensor.

        Args:
            entry: of `contents`.

        Raises:
            PackError: its parts are damaged, or take more memory than there is.
        """
        try:
            return self._tensor(entry)
        except PackError as error:
            raise PackError(f"tensor {show(entry.name)}: {error}") from error
        except MemoryError as error:
            raise PackError(
                f"tensor {show(entry.name)} takes {entry.dense_bytes} bytes unpacked, "
                "more memory than there is"
            ) from error

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Decode one tensor after the other, each with its name, in ascending order of names."""
        return ((entry.name, self.tensor(entry)) for entry in self.contents.tensors)

    def verify(self) -> None:
        """Decode every tensor and keep none."""
        for entry in self.contents.tensors:
            self.tensor(entry)

    def packed(self) -> Packed:
        """Decode all of it."""
        return Packed(dict(self.tensors()), self.contents.metadata, self.contents.version)

    def pieces(self) -> Iterator[Piece]:
        """Yield the bytes of the file as they are, in order."""
        return self.resealed(self.header.signed)

    def resealed(self, signed: Signed | None) -> Iterator[Piece]:
        """Yield the bytes of the file, in order, with another signature or none."""
        header, size = self.header, self._source.size
        yield header_of(header.sha256, header.index, header.parts, FILE, signed)
        for at in range(header.start, size, _PIECE):
            yield self._source.read(at, min(_PIECE, size - at))

    def parts(self, entry: Entry) -> Coded:
        """Return a tensor's parts as they are in the file."""
        at = self._starts[entry.name]
        parts: list[Part | None] = []
        for codec, size in entry.lengths:
            parts.append(None if codec is None else Part(codec, self._source.read(at, size)))
            at += size
        values, positions, scales = parts
        if values is None:
            raise PackError("has no values")
        return Coded(entry.kept, values, positions, scales, entry.pattern)

    def _tensor(self, entry: Entry) -> Tensor:
        tensor = decode_tensor(self.parts(entry), entry)
        if entry.dtype == "bfloat16":
            return Bfloat16(tensor)
        return tensor.view(np.bool_) if entry.dtype == "bool" else tensor


def _encode_tensor(name: str, tensor: Tensor, codec: str) -> tuple[Entry, Coded]:
    dtype, values = _stored(name, tensor)
    if dtype in FLOATING:
        values = _plus_zeros(values)
    coded = encode_tensor(np.ascontiguousarray(values).reshape(values.shape), dtype, codec)
    entry = Entry(
        name=name,
        dtype=dtype,
        shape=values.shape,
        kept=coded.kept,
        values_codec=coded.values.codec,
        values_bytes=len(coded.values),
        positions_codec=None if coded.positions is None else coded.positions.codec,
        positions_bytes=0 if coded.positions is None else len(coded.positions),
        scales_codec=None if coded.scales is None else coded.scales.codec,
        scales_bytes=0 if coded.scales is None else len(coded.scales),
        pattern=coded.pattern,
    )
    return entry, coded


def _stored(name: str, tensor: Tensor) -> tuple[str, Array]:
    """Name the dtype, and lay the elements out as `STORAGE` says."""
    if isinstance(tensor, Bfloat16):
        return "bfloat16", tensor.bits
    dtype = tensor.dtype.name
    if dtype not in STORAGE or dtype == "bfloat16":
        known = ", ".join(key for key in STORAGE if key != "bfloat16")
        raise FlexrelError(
            f"can't pack tensor {show(name)} of dtype {dtype}; "
            f"version 1 knows {known}, and bfloat16 as a Bfloat16 record"
        )
    if dtype != "bool":
        return dtype, tensor.astype(STORAGE[dtype], copy=False)
    bits = tensor.view(np.uint8)
    if (bits > 1).any():
        raise FlexrelError(f"can't pack tensor {show(name)}: a bool in it is neither 0 nor 1")
    return dtype, bits


def _plus_zeros(values: Array) -> Array:
    """Return the values with 0.0 in place of -0.0: so that what is zero is never kept."""
    bits = bits_of(values)
    minus = bits == bits.dtype.type(1 << 8 * values.itemsize - 1)
    if not minus.any():
        return values
    return np.where(minus, bits.dtype.type(0), bits).view(values.dtype)


def joined(index: bytes, parts: Sequence[Piece]) -> bytes:
    """Return the bytes of a file, not signed."""
    sha256 = hashlib.sha256(index)
    for part in parts:
        sha256.update(part)
    length = sum(map(len, parts))
    return b"".join([header_of(sha256.hexdigest(), len(index), length), index, *parts])
