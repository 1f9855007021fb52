"""Files of weights as people have them, under the names of a model. Nothing is unpickled."""

import json
import warnings
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import torch
import typer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from flexrel.cli.paths import SCRIPTED, is_torchscript
from flexrel.core.running import unwrapped
from flexrel.errors import PackError, UsageError
from flexrel.io import fit, load

_STATES: Final = ("state_dict", "model_state_dict", "model")  # where checkpoints have it
_WRAPPERS: Final = ("module", "_orig_mod")  # parts of names, by DataParallel, by torch.compile
_SHOWN: Final = 5  # names in an error


def read_weights(path: Path, model: nn.Module) -> None:
    """Copy the weights of a file into the model, in place.

    Args:
        path: of a packed file, of safetensors, of an index of several of these (`.json`), or of
            what `torch.save` wrote: a state, alone or as "state_dict", "model_state_dict" or
            "model", or the one state in it. Names may begin with that of a holder, such as
            "model.", beside which there may be others, which is said, and have "module" and
            "_orig_mod" anywhere; or the model be one that holds the network.
        model: taken out of its wrappers.

    Raises:
        UsageError: there is no such file, or it does not fit the model.
        PackError: it is damaged, or has pickled objects.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file of weights")
    if path.suffix in (".npz", ".npy", ".onnx", ".pt2"):
        raise UsageError(
            f"{path}: a {path.suffix} is no file of weights; give safetensors, or what torch.save "
            "wrote of a state_dict"
        )
    if path.suffix == ".flexrel":
        load(path, into=model)
        return
    network = unwrapped(model)
    slots = network.state_dict(keep_vars=True)
    read = _shards(path) if path.suffix == ".json" else _one(path)
    tensors = _named(path, read, slots.keys())
    fit(network, {**_tied(tensors, slots), **tensors}, str(path))


def _named(
    path: Path, tensors: Mapping[str, Tensor], known: Collection[str]
) -> Mapping[str, Tensor]:
    """Return a file's tensors by the model's names; by its own, where none fits."""
    found = _renamed(tensors, known)
    if any(name in known for name in found):
        return found
    first, *others = {name.partition(".")[0] for name in known} or {""}
    if not others and all("." in name for name in known):  # the model holds the network alone
        inner = {name.partition(".")[2] for name in known}
        within = _named(path, tensors, inner)
        if any(name in inner for name in within):
            return {f"{first}.{name}": tensor for name, tensor in within.items()}
    return _held(path, tensors, known)


def _renamed(tensors: Mapping[str, Tensor], known: Collection[str]) -> Mapping[str, Tensor]:
    """Return the tensors by the model's names, wherever in a name wrappers put their own.

    And without the names of what holds the model, as a `LightningModule` does: first parts of names
    that all of them share. If none fits then, by the names of the file.
    """
    found = named = _by_name(tensors, known)
    while not any(name in known for name in named):
        first, *others = {name.partition(".")[0] for name in named} or {""}
        if others or not all("." in name for name in named):
            return found
        named = _by_name({n.removeprefix(f"{first}."): t for n, t in named.items()}, known)
    return named


def _held(
    path: Path, tensors: Mapping[str, Tensor], known: Collection[str]
) -> Mapping[str, Tensor]:
    """Return the tensors of the one holder in a file that has all of the model's; else all of them.

    As a `LightningModule` that has metrics or weights of a loss beside the network. What is left
    out is said.

    Raises:
        UsageError: there are several such holders.
    """
    names = {_unwrapped(name): name for name in tensors}
    wanted = {_unwrapped(name): name for name in known}
    end = f".{next(iter(wanted), '')}"
    holders = [name.removesuffix(end) for name in names if name.endswith(end)]
    whole = [h for h in holders if all(f"{h}.{name}" in names for name in wanted)]
    if len(whole) > 1:
        raise UsageError(
            f"{path}: has the model's tensors under {', '.join(map(repr, whole))}; save those that "
            f"count alone: {{n: t for n, t in state.items() if n.startswith('{whole[0]}.')}}"
        )
    if not whole:
        return tensors
    found = {full: tensors[names[f"{whole[0]}.{name}"]] for name, full in wanted.items()}
    rest = [name for name in names if not name.startswith(f"{whole[0]}.")]
    shown = ", ".join(rest[:_SHOWN]) + (" ..." if len(rest) > _SHOWN else "")
    typer.echo(f"{path}: its {whole[0]!r} is the network; left out: {shown}", err=True)
    return found


def _by_name(tensors: Mapping[str, Tensor], known: Collection[str]) -> dict[str, Tensor]:
    """Return the tensors by those names of a model that differ in names of wrappers alone."""
    of: dict[str, list[str]] = {}
    for name in known:
        of.setdefault(_unwrapped(name), []).append(name)
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        fitting = [] if name in known else of.get(_unwrapped(name), [])
        alone = len(fitting) == 1 and fitting[0] not in tensors and fitting[0] not in found
        found[fitting[0] if alone else name] = tensor
    return found


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _tied(tensors: Mapping[str, Tensor], slots: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors that the file has once and the model under more names, by the others."""
    first = {id(slot): tensors[name] for name, slot in slots.items() if name in tensors}
    return {name: first[id(slot)] for name, slot in slots.items() if id(slot) in first}


