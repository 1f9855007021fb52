"""Versions of a file on disk: what came so far of the next, the present, and the one before."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from io import BufferedRandom
from pathlib import Path

from flexrel_edge.errors import FlexrelError, PackError
from flexrel_edge.files import opened, replacing
from flexrel_edge.remote import MissingError
from flexrel_edge.trust import FilePath
from flexrel_edge.underway import (
    clean,
    lock,
    mode_of,
    name_beside,
    remove_unless_locked,
)


def rollback(path: FilePath) -> None:
    """Put the previous version of a pulled file back; the present one becomes the previous.

    One that was killed half-way is brought to its end instead.

    Raises:
        PackError: the previous version is damaged.
        FlexrelError: somebody else is changing the file.
        OSError: there is none, or files can't be written.
    """
    target = Path(os.path.realpath(path))
    if resume(target):
        return
    previous, present = _previous(target), _present(target)
    with opened(previous):
        mode = mode_of(target)
        if not _link(target, present):
            _copy(target, present)
    with _held(present, target):
        if mode is not None:
            previous.chmod(mode)
        previous.replace(target)
        _end(target)


def resume(target: Path) -> bool:
    """End a rollback that was killed, and remove what is left over; whether it had gone half-way.

    Raises:
        FlexrelError: it is under way.
    """
    for path in (target, _previous(target), _present(target)):
        clean(path)
    if not _present(target).exists():
        return False
    with _held(_present(target), target):
        return _end(target)


def _end(target: Path) -> bool:
    """End a rollback; whether it had gone half-way.

    It gives the present version a third name first, and then the previous one's to none: where
    both are there, nothing has changed yet.
    """
    previous, present = _previous(target), _present(target)
    half_way = not previous.exists()
    if half_way:
        present.replace(previous)
    present.unlink(missing_ok=True)
    settle(target)
    return half_way


@contextmanager
def _held(path: Path, target: Path) -> Iterator[None]:
    """Let nobody else exchange the versions of a file meanwhile, where the system can tell."""
    if os.name != "posix":  # no open file can be renamed there
        yield
        return
    with path.open("rb") as file:
        try:
            lock(file)
        except BlockingIOError as error:
            raise FlexrelError(f"{target}: somebody else is changing it; try again") from error
        yield


@contextmanager
def partial(target: Path, what: str) -> Iterator[tuple[Path, BufferedRandom]]:
    """Open what came so far of a file; it stays for the next time unless it is refused."""
    path, mode = target.with_name(_partial_name(target, what)), mode_of(target)
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
    handle = os.open(path, flags, 0o666 if mode is None else mode | 0o600)
    with os.fdopen(handle, "r+b") as file:
        try:
            lock(file)
        except BlockingIOError as error:
            raise FlexrelError(f"{target}: another pull of it is under way; wait for it") from error
        if mode is not None:
            path.chmod(mode | 0o600)
        try:
            yield path, file
        except (MissingError, PackError):
            path.unlink()
            raise


def switch(came: Path, target: Path) -> None:
    """Put a file that came whole in the place of the present one, with its permissions."""
    mode = mode_of(target)
    if mode is not None:
        came.chmod(mode)
    came.replace(target)


def forget(target: Path, but: Collection[str]) -> None:
    """Remove what came of versions that are no longer wanted, and that nobody is fetching."""
    wanted = {_partial_name(target, what) for what in but}
    for other in list(target.parent.iterdir()):
        ours = other.name.startswith(f".{target.name}.") and other.name.endswith(".part")
        if ours and other.name not in wanted:
            remove_unless_locked(other)


def _partial_name(target: Path, what: str) -> str:
    return f".{target.name}.{what}.part"


def _previous(target: Path) -> Path:
    return target.with_name(f"{target.name}.previous")


def _present(target: Path) -> Path:
    return target.with_name(f".{target.name}.present")


def keep(target: Path) -> None:
    """Let the previous version be the present one; both names lead to it."""
    previous, link = _previous(target), name_beside(target)
    with target.open("rb") as file, suppress(BlockingIOError):
        lock(file)  # of the link too
        if _link(target, link):
            link.replace(previous)
            link.unlink(missing_ok=True)  # a rename does nothing where both are one file
            return
    _copy(target, previous)


def _link(target: Path, name: Path) -> bool:
    """Give a file another name; False where files can have but one."""
    try:
        os.link(target, name)
    except FileExistsError:
        raise
    except OSError:
        return False
    return True


def _copy(target: Path, name: Path) -> None:
    with target.open("rb") as file, replacing(name, like=target) as out:
        shutil.copyfileobj(file, out)


def settle(target: Path) -> None:
    """Bring the renames to the disk, where a directory can be opened for that."""
    if os.name == "posix":
        handle = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
