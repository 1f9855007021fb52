"""The outermost layer of a file: a safetensors header with FlexRel's marks, and the checksum."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

from flexrel_edge.errors import PackError
from flexrel_edge.index import canonical
from flexrel_edge.records import show
from flexrel_edge.source import Source

VERSION: Final = 1
FILE: Final = "flexrel"  # what a packed file calls itself
UPDATE: Final = "flexrel-update"  # and what makes one of another
_PREFIX: Final = 8  # bytes: the header's length
_MAX_HEADER: Final = 2**16  # bytes; version 1 needs some 300
_CHUNK: Final = 2**20  # bytes that are hashed together
_COUNTER: Final = re.compile(r"0|[1-9][0-9]{0,18}")  # decimal, below 2^63 or so
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_SIGNATURE: Final = re.compile(r"[0-9a-f]{128}")
_PICKLES: Final = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@runtime_checkable
class Trust(Protocol):
    """Keys of those whose files are taken."""

    def check(self, message: bytes, signature: bytes) -> bool:
        """Whether the signature of the message is by one of them."""
        ...


@dataclass(frozen=True)
class Signed:
    """What a signature adds to a header.

    Attributes:
        counter: of versions, below 10^19; a device with keys takes none below one that they signed.
        signature: Ed25519, of counter and checksum, 128 hexadecimal digits.
    """

    counter: int
    signature: str

    @classmethod
    def of(cls, counter: object, signature: object) -> Signed:
        """Read the two texts; PackError if they are not as version 1 writes them."""
        if not isinstance(counter, str) or not _COUNTER.fullmatch(counter):
            raise PackError(f"{show(counter)} is no counter of versions")
        if not isinstance(signature, str) or not _SIGNATURE.fullmatch(signature):
            raise PackError(f"{show(signature)} is no signature")
        return cls(int(counter), signature)

    @property
    def texts(self) -> tuple[str, str]:
        """Counter and signature, as a file has them."""
        return str(self.counter), self.signature


@dataclass(frozen=True)
class Header:
    """What a verified header says.

    Attributes:
        start: where the index begins.
        index: its length.
        parts: length of all that follows it.
        sha256: of index and parts together, hexadecimal.
        signed: None if it is not.
    """

    start: int
    index: int
    parts: int
    sha256: str
    signed: Signed | None = None


def header_of(
    sha256: str, index: int, parts: int, name: str = FILE, signed: Signed | None = None
) -> bytes:
    """Return the header, with its length before it, in the one way that version 1 writes it."""
    marks = {"format": name, "sha256": sha256, "version": str(VERSION)}
    if signed is not None:
        marks["counter"], marks["signature"] = signed.texts
    text = canonical(
        {
            "__metadata__": marks,
            "data": {"data_offsets": [index, index + parts], "dtype": "U8", "shape": [parts]},
            "index": {"data_offsets": [0, index], "dtype": "U8", "shape": [index]},
        }
    )
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(_PREFIX, "little") + text


def read_header(source: Source, name: str = FILE, trust: Trust | None = None) -> Header:
    """Read the header, and verify by it every byte that follows.

    Args:
        source: of the whole file.
        name: of the format that it must be in.
        trust: one of these keys must have signed it; None: nobody need have.

    Raises:
        PackError: no FlexRel file, one of a later version, a damaged one, or one not trusted.
    """
    header = announced(source, name, trust)
    found = _sha256(source, header.start)
    if found != header.sha256:
        raise PackError(f"the checksum is {found}, the header says {header.sha256}: damaged")
    return header


def announced(source: Source, name: str = FILE, trust: Trust | None = None) -> Header:
    """Read the header alone, as `read_header` does; what follows need not be there yet."""
    start, marks, index = _declared(source, name)
    sha256, signed = marks.get("sha256"), None
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise PackError(f"{show(sha256)} is no checksum")
    if name == FILE and ("counter" in marks or "signature" in marks):
        signed = Signed.of(marks.get("counter"), marks.get("signature"))
    if trust is not None:
        check_trust(trust, sha256, signed)
    header = Header(start, index, source.size - start - index, sha256, signed)
    if source.read(0, start) != header_of(sha256, index, header.parts, name, signed):
        raise PackError("the header is not written as version 1 writes it")
    return header


def signed_text(sha256: str, counter: int) -> bytes:
    """Return what is signed of a packed file: its version, counter and checksum."""
    return f"{FILE} {VERSION} {counter} {sha256}".encode()


def check_trust(trust: Trust, sha256: str, signed: Signed | None) -> None:
    """Refuse content that none of the keys signed.

    Raises:
        PackError: it is not signed, or by somebody else.
    """
    if signed is None:
        raise PackError("is not signed, and a key was given to trust: sign it, or pass no key")
    if not _is_signed(trust, sha256, signed):
        raise PackError("its signature is by none of the keys that are trusted, or damaged")


def check_not_older(trust: Trust | None, have: Header, offered: Signed | None) -> None:
    """Refuse a version below the one that is there; only counters that a key vouches for count.

    Args:
        trust: keys, one of which signed what is offered; None: no counter can be believed.
        have: of the file that is there; it counts if one of the same keys signed it.
        offered: instead of it.

    Raises:
        PackError: the counter offered is lower.
    """
    if trust is None or have.signed is None or offered is None:
        return
    if offered.counter < have.signed.counter and _is_signed(trust, have.sha256, have.signed):
        raise PackError(
            f"is an older version: it has counter {offered.counter}, the file that it would "
            f"replace {have.signed.counter}; allow older versions if that is meant"
        )


def is_update(source: Source) -> bool:
    """Whether the file calls itself an update; PackError if it is none of ours."""
    try:
        _declared(source, UPDATE)
    except PackError:
        _declared(source, FILE)
        return False
    return True


def _is_signed(trust: Trust, sha256: str, signed: Signed) -> bool:
    return trust.check(signed_text(sha256, signed.counter), bytes.fromhex(signed.signature))


def _sha256(source: Source, start: int) -> str:
    sha256 = hashlib.sha256()
    for at in range(start, source.size, _CHUNK):
        sha256.update(source.read(at, min(_CHUNK, source.size - at)))
    return sha256.hexdigest()


def _declared(source: Source, format_name: str) -> tuple[int, dict[str, object], int]:
    """Say where the index begins, what the header's marks are, and how long the index is."""
    if source.size < _PREFIX:
        raise PackError(f"cut short: {source.size} bytes, {_PREFIX} needed for the header's length")
    prefix = bytes(source.read(0, _PREFIX))
    size = int.from_bytes(prefix, "little")
    if size > min(source.size - _PREFIX, _MAX_HEADER):
        if prefix.startswith(_PICKLES):
            raise PackError("looks like a pickle or a torch file; pickles are never read")
        raise PackError(
            f"not a FlexRel file, or cut short: it declares a header of {size} bytes, "
            f"has {source.size - _PREFIX} left, and {_MAX_HEADER} are allowed"
        )
    start = _PREFIX + size
    held = source.size - start
    try:
        header = json.loads(bytes(source.read(_PREFIX, size)))
        marks = header["__metadata__"]
        name, version = marks["format"], marks["version"]
    except (ValueError, RecursionError, LookupError, TypeError) as error:
        raise PackError("not a FlexRel file: its header does not have FlexRel's marks") from error
    if name != format_name:
        what = {FILE: "FlexRel file", UPDATE: "FlexRel update"}[format_name]
        raise PackError(f"not a {what}: the header names format {show(name)}")
    if version != str(VERSION):
        found = show(version).strip("'")
        raise PackError(f"version {found}, this reader knows {VERSION}: update flexrel-edge")
    try:
        length = header["index"]["shape"][0]
        end = header["data"]["data_offsets"][1]
    except (LookupError, TypeError) as error:
        raise PackError("the header lacks the index or the data") from error
    if end != held:
        raise PackError(
            f"the header declares {show(end)} bytes after it, found {held}: "
            "cut short, or bytes too many"
        )
    if type(length) is not int or not 0 <= length <= held:
        raise PackError(f"the header declares an index of {show(length)} bytes")
    return start, marks, length
