"""Where files are pulled from: http(s), local paths, and what fsspec knows, from any byte on."""

from __future__ import annotations

import http.client
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable
from urllib.parse import unquote, urlsplit, urlunsplit

from flexrel_edge.errors import FlexrelError

_CHUNK: Final = 2**16  # bytes that are asked for at once
_BYTES: Final = re.compile(r"[0-9]{1,19}")
_RANGE: Final = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)")
_SHOWN: Final = 60  # characters of what a server says, in messages
_PASSING: Final = frozenset({408, 425, 429})  # of the 4xx, those that may not come again
_CLIENT: Final = range(400, 500)


class MissingError(FlexrelError):
    """There is no such file, or it is not for us; asking again would not help."""


class Unreachable(Exception):  # noqa: N818 - what happened; an error if it goes on
    """Something between here and there failed, that may not fail the next time.

    Args:
        reason: for the message.
        wait: seconds that the other side asks for.
    """

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


@dataclass(frozen=True)
class Answer:
    """What a remote file gives from a byte on.

    Attributes:
        start: the byte; 0 also where another was asked for, if the file changed or has no ranges.
        total: length of the whole file, where that is told.
        tag: changes when the file does; empty: unknown.
        chunks: the bytes; Unreachable where they end in a failure.
        close: to be called when no more are needed.
    """

    start: int
    total: int | None
    tag: str
    chunks: Iterator[bytes]
    close: Callable[[], None]


@runtime_checkable
class Remote(Protocol):
    """One file somewhere."""

    name: str

    def open(self, start: int, stop: int | None, tag: str) -> Answer:
        """Open it from a byte on, up to another at least, if it still has the tag.

        Raises:
            MissingError: it is not there.
            Unreachable: it may be, the next time.
        """
        ...


def remote_of(url: str, timeout: float) -> Remote:
    """Return the file at a URL, or at a local path.

    Args:
        url: of it.
        timeout: in seconds, of each wait.

    Raises:
        FlexrelError: the URL is none.
    """
    try:
        scheme = urlsplit(url).scheme
    except ValueError as error:
        raise FlexrelError(f"{url}: is no address: {_line(error)}") from error
    if scheme in ("http", "https"):
        return _Http(url, timeout)
    if scheme == "file":
        return _Local(unquote(urlsplit(url).path))
    return _Local(url) if len(scheme) <= 1 else _Fsspec(url)  # a letter is a drive


def read_all(url: str, timeout: float = 30.0, most: int = 2**24) -> bytes:
    """Return all bytes of a small file at a URL.

    Args:
        url: as for `remote_of`.
        timeout: likewise.
        most: that it may have.

    Raises:
        FlexrelError: it is not there, can't be reached or is too long.
    """
    try:
        with closing(remote_of(url, timeout).open(0, None, "")) as answer:
            data = b""
            for chunk in answer.chunks:
                data += chunk
                if len(data) > most:
                    raise FlexrelError(f"{url}: has more than {most:,} bytes")
            return data
    except Unreachable as error:
        raise FlexrelError(f"{url}: {error}") from error


def beside(url: str, ending: str) -> str:
    """Return the URL with more at the end of its path, before any query."""
    parts = urlsplit(url)
    if len(parts.scheme) <= 1:
        return url + ending
    return urlunsplit(parts._replace(path=parts.path + ending))


class _Local:
    def __init__(self, path: str) -> None:
        self.name = path

    def open(self, start: int, stop: int | None, tag: str) -> Answer:
        del stop
        try:
            file = Path(self.name).open("rb")  # noqa: SIM115 - the answer closes it
        except FileNotFoundError as error:
            raise MissingError(f"{self.name}: no such file") from error
        found = Path(self.name).stat()
        known = f"{found.st_mtime_ns}-{found.st_size}"
        start = file.seek(_resumed(start, found.st_size, tag, known))
        return Answer(start, found.st_size, known, _chunks(file.read, ()), file.close)


class _Fsspec:
    def __init__(self, url: str) -> None:
        self.name = url

    def open(self, start: int, stop: int | None, tag: str) -> Answer:
        del stop
        system, path = file_system(self.name)
        try:
            found = system.info(path)
            file = system.open(path, "rb")
        except FileNotFoundError as error:
            raise MissingError(f"{self.name}: no such file") from error
        except OSError as error:
            raise Unreachable(_line(error)) from error
        total = int(found["size"])
        changed = (str(found.get(key, "")) for key in ("ETag", "mtime", "created", "LastModified"))
        known = "-".join((str(total), *changed))
        start = file.seek(_resumed(start, total, tag, known))
        return Answer(start, total, known, _chunks(file.read, (OSError,)), file.close)


