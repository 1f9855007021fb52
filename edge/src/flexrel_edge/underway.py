"""Files that are under way beside others: locked while somebody writes them, else left over."""

from __future__ import annotations

import os
import re
import secrets
import stat
from contextlib import suppress
from io import BufferedIOBase
from pathlib import Path

_USUAL = 0o666  # what umask takes from


def name_beside(target: Path) -> Path:
    """Return a new name for what is to replace a file."""
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")


def created(target: Path, mode: int | None) -> tuple[Path, BufferedIOBase]:
    """Create and lock a file beside the target; it is nobody's to clean until it is closed.

    Args:
        target: that it is to replace.
        mode: its permissions, from the start on; None: as umask says.

    Returns:
        Its path, and the file, open to write.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    while True:
        path = name_beside(target)
        file = os.fdopen(os.open(path, flags, _USUAL if mode is None else mode), "wb")
        with suppress(BlockingIOError):  # somebody is just cleaning it
            lock(file)
            if path.exists():  # else somebody did, before it was locked
                if mode is not None:
                    path.chmod(mode)
                return path, file
        file.close()


def lock(file: BufferedIOBase) -> bool:
    """Lock a file until it is closed; False where the system has no such locks.

    Raises:
        BlockingIOError: somebody else did.
    """
    try:
        import fcntl  # noqa: PLC0415 - POSIX alone has it
    except ImportError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # a file system without
        return False
    return True


def clean(target: Path) -> None:
    """Remove what was to replace a file and was left by who was killed, where one can tell."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{8}}\.tmp")
    with suppress(OSError):  # a folder that can't be listed may be written to all the same
        for other in list(target.parent.iterdir()):
            if pattern.fullmatch(other.name):
                remove_unless_locked(other)


def remove_unless_locked(path: Path) -> None:
    """Remove a file that nobody has under way."""
    with suppress(OSError), path.open("rb") as file:
        if lock(file):
            path.unlink(missing_ok=True)


def mode_of(path: Path) -> int | None:
    """Return the permissions of a file; None if there is none."""
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        return None
