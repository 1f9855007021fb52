"""MODEL as it is named on the command line: a network, and how its images are prepared."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from flexrel.cli import demo
from flexrel.cli.factories import arguments, library, made_by, why
from flexrel.cli.images import Preparation
from flexrel.cli.texts import HubTokenizer, Tokenizer
from flexrel.cli.weights import read_weights
from flexrel.core.class_names import ClassNames, configured_names
from flexrel.core.measurement import Progress
from flexrel.errors import UsageError
from flexrel.hub.folder import is_saved, load_from_folder

MODELS: Final = (
    "file.py:factory, package.module:factory, torchvision:NAME, timm:NAME, hf:FOLDER, a .pt2 or "
    "demo:digits"
)


@dataclass(frozen=True, slots=True)
class NamedModel:
    """A network, how images and texts become its inputs, and its classes, where that is known."""

    network: nn.Module
    preparation: Preparation | None = None
    classes: ClassNames = ()  # what they are called, by their numbers
    tokenizer: Tokenizer | None = None

    def called(self, names: ClassNames) -> ClassNames:
        """Return what classes are called: as given, or as whoever named it knows."""
        return names or self.classes or configured_names(self.network)


def read_model(spec: str, weights: Path | None, seed: int, progress: Progress) -> NamedModel:
    """Return the model that a MODEL argument names, with its weights.

    Args:
        spec: as in `MODELS`; arguments of a factory follow a "?", `timm:resnet18?num_classes=10`.
        weights: a file as `read_weights` takes it; None leaves the model as the factory made it.
        seed: of the demo's training.
        progress: told while the demo trains.

    Raises:
        UsageError: there is no such thing, a library for it is missing, or the weights do not fit.
        PackError: the weights are damaged, or pickled objects.
    """
    kind, colon, rest = spec.partition(":")
    if spec == "demo:digits":
        if weights is not None:
            raise UsageError("demo:digits is trained on the spot, so it takes no --weights")
        return NamedModel(demo.train(demo.digits(), seed, progress))
    known = colon and _LIBRARIES.get(kind)
    if known:
        found = known(rest, weights)
    elif Path(spec).suffix == ".pt2":
        found = NamedModel(_program(Path(spec)))
    else:
        found = _with_configuration(_own(spec))
    if weights is not None:
        read_weights(weights, found.network)
    return found


def _own(spec: str) -> nn.Module:
    found = made_by(spec, "model", MODELS)
    if not isinstance(found, nn.Module):
        raise UsageError(f"{spec} returned a {type(found).__name__}, not a torch.nn.Module")
    return found


def _program(path: Path) -> nn.Module:
    try:
        return torch.export.load(path).module()
    except Exception as error:
        raise UsageError(f"{path}: is no program of torch.export: {error}") from error


def _call(spec: str, make: Callable[..., Any], *args: object, **kwargs: object) -> Any:  # noqa: ANN401
    try:
        return make(*args, **kwargs)
    except Exception as error:
        raise UsageError(f"{spec} failed: {why(error)}") from error


def _check_trained(spec: str, weights: Path | None, wanted: object, how: str) -> None:
    if weights is None and not wanted:
        raise UsageError(
            f"{spec} without weights is untrained; give --weights FILE, or load the published ones "
            f"with '{how}'"
        )


def _torchvision(rest: str, weights: Path | None) -> NamedModel:
    """Return `torchvision:NAME?argument=value`, and what its published weights say of images."""
    name, _, query = rest.partition("?")
    spec, given = f"torchvision:{rest}", arguments(query)
    models = library("torchvision.models", spec)
    _check_trained(spec, weights, given.get("weights"), f"torchvision:{name}?weights=DEFAULT")
    taken = _call(spec, lambda: signature(models.get_model_builder(name)).parameters)
    if "weights_backbone" in taken and not given.get("weights"):  # which would be downloaded
        given = {"weights_backbone": None, **given}
    network = _call(spec, models.get_model, name, **given)
    classes: ClassNames = ()
    try:
        chosen = models.get_model_weights(name)[given.get("weights") or "DEFAULT"]
        classes = tuple(chosen.meta.get("categories", ())) if given.get("weights") else ()
        preset = chosen.transforms()
        (size,), (resize,) = preset.crop_size, preset.resize_size
        how = preset.interpolation.value
        found = Preparation(size, tuple(preset.mean), tuple(preset.std), resize, how)
    except (AttributeError, KeyError, TypeError, ValueError):  # of another task
        found = None
    return NamedModel(network, found, classes)


def _timm(rest: str, weights: Path | None) -> NamedModel:
    """Return `timm:NAME?argument=value`, and what its configuration says of images."""
    name, _, query = rest.partition("?")
    spec, given = f"timm:{rest}", arguments(query)
    timm = library("timm", spec)
    _check_trained(spec, weights, given.get("pretrained"), f"timm:{name}?pretrained=true")
    return _with_configuration(_call(spec, timm.create_model, name, **given))


def _with_configuration(network: nn.Module) -> NamedModel:
    """Return a network with what its configuration says of images, if it is one of timm's."""
    if not isinstance(getattr(network, "pretrained_cfg", None), Mapping):
        return NamedModel(network)
    told = library("timm.data", type(network).__name__).resolve_model_data_config(network)
    size, stretched = told["input_size"][-1], told["crop_mode"] == "squash"
    resize = math.floor(size / told["crop_pct"])
    mean, std = (tuple(told[key])[: told["input_size"][0]] for key in ("mean", "std"))
    return NamedModel(
        network, Preparation(size, mean, std, resize, told["interpolation"], stretched)
    )


