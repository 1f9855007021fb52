"""Whole files as bytes to tensors and back. The layout is in docs/format.md."""

import hashlib
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import numpy as np

from flexrel_edge.codec import Coded, Part, decode_tensor, encode_tensor
from flexrel_edge.errors import FlexrelError, PackError
from flexrel_edge.index import canonical, decode_index, encode_index, is_metadata
from flexrel_edge.records import (
    STORAGE,
    Array,
    Bfloat16,
    Contents,
    Entry,
    Packed,
    is_name,
    show,
)

VERSION: Final = 1
NO_METADATA: Final[Mapping[str, str]] = MappingProxyType({})
_PREFIX: Final = 8  # bytes: the header's length
_MAX_HEADER: Final = 2**16  # bytes; version 1 needs some 300
_PICKLES: Final = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def encode(
    tensors: Mapping[str, Array | Bfloat16], *, metadata: Mapping[str, str] = NO_METADATA
) -> bytes:
    """Pack tensors without losing a bit.

    Args:
        tensors: by name; of bool, an integer or floating dtype of 8 to 64 bits, or `Bfloat16`;
            of any shape. Their order does not matter.
        metadata: texts to keep with them.

    Returns:
        The bytes of a version 1 file; the same for the same tensors, metadata and codecs.

    Raises:
        FlexrelError: a name, a dtype, a shape or the metadata can't be packed.
    """
    for name in tensors:
        if not is_name(name):
            raise FlexrelError(f"can't pack a tensor named {show(name)}: use a non-empty text")
    if not is_metadata(metadata):
        raise FlexrelError("can't pack these metadata: every key and every value must be a text")
    entries: list[Entry] = []
    parts: list[bytes | memoryview] = []
    try:
        for name in sorted(tensors):
            entry, coded = _encode_tensor(name, tensors[name])
            entries.append(entry)
            parts.append(coded.values.data)
            if coded.positions is not None:
                parts.append(coded.positions.data)
        index = encode_index(entries, metadata)
    except PackError as error:  # the same rules as for reading, but no file is at fault
        raise FlexrelError(f"can't pack: {error}") from error
    sha256 = hashlib.sha256(index)
    for part in parts:
        sha256.update(part)
    length = sum(map(len, parts))
    return b"".join([_header(sha256.hexdigest(), len(index), length), index, *parts])


def decode(data: bytes) -> Packed:
    """Verify and unpack the bytes of a file.

    Args:
        data: the whole file.

    Returns:
        What `encode` got, bit for bit. bfloat16 tensors are `Bfloat16` records.

    Raises:
        PackError: the bytes are not what `encode` writes; the message says where.
    """
    contents, at = _open(data)
    view = memoryview(data)
    tensors: dict[str, Array | Bfloat16] = {}
    for entry in contents.tensors:
        try:
            tensors[entry.name] = _decode_tensor(entry, view[at : at + entry.bytes])
        except PackError as error:
            raise PackError(f"tensor {show(entry.name)}: {error}") from error
        except MemoryError as error:
            raise PackError(
                f"tensor {show(entry.name)} takes {entry.dense_bytes} bytes unpacked, "
                "more memory than there is"
            ) from error
        at += entry.bytes
    return Packed(tensors, contents.metadata, contents.version)


def describe(data: bytes) -> Contents:
    """Verify the checksum and the index, decode no tensor.

    Args:
        data: the whole file.

    Returns:
        What the file says of itself.

    Raises:
        PackError: the file is damaged, its tensors' own bytes apart.
    """
    return _open(data)[0]


def _encode_tensor(name: str, tensor: Array | Bfloat16) -> tuple[Entry, Coded]:
    dtype, values = _stored(name, tensor)
    flat = np.ascontiguousarray(values).reshape(-1)
    coded = encode_tensor(flat)
    entry = Entry(
        name=name,
        dtype=dtype,
        shape=values.shape,
        kept=coded.kept,
        values_codec=coded.values.codec,
        values_bytes=len(coded.values.data),
        positions_codec=coded.positions.codec if coded.positions else None,
        positions_bytes=len(coded.positions.data) if coded.positions else 0,
    )
    return entry, coded


