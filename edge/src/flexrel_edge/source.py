"""Where the bytes of a packed file come from: memory, or a file that is read piece by piece."""

from __future__ import annotations

import os
from io import BufferedIOBase
from typing import Protocol, Union, runtime_checkable

from flexrel_edge.errors import PackError

Piece = Union[bytes, memoryview]


@runtime_checkable
class Source(Protocol):
    """The bytes of a file."""

    @property
    def size(self) -> int:
        """How many there are."""
        ...

    def read(self, at: int, length: int) -> Piece:
        """Return some of them."""
        ...


class InMemory:
    """The bytes of a file that are in memory already."""

    def __init__(self, data: bytes) -> None:
        self._view = memoryview(data)

    @property
    def size(self) -> int:
        """How many bytes there are."""
        return len(self._view)

    def read(self, at: int, length: int) -> Piece:
        """Return a view of them, no copy."""
        return self._view[at : at + length]


class OnDisk:
    """A file, of which only what is asked for comes into memory."""

    def __init__(self, file: BufferedIOBase) -> None:
        self._file = file
        self._seen = self._state()

    @property
    def size(self) -> int:
        """How many bytes it had when it was opened."""
        return self._seen[0]

    def read(self, at: int, length: int) -> Piece:
        """Return a copy of them.

        Raises:
            PackError: somebody wrote to the file since it was opened, so that what was verified
                may not be what is read.
        """
        self._file.seek(at)
        data = self._file.read(length)
        if len(data) != length or self._state() != self._seen:
            raise PackError("the file changed while it was read")
        return data

    def _state(self) -> tuple[int, int]:
        found = os.fstat(self._file.fileno())
        return found.st_size, found.st_mtime_ns
