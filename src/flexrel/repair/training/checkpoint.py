"""A training on disk: written whole or not at all, and only gone on with by the same run."""

import functools
import inspect
import io
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from flexrel.errors import PackError, UsageError
from flexrel_edge.files import replace_file

_FORMAT = "flexrel fine-tuning"
_VERSION = 1
_SHOWN = 24  # characters of a setting that fits into a message

FilePath = str | os.PathLike[str]


def save(path: FilePath, settings: Mapping[str, str], state: Mapping[str, Any]) -> None:
    """Write the state of a run, beside the file and renamed, so that a kill leaves the last one.

    Args:
        path: of the file; replaced if it exists.
        settings: what the run was started with, by name.
        state: tensors and plain values.

    Raises:
        UsageError: the state holds objects that could not be read back without trusting the file,
            or the file can't be written.
    """
    content = {"format": _FORMAT, "version": _VERSION, "settings": dict(settings), **state}
    data = io.BytesIO()
    torch.save(content, data)
    data.seek(0)
    if unsafe := torch.serialization.get_unsafe_globals_in_checkpoint(data):
        raise UsageError(
            f"checkpoint= can't hold this optimizer's or schedule's state, which has "
            f"{', '.join(sorted(unsafe))}; use others, or checkpoint=None"
        )
    try:
        replace_file(path, data.getvalue())
    except OSError as error:
        raise UsageError(f"{path}: can't be written: {error.strerror}") from error


def load(path: FilePath, settings: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the state that `save` wrote, on the CPU; None if there is no file.

    Raises:
        PackError: the file is damaged, or no checkpoint.
        UsageError: it is of a run with other settings; says which differ.
    """
    if not Path(path).exists():
        return None
    content = _read(path)
    theirs = content["settings"]
    names = [name for name in settings if theirs.get(name) != settings[name]]
    if names:
        differ = ", ".join(_difference(name, theirs.get(name), settings[name]) for name in names)
        raise UsageError(
            f"{path}: is the checkpoint of another run, whose settings differ: {differ}; "
            "remove the file, or pass another path"
        )
    return content


def _read(path: FilePath) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as file:
            if broken := file.testzip():  # torch.load does not look at the checksums
                raise PackError(f"{path}: is damaged in {broken!r}; remove it to start again")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, ValueError, LookupError, RuntimeError, EOFError, TypeError) as error:
        raise PackError(f"{path}: can't be read, or it is damaged: {_line(error)}") from error
    except (zipfile.BadZipFile, pickle.UnpicklingError) as error:
        raise PackError(f"{path}: is no checkpoint, or it is damaged: {_line(error)}") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise PackError(f"{path}: is no checkpoint of a training")
    if content.get("version") != _VERSION:
        raise PackError(f"{path}: is version {content.get('version')}, expected {_VERSION}")
    return content


def _line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _difference(name: str, theirs: str | None, ours: str) -> str:
    if theirs is None or max(len(theirs), len(ours)) > _SHOWN:
        return name
    return f"{name} ({theirs} there, {ours} here)"


def told(value: object) -> str:
    """Return a setting as a text that is the same in every process."""
    if isinstance(value, functools.partial):
        return f"{told(value.func)}(*{value.args}, **{value.keywords})"
    if inspect.isroutine(value) or inspect.isclass(value):
        return f"{value.__module__}.{value.__qualname__}"
    if callable(value):
        return told(type(value))
    return str(value)
