"""The index of a packed file: entries and metadata to compressed JSON and back."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple
from typing import Any, Final

from flexrel_edge.errors import PackError
from flexrel_edge.records import MAX_DENSE, RAW, Blocks, Entry, Groups, Pattern, is_text, show

MAX_INDEX: Final = 2**22  # bytes of JSON; some 60,000 tensors
_LEAST_INDEX: Final = 2**16  # bytes that the smallest may expand to
_EXPANSION: Final = 64  # and else so many for each byte
_LEAST_DENSE: Final = 2**28  # bytes that the smallest file may have unpacked
_GROWTH: Final = 2**12  # and so many more for each byte of the file
_ROW_OF_DENSE: Final = (str, str, list, int, str, int)
_ROW_OF_SPARSE: Final = (*_ROW_OF_DENSE, str, int)
_ROW_OF_SCALED: Final = (*_ROW_OF_DENSE, type(None), int, str, int)
_ROW_OF_BOTH: Final = (*_ROW_OF_SPARSE, str, int)
_ROWS: Final = (
    _ROW_OF_DENSE,
    _ROW_OF_SPARSE,
    (*_ROW_OF_SPARSE, list),
    _ROW_OF_SCALED,
    _ROW_OF_BOTH,
    (*_ROW_OF_BOTH, list),
)
_PATTERNS: Final[Mapping[tuple[type, ...], Callable[..., Pattern]]] = {
    (int, int): Groups,
    (int, int, int): Blocks,
}


def check_growth(entries: Iterable[Entry], size: int) -> None:
    """Refuse tensors that would take far more memory than a file of this size may ask for.

    Raises:
        PackError: they do.
    """
    dense_bytes = sum(entry.dense_bytes for entry in entries)
    allowed = min(MAX_DENSE, _LEAST_DENSE + _GROWTH * size)
    if dense_bytes > allowed:
        raise PackError(
            f"the tensors have {show(dense_bytes)} bytes unpacked; version 1 allows {allowed} "
            f"in a file of {size} bytes"
        )


def canonical(value: object) -> bytes:
    """Write JSON in the one way that this format allows: sorted, compact, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")


def encode_index(entries: Sequence[Entry], metadata: Mapping[str, str]) -> bytes:
    """Compress the description of all tensors.

    Args:
        entries: in ascending order of their names.
        metadata: the packer's own.

    Returns:
        The index as it lies in the file.

    Raises:
        PackError: version 1 can't describe so much.
    """
    _check_all(entries)
    rows = [_row(entry) for entry in entries]
    text = canonical({"metadata": dict(metadata), "tensors": rows})
    return deflate(text)


def decode_index(data: bytes) -> tuple[tuple[Entry, ...], dict[str, str]]:
    """Check and read an index.

    Args:
        data: the index as it lies in the file.

    Returns:
        What `encode_index` got.

    Raises:
        PackError: `encode_index` would not write this.
    """
    index = parsed(inflate(data))
    if not isinstance(index, dict) or sorted(index) != ["metadata", "tensors"]:
        raise PackError("the index is not an object of metadata and tensors")
    metadata, rows = index["metadata"], index["tensors"]
    if not is_metadata(metadata):
        raise PackError("the metadata in the index are not texts by name")
    if not isinstance(rows, list):
        raise PackError("the tensors in the index are not a list")
    entries = tuple(_entry(row) for row in rows)
    _check_all(entries)
    return entries, metadata


def parsed(text: bytes) -> object:
    """Read JSON that `canonical` wrote; PackError for any other."""
    try:
        value = json.loads(text)
        rewritten = canonical(value)
    except (ValueError, RecursionError) as error:
        raise PackError("the index is not JSON") from error
    if rewritten != text:
        raise PackError("the index is not in canonical JSON: sorted, compact, ASCII")
    return value


def is_metadata(value: object) -> bool:
    """Whether it is a mapping of text to text."""
    return isinstance(value, Mapping) and all(
        is_text(key) and is_text(text) for key, text in value.items()
    )


def _row(entry: Entry) -> list[object]:
    row: list[object] = [
        entry.name,
        entry.dtype,
        list(entry.shape),
        entry.kept,
        entry.values_codec,
        entry.values_bytes,
    ]
    if entry.positions_codec is not None or entry.scales_codec is not None:
        row += [entry.positions_codec, entry.positions_bytes]
    if entry.scales_codec is not None:
        row += [entry.scales_codec, entry.scales_bytes]
    if entry.pattern is not None:
        row.append(list(astuple(entry.pattern)))
    return row


def _entry(row: object) -> Entry:
    types = tuple(map(type, row)) if isinstance(row, list) else ()
    if not isinstance(row, list) or types not in _ROWS:
        raise PackError(f"an index row is neither of a dense nor of a sparse tensor: {show(row)}")
    name, dtype, shape, *rest = row
    if any(type(axis) is not int for axis in shape):
        raise PackError(f"tensor {show(name)} has a shape that is not of integers: {show(shape)}")
    pattern = _pattern(name, rest.pop()) if types[-1] is list else None
    said: list[Any] = [name, dtype, tuple(shape), *rest]
    unsaid = (None, 0, None, 0)[len(said) - len(_ROW_OF_DENSE) :]
    said += [*unsaid, pattern]
    return Entry(*said)


def _pattern(name: str, numbers: list[object]) -> Pattern:
    kind = _PATTERNS.get(tuple(map(type, numbers)))
    if kind is None:
        raise PackError(f"tensor {show(name)} has a pattern that is none: {show(numbers)}")
    return kind(*numbers)


def _check_all(entries: Sequence[Entry]) -> None:
    for before, after in zip(entries, entries[1:]):
        if before.name >= after.name:
            raise PackError(
                f"tensor {show(after.name)} comes after {show(before.name)} in the index; "
                "names must ascend, none twice"
            )
    codecs = {codec for entry in entries for codec, _ in entry.lengths} - {RAW, None}
    if len(codecs) > 1:
        raise PackError(f"parts are in {' and '.join(sorted(map(str, codecs)))}; one alone may be")


def deflate(text: bytes) -> bytes:
    """Compress the JSON of an index; PackError if it is more than a reader takes."""
    if len(text) > MAX_INDEX:
        raise PackError(f"the index has {len(text)} bytes of JSON, version 1 allows {MAX_INDEX}")
    data = zlib.compress(text, 9)
    return data if len(text) <= _most(len(data)) else zlib.compress(text, 0)


def inflate(data: bytes) -> bytes:
    """Decompress it again; PackError for anything but one whole stream that is not too long."""
    limit = _most(len(data))
    inflater = zlib.decompressobj()
    try:
        text = inflater.decompress(data, limit + 1)
    except zlib.error as error:
        raise PackError(f"the index does not decompress: {error}") from error
    if len(text) > limit:
        raise PackError(f"the index has more than {limit} bytes of JSON")
    if not inflater.eof:
        raise PackError("the index is cut short: its zlib stream has no end")
    if inflater.unused_data:
        raise PackError(f"{len(inflater.unused_data)} bytes follow the index's zlib stream")
    return text


def _most(size: int) -> int:
    """How many bytes of JSON an index of so many bytes may hold: small files stay small."""
    return min(MAX_INDEX, max(_LEAST_INDEX, _EXPANSION * size))
