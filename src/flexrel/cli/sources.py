"""DATA as they are named on the command line. Files are never unpickled."""

from collections.abc import Iterable
from pathlib import Path
from typing import Final
from zipfile import BadZipFile

import numpy as np
import torch
from torch.utils.data import Dataset

from flexrel.cli import demo
from flexrel.cli.factories import function_by, made_by
from flexrel.cli.images import Preparation, image_folder
from flexrel.core.batches import RawBatch
from flexrel.core.class_names import ClassNames
from flexrel.core.evaluate import Accuracy, Evaluate
from flexrel.core.forms import batches_of
from flexrel.errors import UsageError

_BATCH = 64  # samples, where the data do not come in batches
_FORMS: Final = (
    "a folder of images, an .npz with x and y, file.py:factory, package.module:factory or "
    "demo:digits"
)


def read_data(
    spec: str,
    role: str,
    preparation: Preparation | None = None,
    names: ClassNames = (),
) -> Iterable[RawBatch]:
    """Return the batches that a DATA argument names; they can be gone through again and again.

    Args:
        spec: a folder of images, an `.npz` with `x` and perhaps `y`, `file.py:factory`,
            `package.module:factory`, or `demo:digits`.
        role: "calibration" or "evaluation": which of the demo's data.
        preparation: how images become inputs, if that is known.
        names: of the network's classes, if they are known, as sub-folders of images may be called.

    Raises:
        UsageError: there is no such thing, or it holds no batches.
    """
    if spec == "demo:digits":
        data = demo.digits()
        return data.calibration if role == "calibration" else data.evaluation
    path = Path(spec)
    if path.is_dir():
        return image_folder(path, preparation, _BATCH, names)
    if path.suffix == ".npz":
        return _npz(path)
    if path.is_file() and path.suffix != ".py":
        raise UsageError(f"{spec}: a {path.suffix or 'file'} is no data that can be read; {_FORMS}")
    batches = made_by(spec, "data", _FORMS)
    if isinstance(batches, Dataset):
        return batches_of(batches)
    if not isinstance(batches, Iterable):
        raise UsageError(f"{spec} returned a {type(batches).__name__}, not an iterable of batches")
    return batches if iter(batches) is not batches else list(batches)


def read_evaluate(
    spec: str | None, preparation: Preparation | None = None, names: ClassNames = ()
) -> Evaluate | None:
    """Return what tells how a network does: the accuracy on data, or a function `model -> numbers`.

    Args:
        spec: a DATA argument; or a function in a file or module that needs an argument, the model;
            None for nothing.
        preparation: as in `read_data`.
        names: likewise.

    Raises:
        UsageError: there is no such thing, or it holds no batches.
    """
    if spec is None:
        return None
    path = Path(spec)
    if not (spec == "demo:digits" or path.exists() or path.suffix == ".npz"):
        function = function_by(spec, "data", _FORMS)
        if function is not None:
            return function
    return Accuracy(read_data(spec, "evaluation", preparation, names))


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