def file_system(url: str) -> tuple[Any, str]:
    """Return the file system of fsspec that a URL leads to, and the path in it.

    Raises:
        FlexrelError: there is none, or the extra `fsspec` is missing.
    """
    if find_spec("fsspec") is None:
        raise FlexrelError(
            f"{url}: anything but http(s) and local paths needs fsspec: "
            "pip install 'flexrel-edge[fsspec]'"
        )
    from fsspec.core import url_to_fs  # noqa: PLC0415

    try:
        system, path = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise FlexrelError(f"{url}: {_line(error)}") from error
    return system, path


class _Http:
    def __init__(self, url: str, timeout: float) -> None:
        self.name = url
        self._timeout = timeout

    def open(self, start: int, stop: int | None, tag: str) -> Answer:
        headers = {"Accept-Encoding": "identity"}
        if start or stop is not None:
            headers["Range"] = f"bytes={start}-{'' if stop is None else stop - 1}"
        if start and tag:
            headers["If-Range"] = tag
        request = urllib.request.Request(self.name, headers=headers)  # noqa: S310 - http(s) alone
        try:
            found = _OPENER.open(request, timeout=self._timeout)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and "Range" in headers:
                return self.open(0, None, "")  # it is shorter than that, by now
            raise self._refused(error) from error
        except (ValueError, http.client.InvalidURL) as error:  # of a redirect too
            raise FlexrelError(
                f"{self.name}: is no address, or leads to none: {_line(error)}"
            ) from error
        except _LINK as error:
            raise Unreachable(_line(error)) from error
        try:
            return self._answer(found, start)
        except BaseException:
            found.close()
            raise

    def _answer(self, found: Any, asked: int) -> Answer:  # noqa: ANN401 - urllib has no type for it
        headers = found.headers
        if headers.get("Content-Encoding", "identity") != "identity":
            raise FlexrelError(f"{self.name}: the server sends it in another encoding")
        tag = headers.get("ETag") or headers.get("Last-Modified") or ""
        tag = "" if tag.startswith("W/") else tag  # a weak one does not tell byte from byte
        length = headers.get("Content-Length")
        if length is not None and not _BYTES.fullmatch(length):
            raise self._senseless("Content-Length", length)
        start, total = 0, None if length is None else int(length)
        if found.status == http.client.PARTIAL_CONTENT:
            start, total = self._range(headers.get("Content-Range", ""))
            if start != asked:
                raise Unreachable("the server answers with another range than was asked for")
        return Answer(start, total, tag, _chunks(found.read1, _LINK), found.close)

    def _range(self, text: str) -> tuple[int, int | None]:
        """Return the first byte of an answer, and the length of the whole file if that is told."""
        found = _RANGE.fullmatch(text)
        if found is None:
            raise self._senseless("Content-Range", text)
        first, last = int(found[1]), int(found[2])
        total = None if found[3] == "*" else int(found[3])
        if last < first or (total is not None and last >= total):
            raise self._senseless("Content-Range", text)
        return first, total

    def _senseless(self, header: str, text: str) -> FlexrelError:
        shown = repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")
        return FlexrelError(
            f"{self.name}: the server says {shown} for {header}, which makes no sense; "
            "pull from another one, or mend what stands between"
        )

    def _refused(self, error: urllib.error.HTTPError) -> MissingError | Unreachable:
        what = f"{error.code} {error.reason}"
        if error.code in _CLIENT and error.code not in _PASSING:
            return MissingError(f"{self.name}: {what}")
        wait = error.headers.get("Retry-After", "")
        return Unreachable(what, float(wait) if wait.isdecimal() else 0.0)


class _Redirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any) -> Any:  # noqa: ANN401 - as urllib has it
        request, to = args[0], args[-1]
        if request.type == "https" and urlsplit(to).scheme != "https":
            raise FlexrelError(f"{request.full_url}: leads to {to}, which is not encrypted")
        return super().redirect_request(*args)


_OPENER: Final = urllib.request.build_opener(_Redirect)
_LINK: Final = (http.client.HTTPException, OSError)  # what a bad connection raises


def _resumed(start: int, total: int, tag: str, known: str) -> int:
    return start if start <= total and tag in ("", known) else 0


def _chunks(read: Callable[[int], bytes], failures: tuple[type[Exception], ...]) -> Iterator[bytes]:
    while True:
        try:
            chunk = read(_CHUNK)
        except failures as error:
            raise Unreachable(_line(error)) from error
        if not chunk:
            return
        yield chunk


def _line(error: BaseException) -> str:
    return " ".join(str(getattr(error, "reason", error)).split()) or type(error).__name__
