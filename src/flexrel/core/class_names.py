"""What classes, or labels, are called: as the caller says, or the data or the network know."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from torch import nn

from flexrel.errors import UsageError

ClassNames = tuple[str, ...]  # by the number of the class
_WITHIN: Final = ("batches", "dataset", "datasets")  # where what wraps data has them
_DEPTH: Final = 8  # wrappers in each other
_UNNAMED: Final = re.compile(r"LABEL_\d+")  # what transformers calls those without a name


def check_class_names(names: object) -> None:
    """Raise a UsageError if they are no list of texts."""
    told = names if isinstance(names, Sequence) and not isinstance(names, str) else [None]
    if not all(isinstance(one, str) and one for one in told):
        raise UsageError(
            f"class_names is {names!r}; pass a list of texts, the name of each class by its number"
        )


def names_in_data(*sources: object) -> ClassNames:
    """Return what data call their classes; none where they don't tell.

    Args:
        sources: data as they are read, the first that knows says: what wraps them is looked into,
            `.classes` is as torchvision's data sets have it, `.features` as those of `datasets`.
    """
    return next(filter(None, (_of_data(one, _DEPTH) for one in sources)), ())


def _of_data(source: Any, depth: int) -> ClassNames:  # noqa: ANN401 - whatever the data are
    features = getattr(source, "features", None)
    told = [getattr(source, "classes", None)]
    if isinstance(features, Mapping):
        told += [getattr(features.get(key), "names", None) for key in ("label", "labels")]
    for names in told:
        if isinstance(names, list | tuple) and names and all(isinstance(n, str) for n in names):
            return tuple(names)
    for key in _WITHIN if depth else ():
        inner = getattr(source, key, None)
        inner = inner[0] if isinstance(inner, list | tuple) and inner else inner
        if inner is not None and (found := _of_data(inner, depth - 1)):
            return found
    return ()


def configured_names(model: nn.Module) -> ClassNames:
    """Return what the network's configuration calls its classes, `id2label`; none without."""
    told = getattr(getattr(model, "config", None), "id2label", None)
    if not isinstance(told, Mapping) or not told:
        return ()
    by_number = {int(number): str(name) for number, name in told.items()}
    names = tuple(by_number.get(number, str(number)) for number in range(max(by_number) + 1))
    return () if all(map(_UNNAMED.fullmatch, names)) else names


def class_names(
    asked: Sequence[str], model: nn.Module, sources: Sequence[object], classes: int | None
) -> tuple[ClassNames, tuple[str, ...]]:
    """Return what classes are called, and a warning where data and network differ on it.

    Args:
        asked: by the caller, which goes before; none: as the data say, else the network.
        model: the network.
        sources: data, as `names_in_data` takes them.
        classes: how many the network tells apart; None: that is not known.

    Raises:
        UsageError: the caller gave names of more or fewer classes.
    """
    if asked:
        if classes is not None and len(asked) != classes:
            raise UsageError(
                f"class_names has {len(asked):,} names, and the network tells {classes:,} apart"
            )
        return tuple(asked), ()
    own, data = configured_names(model), names_in_data(*sources)
    differ = next((at for at, (a, b) in enumerate(zip(own, data, strict=False)) if a != b), None)
    if differ is None or {*map(str.lower, own)}.isdisjoint(map(str.lower, data)):
        return data or own, ()  # names of two kinds, as of wordnet and of people, tell nothing
    if own[differ].lower() == data[differ].lower():
        return data, ()
    line = (
        f"class {differ} is {data[differ]!r} in the data and {own[differ]!r} in the network's "
        "configuration; check that labels are numbered as in training"
    )
    return data, (line,)