def _one(path: Path) -> Mapping[str, Tensor]:
    return _safetensors(path) if path.suffix == ".safetensors" else _saved(path)


def _shards(path: Path) -> Mapping[str, Tensor]:
    try:
        places = json.loads(path.read_text())["weight_map"]
        names = sorted(set(places.values()))
        plain = all(Path(name).name == name for name in names)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PackError(
            f"{path}: is no index of shards, which has "
            f'{{"weight_map": {{"tensor": "file in the same folder"}}}}: {error!r}'
        ) from error
    if not plain:
        raise PackError(f"{path}: names a shard in another folder; all have to lie beside it")
    tensors: dict[str, Tensor] = {}
    for name in names:
        shard = path.parent / name
        if not shard.is_file():
            raise UsageError(f"{path}: its shard {name} is not beside it; {len(names)} are needed")
        held = _one(shard)
        wanted = [tensor for tensor, place in places.items() if place == name]
        if missing := [tensor for tensor in wanted if tensor not in held]:
            raise UsageError(f"{path}: its shard {name} has no {missing[0]}, as the index says")
        tensors |= {tensor: held[tensor] for tensor in wanted}
    return tensors


def _safetensors(path: Path) -> Mapping[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise PackError(f"{path}: is no safetensors file, or it is damaged: {error}") from error


def _saved(path: Path) -> Mapping[str, Tensor]:
    if is_torchscript(path):
        raise UsageError(f"{path} is {SCRIPTED}")
    try:
        with warnings.catch_warnings(action="ignore"):  # of old pickles; they are refused anyway
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle fails in any way
        raise _refused(path) from error
    if not isinstance(state, Mapping):
        raise _refused(path)
    held: Mapping[str, Any] = state
    while not _is_state(held):
        inner = [held[key] for key in _STATES if isinstance(held.get(key), Mapping)]
        others = [one for one in held.values() if isinstance(one, Mapping) and _is_state(one)]
        inner = inner or (others if len(others) == 1 else [])
        if not inner:
            shown = ", ".join(f"{k!r}: {type(v).__name__}" for k, v in [*held.items()][:_SHOWN])
            more = " ..." if len(held) > _SHOWN else ""
            raise UsageError(
                f"{path}: holds no tensors by name, alone or as {', '.join(map(repr, _STATES))}; "
                f"it has {shown or 'nothing'}{more}"
            )
        held = inner[0]
    return held


def _refused(path: Path) -> PackError:
    """Return what is said of a file that is damaged, or of which objects it holds."""
    held = "is damaged, or holds pickled objects"
    with suppress(Exception):  # what is damaged fails in any way
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        held = (
            f"holds pickled objects, of {', '.join(sorted(unknown)[:_SHOWN])}" if unknown else held
        )
    state = f'torch.load({path.name!r}, weights_only=False)["state_dict"]'
    made = state if path.suffix == ".ckpt" else "model.state_dict()"
    return PackError(
        f"{path}: {held}, which can run code, and is refused. Convert it where it was made: "
        f'safetensors.torch.save_file({made}, "weights.safetensors")'
    )


def _is_state(state: Mapping[str, object]) -> bool:
    every = all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())
    return bool(state) and every
