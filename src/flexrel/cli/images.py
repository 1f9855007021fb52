"""A folder of images as data: a sub-folder a class, read, resized and scaled as in training."""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from flexrel.cli.factories import library
from flexrel.core.class_names import ClassNames
from flexrel.core.evaluate import LabelledData
from flexrel.errors import UsageError

_ENDINGS: Final = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_WHITE: Final = 255
_SHOWN: Final = 5  # names in an error
_BYTES: Final = 512 * 2**20  # of images that calibrate, which are kept in memory
IMAGENET: Final = "--size 224 --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225"


@dataclass(frozen=True, slots=True)
class Preparation:
    """How images become inputs: the shorter side to `resize`, the middle square of `size`, scaled.

    Attributes:
        size: of the square, in pixels.
        mean: of each channel, of values in [0, 1]; one channel: grey.
        std: likewise.
        resize: length of the shorter side, before the square is cut out; None: `size`.
        resample: a filter of Pillow, such as "bilinear" or "bicubic".
        stretched: resize to the square, whatever the image's sides, and cut nothing out.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int | None = None
    resample: str = "bilinear"
    stretched: bool = False

    def __post_init__(self) -> None:
        alike = len(self.mean) == len(self.std) in (1, 3)
        if self.size < 1 or not alike or not all(one > 0 for one in self.std):
            raise UsageError(
                f"images of size {self.size}, mean {self.mean} and std {self.std} can't be; give "
                f"one number a channel, 1 or 3 of them, as in {IMAGENET}"
            )


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """Batches of a folder of images, read anew each time that they are gone through.

    Attributes:
        files: the images.
        labels: the number of each one's class; None: they have none.
        preparation: how they become inputs.
        batch: how many there are in one.
        classes: the name of each, by its number; none, where there are no labels.
    """

    files: Sequence[Path]
    labels: Sequence[int] | None
    preparation: Preparation
    batch: int
    classes: Sequence[str] = ()

    def __len__(self) -> int:
        """Return how many batches there are."""
        return math.ceil(len(self.files) / self.batch)

    def __iter__(self) -> Iterator[Any]:
        """Yield `[samples, channels, size, size]`, with labels `[samples]` if there are any."""
        for start in range(0, len(self.files), self.batch):
            part = slice(start, start + self.batch)
            x = torch.stack([read_image(file, self.preparation) for file in self.files[part]])
            yield x if self.labels is None else (x, torch.tensor(self.labels[part]))


def image_folder(
    folder: Path, preparation: Preparation | None, batch: int, names: ClassNames = ()
) -> ImageFolder:
    """Return the images of a folder: of each sub-folder one class.

    Args:
        folder: with sub-folders, or with images whose class is not known.
        preparation: how they become inputs, if that is known.
        batch: how many there are in one.
        names: of the network's classes. Sub-folders that are called so have their numbers; others
            are numbered in the order of their names.

    Raises:
        UsageError: there are none, Pillow is missing, nothing says how they become inputs, or some
            of the sub-folders are called as classes are and others not.
    """
    inside = [one for one in folder.iterdir() if one.is_dir() and one.name[0] != "."]
    classes = _numbered(folder, inside, names)
    found = [(path, at) for at, one in classes for path in _images(one)]
    plain = [] if found else _images(folder)
    if not found and not plain:
        raise UsageError(
            f"{folder}: has no images ({', '.join(_ENDINGS)}), in it or in a sub-folder a class"
        )
    library("PIL.Image", f"a folder of images, {folder},")
    if preparation is None:
        raise UsageError(
            f"{folder}: how are the images prepared? Give --size, --mean and --std as in training, "
            f"such as {IMAGENET}"
        )
    files = [path for path, _ in found] or plain
    labels = [at for _, at in found] or None
    own = [one.name for _, one in classes]
    by_name = bool(classes) and own[0].lower() in map(str.lower, names)
    return ImageFolder(
        files, labels, preparation, batch, (names if by_name else own) if found else ()
    )


def _numbered(folder: Path, inside: list[Path], names: ClassNames) -> list[tuple[int, Path]]:
    """Return sub-folders with the numbers of their classes."""
    ordered, known = sorted(inside), {name.lower(): at for at, name in enumerate(names)}
    strange = [one.name for one in ordered if one.name.lower() not in known]
    if len(strange) == len(ordered):
        return [*enumerate(ordered)]
    if strange:
        raise UsageError(
            f"{folder}: the network has no class {', '.join(map(repr, strange[:_SHOWN]))}; it has "
            f"{', '.join(map(repr, names[:_SHOWN]))}{' ...' if len(names) > _SHOWN else ''}; call "
            "the sub-folders so, or give --class-names FILE"
        )
    return sorted((known[one.name.lower()], one) for one in ordered)


def kept_in_memory(data: Iterable[Any]) -> tuple[Iterable[Any], tuple[str, ...]]:
    """Return calibration data of which memory holds all, and a line if that is not all there is.

    Args:
        data: of a large folder of images so many are taken that they fit, spread over all of it.
    """
    if not isinstance(data, ImageFolder):
        return data, ()
    size, channels = data.preparation.size, len(data.preparation.mean)
    most, count = max(_BYTES // (4 * channels * size**2), 1), len(data.files)
    if count <= most:
        return data, ()
    places = [at * count // most for at in range(most)]
    files = [data.files[at] for at in places]
    labels = data.labels and [data.labels[at] for at in places]
    line = (
        f"of {count:,} images {most:,} are used to calibrate, spread over the folder: as many as "
        f"{_BYTES // 2**20} MiB hold; to choose others, name a folder of them"
    )
    return replace(data, files=files, labels=labels), (line,)


def image_notes(*sources: object) -> dict[str, str]:
    """Return what a packed file is to tell of images: how they become inputs.

    Args:
        sources: data as they are read, or what measures accuracy on such; of several folders of
            images the last says.
    """
    notes: dict[str, str] = {}
    for source in sources:
        folder = source.batches if isinstance(source, LabelledData) else source
        if isinstance(folder, ImageFolder):
            told = {name: one for name, one in asdict(folder.preparation).items() if one}
            notes["preprocessing"] = json.dumps(told)
    return notes


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in _ENDINGS)


def read_image(path: Path, preparation: Preparation) -> Tensor:
    """Return an image as `[channels, size, size]`, scaled.

    Raises:
        UsageError: it can't be read.
    """
    pillow = library("PIL.Image", f"the image {path}")
    kind = "L" if len(preparation.mean) == 1 else "RGB"
    how = getattr(pillow.Resampling, preparation.resample.upper())
    try:
        with pillow.open(path) as file:
            image = file.convert(kind)
    except OSError as error:
        raise UsageError(f"{path}: is no image that can be read: {error}") from error
    size, (width, height) = preparation.size, image.size
    shorter = preparation.resize or size
    longer = int(shorter * max(width, height) / min(width, height))
    target = (shorter, longer) if width <= height else (longer, shorter)
    image = image.resize((size, size) if preparation.stretched else target, how)
    left, top = (round((side - size) / 2) for side in image.size)
    image = image.crop((left, top, left + size, top + size))
    pixels = torch.from_numpy(np.array(image, np.float32)).reshape(size, size, -1).movedim(2, 0)
    mean, std = (torch.tensor(one).reshape(-1, 1, 1) for one in (preparation.mean, preparation.std))
    return (pixels / _WHITE - mean) / std


def prepared(
    own: Preparation | None, size: int | None, mean: str | None, std: str | None
) -> Preparation | None:
    """Return how images become inputs: as the options say, and else as the network knows.

    Args:
        own: what the network knows.
        size: of the option `--size`: the shorter side gets it, and the square.
        mean: of `--mean`, numbers with commas.
        std: likewise.

    Raises:
        UsageError: the options are no numbers, or not all that is needed.
    """
    given = (size, _numbers("--mean", mean), _numbers("--std", std))
    if own is not None:
        square = own if size is None else replace(own, size=size, resize=None)
        return replace(square, mean=given[1] or own.mean, std=given[2] or own.std)
    if given[0] and given[1] and given[2]:
        return Preparation(given[0], given[1], given[2])
    if any(given):
        raise UsageError(f"images take --size, --mean and --std together, such as {IMAGENET}")
    return None


def _numbers(option: str, text: str | None) -> tuple[float, ...]:
    if text is None:
        return ()
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(
            f"{option} {text!r} is no list of numbers like 0.485,0.456,0.406"
        ) from error
