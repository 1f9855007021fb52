"""Sending a small file: over HTTP, into a folder, or where fsspec leads; whole or not at all."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import unquote, urlsplit

from flexrel_edge.errors import FlexrelError
from flexrel_edge.files import replace_file
from flexrel_edge.remote import file_system


def send(data: bytes, url: str, timeout: float = 30.0) -> None:
    """Put a file's bytes to a place, over what is there.

    Args:
        data: all of them.
        url: http(s), for a PUT; a path; or what fsspec knows, with the extra of that name.
        timeout: seconds to wait for a server to say something.

    Raises:
        FlexrelError: it can't be sent; says why.
    """
    try:
        scheme = urlsplit(url).scheme
        if scheme in ("http", "https"):
            headers = {"Content-Type": "application/octet-stream"}
            request = urllib.request.Request(url, data, headers, method="PUT")  # noqa: S310
            urllib.request.urlopen(request, timeout=timeout).close()  # noqa: S310 - http(s) alone
        elif scheme == "file" or len(scheme) <= 1:  # a letter is a drive
            replace_file(Path(unquote(urlsplit(url).path)) if scheme == "file" else url, data)
        else:
            system, path = file_system(url)
            system.pipe_file(path, data)
    except urllib.error.HTTPError as error:
        error.close()
        raise FlexrelError(f"{url}: the server refuses it: {error.code} {error.reason}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise FlexrelError(f"{os.fspath(url)}: can't be sent: {reason}") from error
