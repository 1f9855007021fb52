"""Arrays in files as data: `.npz`, `.npy`, and tensors of `torch.save`. Nothing is unpickled."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from flexrel.core.class_names import ClassNames
from flexrel.errors import UsageError

_INPUTS: Final = ("x", "X", "inputs", "images", "features", "data")  # as people call them
_LABELS: Final = ("y", "Y", "labels", "label", "targets", "target")
_PAIR: Final = 2  # inputs and labels
_SHOWN: Final = 8  # names in an error


@dataclass(frozen=True, slots=True)
class ArrayData:
    """Batches of arrays.

    Attributes:
        inputs: `[samples, ...]`.
        labels: `[samples, ...]`, if there are any.
        batch: how many there are in one.
        classes: what those are called whose labels were texts.
        more: further inputs, of networks that take several, in the order that they are taken in.
    """

    inputs: Tensor
    labels: Tensor | None
    batch: int
    classes: ClassNames = ()
    more: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        """Return how many batches there are."""
        return math.ceil(len(self.inputs) / self.batch)

    def __iter__(self) -> Iterator[Any]:
        """Yield `[batch, ...]`, several in a tuple, with labels if there are any."""
        for at in range(0, len(self.inputs), self.batch):
            part = slice(at, at + self.batch)
            several = tuple(x[part] for x in (self.inputs, *self.more))
            x = several if self.more else several[0]
            labels = None if self.labels is None else self.labels[part]
            yield (x, labels) if self.more or labels is not None else x


def array_data(spec: str, batch: int, names: ClassNames = ()) -> ArrayData:
    """Return the data in a file of arrays.

    Args:
        spec: an `.npz` with `x` and perhaps `y`, or such names as people have for these; others
            follow a "?": `mnist.npz?x=x_test&y=y_test`, several inputs in the order that the
            network takes them in: `cars.npz?x=image,table`. An `.npy` or a `.pt` with a tensor of
            inputs alone; a `.pt` with inputs and labels, or with such names.
        batch: how many samples there are in one.
        names: of the network's classes: labels that are texts stand for their numbers. Without any
            they are numbered in their order.

    Raises:
        UsageError: there is no such file or array, or it holds objects.
    """
    place, _, query = spec.partition("?")
    path = Path(place)
    if not path.is_file():
        raise UsageError(f"{path}: no such file of data")
    held = _held(path)
    asked = dict(parse_qsl(query))
    several = asked.pop("x", "").split(",")
    found = [_named(path, held, "x", _INPUTS, {"x": name} if name else {}) for name in several]
    if found[0] is None:
        has = ", ".join([*held][:_SHOWN]) or "none"
        raise UsageError(
            f"{path}: has no array 'x', but {has}; name those that count: {path}?x=NAME&y=NAME, of "
            "several inputs ?x=NAME,NAME"
        )
    inputs, *more = (_input(path, one) for one in found)
    labels, classes = _labels(path, _named(path, held, "y", _LABELS, asked), names)
    if labels is not None and len(inputs) != len(labels):
        raise UsageError(f"{path}: has {len(inputs)} inputs but {len(labels)} labels")
    if odd := [len(one) for one in more if len(one) != len(inputs)]:
        raise UsageError(f"{path}: has {len(inputs)} of the first input, {odd[0]} of another")
    return ArrayData(inputs, labels, batch, classes, tuple(more))


def arrays_of(made: object, spec: str, batch: int) -> ArrayData | None:
    """Return a tensor of all inputs, or a pair of inputs and labels, as data; None: it is neither.

    Raises:
        UsageError: there are other numbers of inputs and labels.
    """
    pair = made if isinstance(made, tuple | list) and len(made) == _PAIR else (made, None)
    whole = [isinstance(one, Tensor | np.ndarray) and one.ndim > 0 for one in pair]
    if whole[0] and pair[1] is None:
        return ArrayData(torch.as_tensor(pair[0]), None, batch)
    if not all(whole) or not isinstance(made, tuple):  # a list is one of batches
        return None
    x, y = map(torch.as_tensor, pair)
    if x.ndim == y.ndim and (len(x) != len(y) or x.shape == y.shape):  # two batches
        return None
    if len(x) != len(y):
        raise UsageError(f"{spec} returned {len(x)} inputs but {len(y)} labels")
    return ArrayData(x, y, batch)


def _held(path: Path) -> Mapping[str, Any]:
    """Return the arrays of a file by their names."""
    try:
        if path.suffix in (".pt", ".pth"):
            return _saved(torch.load(path, map_location="cpu", weights_only=True))
        with path.open("rb") as file:
            found = np.load(file, allow_pickle=False)
            if isinstance(found, np.ndarray):
                return {"x": found}
            with found as arrays:
                return {name: arrays[name] for name in arrays.files}
    except (ValueError, OSError, TypeError, EOFError, BadZipFile, LookupError) as error:
        raise UsageError(f"{path}: is no file of plain arrays: {error}") from error
    except Exception as error:  # a damaged pickle fails in any way
        raise UsageError(
            f"{path}: is damaged, or holds pickled objects, which can run code, and is refused; "
            "save tensors alone, torch.save((inputs, labels), path)"
        ) from error


def _saved(held: object) -> Mapping[str, Any]:
    if isinstance(held, Mapping):
        return {str(name): one for name, one in held.items()}
    if isinstance(held, tuple | list) and len(held) == _PAIR:
        return {"x": held[0], "y": held[1]}
    return {"x": held}


def _named(
    path: Path, held: Mapping[str, Any], role: str, known: Sequence[str], asked: Mapping[str, str]
) -> Any:  # noqa: ANN401 - an array or a tensor
    """Return the array that is asked for, or that has a known name; None: there is none."""
    if role in asked and asked[role] not in held:
        has = ", ".join([*held][:_SHOWN])
        raise UsageError(f"{path}: has no array {asked[role]!r}; it has {has}")
    name = asked.get(role) or next((one for one in known if one in held), None)
    return None if name is None else held[name]


def _input(path: Path, array: Any) -> Tensor:  # noqa: ANN401
    found = _tensor(path, array)
    return found.float() if found.dtype == torch.float64 else found  # numpy's, of no network


def _tensor(path: Path, array: Any) -> Tensor:  # noqa: ANN401
    try:
        return torch.as_tensor(np.atleast_1d(array) if isinstance(array, np.ndarray) else array)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"{path}: its inputs are no numbers: {error}") from error


def _labels(path: Path, array: Any, names: ClassNames) -> tuple[Tensor | None, ClassNames]:  # noqa: ANN401
    """Return labels as numbers, and what classes are called if they were texts."""
    if not (isinstance(array, np.ndarray) and array.dtype.kind in "US"):
        return None if array is None else _tensor(path, array), ()
    return numbered(array.astype(str).tolist(), str(path), names)


def numbered(texts: Sequence[str], source: str, names: ClassNames) -> tuple[Tensor, ClassNames]:
    """Return labels that are texts as class numbers, and what classes are called.

    Args:
        texts: a label a sample.
        source: of these, in errors.
        names: of the network's classes; none: they are numbered in their order.

    Raises:
        UsageError: the network has no such class.
    """
    found = sorted({*texts})
    known = {name.lower(): at for at, name in enumerate(names or found)}
    if strange := [text for text in found if text.lower() not in known]:
        raise UsageError(
            f"{source}: labels such as {strange[0]!r} are no names of the network's classes: "
            f"{', '.join(names[:_SHOWN])}; give --class-names FILE"
        )
    return torch.tensor([known[text.lower()] for text in texts]), names or tuple(found)
