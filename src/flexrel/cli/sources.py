"""MODEL, DATA and weights as they are named on the command line. Files are never unpickled."""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import nn

from flexrel.cli import demo
from flexrel.cli.weights import read_weights
from flexrel.core.batches import RawBatch
from flexrel.core.evaluate import Accuracy, Evaluate
from flexrel.core.measurement import Progress
from flexrel.errors import UsageError

_BATCH = 64  # samples, where the data do not come in batches
_FORMS = "file.py:factory, package.module:factory"


def read_model(spec: str, weights: Path | None, seed: int, progress: Progress) -> nn.Module:
    """Return the model that a MODEL argument names, with its weights.

    Args:
        spec: `file.py:factory`, `package.module:factory` or `demo:digits`.
        weights: a file as `read_weights` takes it; None leaves the model as the factory made it.
        seed: of the demo's training.
        progress: told while the demo trains.

    Raises:
        UsageError: there is no such thing, or the weights do not fit.
        PackError: the weights are damaged, or pickled objects.
    """
    if spec == "demo:digits":
        if weights is not None:
            raise UsageError("demo:digits is trained on the spot, so it takes no --weights")
        return demo.train(demo.digits(), seed, progress)
    model = _made(spec, "model")
    if not isinstance(model, nn.Module):
        raise UsageError(f"{spec} returned a {type(model).__name__}, not a torch.nn.Module")
    if weights is not None:
        read_weights(weights, model)
    return model


def read_data(spec: str, role: str) -> Iterable[RawBatch]:
    """Return the batches that a DATA argument names; they can be gone through again and again.

    Args:
        spec: `file.py:factory`, `package.module:factory`, an `.npz` with `x` and perhaps `y`,
            or `demo:digits`.
        role: "calibration" or "evaluation": which of the demo's data.

    Raises:
        UsageError: there is no such thing, or it holds no batches.
    """
    if spec == "demo:digits":
        data = demo.digits()
        return data.calibration if role == "calibration" else data.evaluation
    if spec.endswith(".npz"):
        return _npz(Path(spec))
    batches = _made(spec, "data")
    if not isinstance(batches, Iterable):
        raise UsageError(f"{spec} returned a {type(batches).__name__}, not an iterable of batches")
    return batches if iter(batches) is not batches else list(batches)


def read_evaluate(spec: str | None) -> Evaluate | None:
    """Return what tells how a network does: the accuracy on data, or a function `model -> numbers`.

    Args:
        spec: a DATA argument; or a function in a file or module that needs an argument, the model;
            None for nothing.

    Raises:
        UsageError: there is no such thing, or it holds no batches.
    """
    if spec is None:
        return None
    if spec != "demo:digits" and not spec.endswith(".npz"):
        function = _function(spec, "data")
        if _needs_argument(function):
            return function
    return Accuracy(read_data(spec, "evaluation"))


def _needs_argument(function: Callable[..., Any]) -> bool:
    parameters = inspect.signature(function).parameters.values()
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return any(one.kind in plain and one.default is one.empty for one in parameters)


def first_batch(batches: Iterable[RawBatch]) -> RawBatch:
    """Return the first of the batches; UsageError if there is none."""
    for batch in batches:
        return batch
    raise UsageError("the data hold no batch; one is needed as an example")


def _npz(path: Path) -> list[RawBatch]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            x = torch.from_numpy(np.atleast_1d(arrays["x"]))
            y = torch.from_numpy(arrays["y"]) if "y" in arrays else None
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such file of data") from error
    except KeyError as error:
        raise UsageError(
            f"{path}: has no array 'x'; save one with np.savez(path, x=..., y=...)"
        ) from error
    except (ValueError, OSError, TypeError, EOFError, BadZipFile) as error:
        raise UsageError(f"{path}: is no file of plain numpy arrays: {error}") from error
    if x.dtype == torch.float64:  # numpy's default, of no network
        x = x.float()
    if y is not None and len(x) != len(y):
        raise UsageError(f"{path}: has {len(x)} inputs but {len(y)} labels")
    cuts = range(0, len(x), _BATCH)
    if y is None:
        return [x[at : at + _BATCH] for at in cuts]
    return [(x[at : at + _BATCH], y[at : at + _BATCH]) for at in cuts]


def _function(spec: str, what: str) -> Callable[..., Any]:
    place, separator, name = spec.rpartition(":")
    if not separator or not name:
        more = ", an .npz" if what == "data" else ""
        raise UsageError(f"{what} {spec!r} is not understood; give {_FORMS}{more} or demo:digits")
    module = _file(Path(place)) if place.endswith(".py") else _module(place)
    function: Callable[..., Any] | None = getattr(module, name, None)
    if not callable(function):
        public = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
        raise UsageError(f"{place} has no function {name!r}; it has {', '.join(public) or 'none'}")
    return function


def _made(spec: str, what: str) -> Any:  # noqa: ANN401 - whatever the user's factory returns
    factory = _function(spec, what)
    try:
        return factory()
    except Exception as error:
        raise UsageError(f"{spec} failed: {type(error).__name__}: {error}") from error


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


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise UsageError(f"module {name!r} can't be imported: {error}") from error
