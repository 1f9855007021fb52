"""Packed files from elsewhere: what changed if that is offered, else all of it; never a part."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import Final

from flexrel_edge.container import (
    FILE,
    Header,
    Trust,
    announced,
    check_not_older,
    is_update,
)
from flexrel_edge.errors import FlexrelError, PackError
from flexrel_edge.files import opened, replacing
from flexrel_edge.format import Reader
from flexrel_edge.remote import MissingError, Remote, Unreachable, beside, remote_of
from flexrel_edge.source import OnDisk, Piece
from flexrel_edge.trust import FilePath, read_keys
from flexrel_edge.update import Update
from flexrel_edge.versions import forget, keep, partial, resume, settle, switch

_PROBE: Final = 512  # bytes; no header of version 1 is longer, unless its file is of petabytes
_DIGITS: Final = 16  # of a checksum, in names of files
_SLOWEST: Final = 60.0  # seconds between two tries


@dataclass(frozen=True)
class Patience:
    """How long to go on where a connection fails.

    Attributes:
        attempts: in a row that bring nothing, before giving up. One that begins the file anew
            brings nothing, however many bytes come again.
        timeout: seconds to wait for a server to say something.
        sleep: waits so many seconds.
    """

    attempts: int = 8
    timeout: float = 30.0
    sleep: Callable[[float], None] = time.sleep

    def wait(self, failures: int, asked: float) -> None:
        """Wait, about twice as long after each failure, or as long as a server asks for."""
        longest = min(_SLOWEST, 2.0**failures / 2)
        self.sleep(max(longest * random.uniform(0.5, 1), min(asked, _SLOWEST)))  # noqa: S311


_PATIENCE: Final = Patience()


@dataclass(frozen=True)
class Pulled:
    """What a pull did.

    Attributes:
        how: "kept", "update" or "whole".
        sha256: of the content of the file that is there now.
        bytes: its length.
        transferred: bytes of files that came for it.
    """

    how: str
    sha256: str
    bytes: int
    transferred: int


def pull(
    url: str,
    path: FilePath,
    *,
    trust: FilePath | None = None,
    allow_older: bool = False,
    patience: Patience = _PATIENCE,
) -> Pulled:
    """Bring a packed file up to date with one elsewhere.

    Where the file here is another version, an update is looked for beside the one there, under its
    name and `.<first 16 digits of the checksum of the file here>.fxd`. What was here stays as
    `<path>.previous`, for `rollback`. A pull that was cut off goes on from where it was.

    Args:
        url: http(s), a local path, or what fsspec knows, with the extra of that name.
        path: of the file here; it need not be there yet.
        trust: PEM file of public keys, one of which must have signed the file.
        allow_older: whether its counter may be lower than that of the file here. Without `trust`,
            or where no key of it signed the file here, no counter is compared.
        patience: with connections that fail.

    Returns:
        What was done, and the bytes it took.

    Raises:
        PackError: the file there is damaged, not trusted or older; the file here is as it was.
        FlexrelError: there is none, the connection failed too often, or another pull is under way.
        OSError: the file can't be written.
    """
    keys = None if trust is None else read_keys(trust)
    target, have = Path(os.path.realpath(path)), None
    resume(target)
    there = _There(remote_of(url, patience.timeout), patience)
    header = there.header(keys)
    with suppress(FileNotFoundError, PackError), opened(target) as file:
        have = file.header
    if have is not None and not allow_older:
        check_not_older(keys, have, header.signed)
    length, whole = header.start + header.index + header.parts, header.sha256[:_DIGITS]
    same = have is not None and have.sha256 == header.sha256
    forget(target, () if same else (whole, f"{whole}.fxd"))
    if same:
        if have != header:  # signed anew
            with opened(target) as file, replacing(target) as out:
                out.writelines(file.resealed(header.signed))
        return Pulled("kept", header.sha256, length, there.transferred)
    if have is not None:
        update = remote_of(update_name(url, have.sha256), patience.timeout)
        changes = _There(update, patience)
        done = _updated(changes, target, header, keys)
        there.transferred += changes.transferred
        if done:
            return Pulled("update", header.sha256, length, there.transferred)
    with partial(target, whole) as (came, file):
        there.fetch(file, length)
        _check(Reader(OnDisk(file), keys).header, header, there.name)
        if have is not None:
            keep(target)
        switch(came, target)
    settle(target)
    return Pulled("whole", header.sha256, length, there.transferred)


def update_name(url: str, sha256: str) -> str:
    """Return where `pull` looks for an update to a file, from one of this checksum."""
    return beside(url, f".{sha256[:_DIGITS]}.fxd")


class _There:
    """A file elsewhere, asked for until it comes, and the bytes that did."""

    def __init__(self, remote: Remote, patience: Patience) -> None:
        self.name = remote.name
        self.transferred = 0
        self._remote, self._patience = remote, patience
        self._tag, self._failures, self._anew = "", 0, 0

    def header(self, keys: Trust | None) -> Header:
        """Return the header of the packed file, from its first bytes.

        Raises:
            PackError: it is none, or not trusted.
        """
        while True:
            try:
                head = self._head()
                break
            except Unreachable as error:
                self._wait(error, "")
        try:
            return announced(head, FILE, keys)
        except PackError as error:
            raise PackError(f"{self.name}: {error}") from error

    def fetch(self, file: BufferedIOBase, most: int) -> None:
        """Append to a file what it lacks of this one, and write it to the disk.

        Args:
            file: the first bytes, or none.
            most: how long this one may be.

        Raises:
            PackError: it is longer.
        """
        have, total = file.seek(0, os.SEEK_END), most + 1
        furthest = have
        while have < total:
            try:
                with closing(self._remote.open(have, None, self._tag)) as answer:
                    total = most if answer.total is None else answer.total
                    if total > most:
                        raise PackError(f"{self.name}: has {total} bytes, {most} are expected")
                    self._tag = answer.tag
                    if answer.start != have:
                        have = file.truncate(file.seek(answer.start))
                        self._anew += 1
                    for chunk in answer.chunks:
                        self.transferred += len(chunk)
                        have += file.write(chunk)
                        file.flush()  # what came is not lost where the process is killed
                        if have > total:
                            raise PackError(f"{self.name}: more than its {total} bytes came")
                if answer.total is None:
                    break  # it ends where it ends
                if have < total:
                    raise Unreachable("the connection ended early")  # noqa: TRY301
            except Unreachable as error:
                if have > furthest:
                    furthest, self._failures = have, self._anew
                self._wait(error, self._so_far(have))
        file.flush()
        os.fsync(file.fileno())

    def _so_far(self, have: int) -> str:
        if self._anew:
            return (
                f"; it began anew {self._anew} times: the server has no ranges, or names another "
                "version each time"
            )
        return f"; {have} bytes are here, and pulling again goes on from there"

    def _head(self) -> _Head:
        with closing(self._remote.open(0, _PROBE, "")) as answer:
            data = b""
            for chunk in answer.chunks:
                data += chunk[: _PROBE - len(data)]
                if len(data) == _PROBE:
                    break
            self.transferred += len(data)
            if answer.total is None:
                raise FlexrelError(f"{self.name}: the server does not say how long it is")
            if len(data) < min(_PROBE, answer.total):
                raise Unreachable("the connection ended early")
            self._tag = answer.tag
            return _Head(data, answer.total)

    def _wait(self, error: Unreachable, more: str) -> None:
        self._failures += 1
        if self._failures >= self._patience.attempts:
            times = f"{self._failures} times in a row"
            raise FlexrelError(f"{self.name}: {error}, {times}{more}") from error
        self._patience.wait(self._failures, error.wait)


@dataclass(frozen=True)
class _Head:
    """The first bytes of a file of which the length is known."""

    data: bytes
    size: int

    def read(self, at: int, length: int) -> Piece:
        """Return those that are there."""
        return self.data[at : at + length]


def _updated(changes: _There, target: Path, header: Header, keys: Trust | None) -> bool:
    """Bring the target up to date by an update; False if there is none that does."""
    most = header.start + header.index + header.parts
    try:
        with partial(target, f"{header.sha256[:_DIGITS]}.fxd") as (came, file):
            changes.fetch(file, most)
            source = OnDisk(file)
            with target.open("rb") as before, replacing(target) as out:
                if is_update(source):
                    update = Update(source, keys)
                    _check(update.result, header.sha256, changes.name)
                    _check(update.signed, header.signed, changes.name)
                    out.writelines(update.pieces(Reader(OnDisk(before))))
                else:  # the new file itself, where that is shorter
                    whole = Reader(source, keys)
                    _check(whole.header, header, changes.name)
                    out.writelines(whole.pieces())
                keep(target)
            came.unlink()
    except (MissingError, PackError):
        return False
    settle(target)
    return True


def _check(found: object, expected: object, name: str) -> None:
    if found != expected:
        raise PackError(f"{name}: of another version than the file, or changed by now; try again")