def _hub(rest: str, weights: Path | None) -> NamedModel:
    """Return `hf:FOLDER`, or what the cache has of a name, as the class that its config names."""
    del weights  # the folder has its own; others replace them
    spec, folder = f"hf:{rest}", Path(rest)
    transformers = library("transformers", spec)
    if is_saved(folder):
        network = load_from_folder(folder)
        texts = HubTokenizer(rest, network)
        return NamedModel(network, _hub_preparation(folder), tokenizer=texts)
    try:
        config = transformers.AutoConfig.from_pretrained(rest, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{spec} is no folder with a config.json of transformers, and not in the cache; a "
            f"download is yours to start: hf download {rest}"
        ) from error
    names = config.architectures or []
    try:
        kind = getattr(transformers, names[0], None) if names else None
    except Exception as error:  # transformers imports what the class needs
        raise UsageError(f"{spec}: its class {names[0]} can't be loaded: {why(error)}") from error
    if kind is None:
        known = ", ".join(names) or "no class"
        raise UsageError(f"{spec}: its config.json names {known}, which transformers does not have")
    network = _call(spec, kind.from_pretrained, rest, local_files_only=True).eval()
    texts = HubTokenizer(rest, network)
    return NamedModel(network, _hub_preparation(folder), tokenizer=texts)


def _hub_preparation(folder: Path) -> Preparation | None:
    """Return what a `preprocessor_config.json` says of images; None if it says nothing."""
    try:
        told: Mapping[str, Any] = json.loads((folder / "preprocessor_config.json").read_text())
        size, crop = told["size"], told.get("crop_size")
        mean, std = tuple(map(float, told["image_mean"])), tuple(map(float, told["image_std"]))
        square = int(size if isinstance(size, int) else size.get("height") or size["shortest_edge"])
        cut = crop if told.get("do_center_crop") else None
        cut = cut["height"] if isinstance(cut, Mapping) else cut
        how = _FILTERS.get(told.get("resample", 2), "bilinear")
        stretched = cut is None and not (isinstance(size, Mapping) and "shortest_edge" in size)
        return Preparation(int(cut or square), mean, std, square, how, stretched)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


_FILTERS: Final = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
_LIBRARIES: Final[Mapping[str, Callable[[str, Path | None], NamedModel]]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "hf": _hub,
}
