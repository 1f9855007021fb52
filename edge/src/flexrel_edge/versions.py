"""Versions of a file on disk: what came so far of the next, the present, and the one before."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from io import BufferedRandom
from pathlib import Path

from flexrel_edge.errors import FlexrelError, PackError
from flexrel_edge.files import opened
from flexrel_edge.remote import MissingError
from flexrel_edge.trust import FilePath


def rollback(path: FilePath) -> None:
    """Put the previous version of a pulled file back; the present one becomes the previous.

    Raises:
        PackError: the previous version is damaged.
        OSError: there is none, or files can't be written.
    """
    target = Path(os.path.realpath(path))
    previous = _previous(target)
    with opened(previous):
        kept = _linked(target)
    previous.replace(target)
    kept.replace(previous)
    settle(target)


@contextmanager
def partial(target: Path, what: str) -> Iterator[tuple[Path, BufferedRandom]]:
    """Open what came so far of a file; it stays for the next time unless it is refused."""
    path = target.with_name(_partial_name(target, what))
    handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644)
    with os.fdopen(handle, "r+b") as file:
        _lock(file, target)
        try:
            yield path, file
        except (MissingError, PackError):
            path.unlink()
            raise


def _lock(file: BufferedRandom, target: Path) -> None:
    """Refuse to write what another process is writing, where the system can tell."""
    try:
        import fcntl  # noqa: PLC0415 - POSIX alone has it
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise FlexrelError(f"{target}: another pull of it is under way; wait for it") from error


def forget(target: Path, but: Collection[str]) -> None:
    """Remove what came of versions that are no longer wanted."""
    wanted = {_partial_name(target, what) for what in but}
    for other in target.parent.iterdir():
        ours = other.name.startswith(f".{target.name}.") and other.name.endswith(".part")
        if ours and other.name not in wanted:
            other.unlink(missing_ok=True)


def _partial_name(target: Path, what: str) -> str:
    return f".{target.name}.{what}.part"


def _previous(target: Path) -> Path:
    return target.with_name(f"{target.name}.previous")


def keep(target: Path) -> None:
    """Let the previous version be the present one; both names lead to it."""
    _linked(target).replace(_previous(target))


def _linked(target: Path) -> Path:
    """Return another name of a file, or a copy where files can have but one."""
    name = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        os.link(target, name)
    except OSError:
        shutil.copyfile(target, name)
    return name


def settle(target: Path) -> None:
    """Bring the renames to the disk, where a directory can be opened for that."""
    if os.name == "posix":
        handle = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
