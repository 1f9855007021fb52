"""What a name on the command line stands for: something in a file or a package of the user's."""

import ast
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any, Final
from urllib.parse import parse_qsl

from flexrel.errors import UsageError

_WORDS: Final = {"true": True, "false": False, "none": None}
_INSTALLED_AS: Final = {"PIL": "pillow"}
_SHOWN: Final = 12  # names in an error


def made_by(spec: str, what: str, forms: str) -> Any:  # noqa: ANN401 - whatever the user's code has
    """Return what a name stands for, as `found_by` does; what a function or class makes of it.

    It is called with what follows a "?": `timm.create_model?model_name=resnet18`.

    Args:
        spec: the name.
        what: it is to be, in errors.
        forms: that can be written instead, in errors.

    Raises:
        UsageError: there is no such thing, or it fails.
    """
    found = found_by(spec, what, forms)
    if not (inspect.isroutine(found) or inspect.isclass(found) or isinstance(found, partial)):
        return found  # a network or a loader itself
    try:
        return found(**arguments(spec.partition("?")[2]))
    except Exception as error:
        raise UsageError(f"{spec} failed: {type(error).__name__}: {error}") from error


def function_by(spec: str, what: str, forms: str) -> Callable[[Any], Any] | None:
    """Return the function of one argument that a name stands for; None if it is no such function.

    Arguments that follow a "?" are given to it already; raises as `made_by` does.
    """
    found = found_by(spec, what, forms)
    if not (inspect.isroutine(found) or isinstance(found, partial)):
        return None
    given = arguments(spec.partition("?")[2])
    try:
        taken = inspect.signature(found).parameters.values()
    except (TypeError, ValueError):  # of what is no Python function
        return None
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [one for one in taken if one.kind in plain and one.default is one.empty]
    if sum(one.name not in given for one in needed) != 1:
        return None
    return partial(found, **given) if given else found


def found_by(spec: str, what: str, forms: str) -> Any:  # noqa: ANN401 - whatever the user's code has
    """Return what `file.py:name`, `package.module:name` or `package.module.name` names.

    Args:
        spec: the name; what follows a "?" is left alone.
        what: it is to be, in errors.
        forms: that can be written instead, in errors.

    Raises:
        UsageError: there is no such thing.
    """
    path = spec.partition("?")[0]
    place, colon, name = path.rpartition(":" if ":" in path or path.endswith(".py") else ".")
    if not colon and path.endswith(".py"):
        public = ", ".join(_public(_file(Path(path)))) or "nothing that can be called"
        raise UsageError(f"which {what} in {path}? It has {public}; write {path}:NAME")
    if not place or not name:
        raise UsageError(f"{what} {spec!r} is not understood; give {forms}")
    module = _file(Path(place)) if place.endswith(".py") else _module(place, spec, forms)
    if not hasattr(module, name):
        public = ", ".join(_public(module)[:_SHOWN]) or "none"
        raise UsageError(f"{place} has no function {name!r}; it has {public}")
    return getattr(module, name)


def arguments(query: str) -> dict[str, Any]:
    """Return the arguments of `name=resnet18&num_classes=10`: numbers, true, false, none, texts."""
    return {name: _value(text) for name, text in parse_qsl(query, keep_blank_values=True)}


def _value(text: str) -> Any:  # noqa: ANN401 - an argument of the user's function
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def library(name: str, spec: str) -> ModuleType:
    """Import a library that only some names need.

    Raises:
        UsageError: it is not installed, or can't be loaded; says what to do.
    """
    try:
        return importlib.import_module(name)
    except Exception as error:
        package = name.partition(".")[0]
        if importlib.util.find_spec(package) is None:
            installed = _INSTALLED_AS.get(package, package)
            raise UsageError(f"{spec} needs {installed}: pip install {installed}") from error
        raise UsageError(
            f"{spec} needs {package}, which is installed but can't be loaded: "
            f"{type(error).__name__}: {error}. {conflict(package)}"
        ) from error


def conflict(package: str) -> str:
    """Return what to do about a package that is installed and can't be loaded."""
    found = versions("torch", "torchvision")
    torch, other = found["torch"] or "", found["torchvision"]
    if package in ("torchvision", "timm") and other is not None:
        kind = torch.partition("+")[2]  # such as "cpu", or none of what PyPI has
        index = f" --index-url https://download.pytorch.org/whl/{kind}" if kind else ""
        return (
            f"torchvision {other} has to be of the same build as torch {torch}; install both from "
            f"one place: pip install --force-reinstall torch torchvision{index}"
        )
    return f"pip install --force-reinstall {package} may mend it"


def versions(*packages: str) -> Mapping[str, str | None]:
    """Return the version of each package, None for those that are not installed."""
    found: dict[str, str | None] = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def _public(module: ModuleType) -> list[str]:
    """Return the names that a module has and that can be called, those of its own first."""
    names = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
    return sorted(
        names, key=lambda key: getattr(vars(module)[key], "__module__", "") != module.__name__
    )


def _file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path}: is not a Python file")
    module = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)  # so that it can import its neighbours, as when it is run
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UsageError(f"{path} failed: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(folder)
    return module


def _module(name: str, spec: str, forms: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        if ":" not in spec and isinstance(error, ModuleNotFoundError):
            raise UsageError(f"{spec!r} is not understood; give {forms}") from error
        raise UsageError(f"module {name!r} can't be imported: {error}") from error