def _stored(name: str, tensor: Array | Bfloat16) -> tuple[str, Array]:
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


def _decode_tensor(entry: Entry, data: memoryview) -> Array | Bfloat16:
    values, positions = data[: entry.values_bytes], data[entry.values_bytes :]
    coded = Coded(
        entry.kept,
        Part(entry.values_codec, values),
        Part(entry.positions_codec, positions) if entry.positions_codec else None,
    )
    tensor = decode_tensor(coded, entry).reshape(entry.shape)
    if entry.dtype == "bfloat16":
        return Bfloat16(tensor)
    return tensor.view(np.bool_) if entry.dtype == "bool" else tensor


def _open(data: bytes) -> tuple[Contents, int]:
    """Check all but the parts themselves; also say where the first part begins."""
    start, sha256, length = _read_header(data)
    found = hashlib.sha256(memoryview(data)[start:]).hexdigest()
    if found != sha256:
        raise PackError(f"the checksum is {found}, the header says {show(sha256)}: damaged")
    if data[:start] != _header(found, length, len(data) - start - length):
        raise PackError("the header is not written as version 1 writes it")
    entries, metadata = decode_index(data[start : start + length])
    declared, held = sum(entry.bytes for entry in entries), len(data) - start - length
    if declared != held:
        raise PackError(f"the index declares {declared} bytes of parts, found {held}")
    return Contents(VERSION, len(data), found, metadata, entries), start + length


def _header(sha256: str, index: int, parts: int) -> bytes:
    text = canonical(
        {
            "__metadata__": {"format": "flexrel", "sha256": sha256, "version": str(VERSION)},
            "data": {"data_offsets": [index, index + parts], "dtype": "U8", "shape": [parts]},
            "index": {"data_offsets": [0, index], "dtype": "U8", "shape": [index]},
        }
    )
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(_PREFIX, "little") + text


def _read_header(data: bytes) -> tuple[int, object, int]:
    """Say where the index begins, which checksum is declared, and how long the index is."""
    if len(data) < _PREFIX:
        raise PackError(f"cut short: {len(data)} bytes, {_PREFIX} needed for the header's length")
    size = int.from_bytes(data[:_PREFIX], "little")
    if size > min(len(data) - _PREFIX, _MAX_HEADER):
        if data.startswith(_PICKLES):
            raise PackError("looks like a pickle or a torch file; pickles are never read")
        raise PackError(
            f"not a FlexRel file, or cut short: it declares a header of {size} bytes, "
            f"has {len(data) - _PREFIX} left, and {_MAX_HEADER} are allowed"
        )
    start = _PREFIX + size
    try:
        header = json.loads(data[_PREFIX:start])
        marks = header["__metadata__"]
        name, version = marks["format"], marks["version"]
    except (ValueError, RecursionError, LookupError, TypeError) as error:
        raise PackError("not a FlexRel file: its header does not have FlexRel's marks") from error
    if name != "flexrel":
        raise PackError(f"not a FlexRel file: the header names format {show(name)}")
    if version != str(VERSION):
        found = show(version).strip("'")
        raise PackError(f"version {found}, this reader knows {VERSION}: update flexrel-edge")
    try:
        sha256, length = marks["sha256"], header["index"]["shape"][0]
        end = header["data"]["data_offsets"][1]
    except (LookupError, TypeError) as error:
        raise PackError("the header lacks the checksum, the index or the data") from error
    if end != len(data) - start:
        raise PackError(
            f"the header declares {show(end)} bytes after it, found {len(data) - start}: "
            "cut short, or bytes too many"
        )
    if type(length) is not int or not 0 <= length <= len(data) - start:
        raise PackError(f"the header declares an index of {show(length)} bytes")
    return start, sha256, length
