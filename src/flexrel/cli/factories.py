"""What a name on the command line stands for: something in a file or a package of the user's."""

import ast
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any, Final
from urllib.parse import parse_qsl

from flexrel.errors import UsageError

_WORDS: Final = {"true": True, "false": False, "none": None}
_INSTALLED_AS: Final = {
    "PIL": "pillow",
    "cv2": "opencv-python",
    "sklearn": "scikit-learn",
    "skimage": "scikit-image",
    "yaml": "pyyaml",
}
_KNOWN: Final = {*_INSTALLED_AS, "torchvision", "torchaudio", "timm", "transformers", "datasets"}
_SHOWN: Final = 12  # names in an error
_ANY: Final = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_BUILDS: Final = "https://download.pytorch.org/whl/"  # of torch and what goes with it


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
    given = arguments(spec.partition("?")[2])
    _check_arguments(found, given, spec)
    try:
        return found(**given)
    except Exception as error:
        raise UsageError(f"{spec} failed: {why(error)}") from error


def _check_arguments(found: Callable[..., Any], given: Mapping[str, Any], spec: str) -> None:
    """Raise a UsageError for arguments that a function or a class does not take."""
    try:
        takes = inspect.signature(found)
    except (TypeError, ValueError):  # of what is no Python function
        return
    try:
        takes.bind(**given)
    except TypeError as error:
        named = [one for one in takes.parameters.values() if one.kind not in _ANY]
        needed = [one.name for one in named if one.default is one.empty]
        free = [one.name for one in named if one.default is not one.empty][:_SHOWN]
        told = [f"needs {', '.join(needed)}"] * bool(needed) + [f"takes {', '.join(free)}"] * bool(
            free
        )
        path = spec.partition("?")[0]
        example = f", as in {path}?{needed[0]}=..." if needed else ""
        raise UsageError(
            f"{spec}: {error}; it {' and '.join(told) or 'takes none'}{example}"
        ) from error


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
            needed = _INSTALLED_AS.get(package, package)
            raise UsageError(f"{spec} needs {needed}: {installing(package)}") from error
        raise UsageError(
            f"{spec} needs {package}, which is installed but can't be loaded: "
            f"{type(error).__name__}: {error}. {conflict(package)}"
        ) from error


def conflict(package: str) -> str:
    """Return what to do about a package that is installed and can't be loaded."""
    found = versions("torch", "torchvision")
    other = found["torchvision"]
    if package in ("torchvision", "timm") and other is not None:
        return (
            f"torchvision {other} has to be of the same build as torch {found['torch']}; install "
            f"both from one place: pip install --force-reinstall torch torchvision{_index()}"
        )
    return f"pip install --force-reinstall {package} may mend it"


def installing(package: str) -> str:
    """Return the command that installs a package, and leaves the torch that is there.

    That of PyPI which goes with torch brings a torch of its own, with CUDA.
    """
    name = _INSTALLED_AS.get(package, package)
    if not _index() or package not in ("torchvision", "torchaudio", "timm"):
        return f"pip install {name}"
    if package != "timm":
        return f"pip install {name}{_index()}"
    first = "" if versions("torchvision")["torchvision"] else f"{installing('torchvision')} && "
    return f"{first}pip install timm"


def _index() -> str:
    """Return the option of pip that takes builds such as that of torch; "" where PyPI has it."""
    kind = (versions("torch")["torch"] or "").partition("+")[2]  # such as "cpu"
    return f" --index-url {_BUILDS}{kind}" if kind else ""


def why(error: BaseException) -> str:
    """Return what an error in the user's code says, and what to do where a library is to blame."""
    said = f"{type(error).__name__}: {error}"
    parts = [error]
    while (inner := parts[-1].__cause__ or parts[-1].__context__) and inner not in parts:
        parts.append(inner)
    for part in parts:
        frames = [frame for frame, _ in traceback.walk_tb(part.__traceback__)]
        loaded = [f.f_globals.get("__name__") for f in frames if f.f_code.co_name == "<module>"]
        inside = {str(name).partition(".")[0] for name in loaded}
        if "torchvision::" in str(part) or "torchvision" in inside:
            return f"{said}. {conflict('torchvision')}"
        if isinstance(part, ModuleNotFoundError) and part.name:
            package = part.name.partition(".")[0]
            if package in _KNOWN:
                return f"{said}; {installing(package)}"
            return f"{said}; install what has it, or name its folder: PYTHONPATH=FOLDER flexrel ..."
    return said


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
        raise UsageError(f"{path} failed: {why(error)}") from error
    finally:
        sys.path.remove(folder)
    return module


def _module(name: str, spec: str, forms: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        if ":" not in spec and isinstance(error, ModuleNotFoundError):
            raise UsageError(f"{spec!r} is not understood; give {forms}") from error
        raise UsageError(f"module {name!r} can't be imported: {why(error)}") from error
