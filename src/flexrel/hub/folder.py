"""A pruned network to a folder and back; what was cut goes along, as texts beside the weights."""

import copy
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from flexrel.core.extras import extra_module
from flexrel.core.plan import dump
from flexrel.core.running import unwrapped
from flexrel.errors import PackError, UsageError
from flexrel.hub.card import CardNotes, model_card
from flexrel.io import cut_notes, names_of, restore_
from flexrel.pruning import Result

_WEIGHTS: Final = "model.safetensors"
_CLASS: Final = "flexrel_class"  # in its metadata: of the network
_EXTRA: Final = "hub"


def save_to_folder(
    result: Result,
    folder: str | Path,
    *,
    processing: object | Sequence[object] = (),
    data: str = "",
    command: str = "",
    push_to_hub: str | None = None,
) -> None:
    """Write a pruned network to a new folder, whole or not at all, and to the hub if asked.

    `model.safetensors` has its weights, and what of the network is narrower; `config.json` the
    configuration, if its class is one of transformers; `plan.json` and `result.json` what was done,
    and `README.md`, the model card, the evidence.

    Args:
        result: of `prune`; its network is still a module.
        folder: to make; an empty one may be there.
        processing: what prepares its inputs, as a tokenizer or an image processor of transformers,
            one or several: what has `save_pretrained(folder)` is written along.
        data: for the card: what it was calibrated and evaluated on.
        command: for the card: what pruned it.
        push_to_hub: "owner/name" of a repository, made if it is not there; uploaded to by
            huggingface_hub, as whoever is logged in, once the folder is
            written. None: nothing leaves this machine.

    Raises:
        UsageError: it is no result, an exported program, something is in the folder, what is given
            for processing can't be saved, or the extra "hub" that an upload takes is missing.
    """
    if not isinstance(result, Result):
        raise UsageError(
            f"flexrel.hub.save takes what flexrel.prune returned, not a {type(result).__name__}"
        )
    if result.form == "exported":
        raise UsageError(
            "this network is an exported program, which no class can take; save it with "
            "result.save(folder), which writes model.pt2"
        )
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{folder}: is there already; name a new folder")
    parts = processing if isinstance(processing, list | tuple) else (processing,)
    for part in parts:
        if not callable(getattr(part, "save_pretrained", None)):
            raise UsageError(f"processing has a {type(part).__name__}, without save_pretrained")
    hub = None if push_to_hub is None else extra_module("huggingface_hub", _EXTRA, "the hub")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as beside:
        made = Path(beside, "made")
        made.mkdir()
        for part in parts:
            part.save_pretrained(made)
        _write(result, made, data, command, push_to_hub or target.name)
        made.replace(target)
    if hub is not None:
        api = hub.HfApi()
        api.create_repo(push_to_hub, exist_ok=True)
        api.upload_folder(repo_id=push_to_hub, folder_path=str(target))


def _write(result: Result, folder: Path, data: str, command: str, name: str) -> None:
    """Write the network, its configuration, its records and its card to a folder."""
    model = result.model
    kind, config = type(model).__name__, _config_of(model)
    base = ""
    if config is not None:
        base = str(getattr(config, "_name_or_path", ""))
        config.save_pretrained(folder)
        generation = getattr(model, "generation_config", None)
        if generation is not None:
            generation.save_pretrained(folder)
    tensors, tied = names_of(model)
    tensors |= _unsaved(model)
    notes = {"format": "pt", _CLASS: kind, **cut_notes(model, tied)}
    held = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    (folder / _WEIGHTS).write_bytes(safetensors.torch.save(held, notes))
    (folder / "plan.json").write_bytes(replace(result.plan, model="").encode())
    record = result.as_json()
    (folder / "result.json").write_bytes(dump(record))
    into = "" if config is not None else f", into={kind}(...)"
    card = CardNotes(
        name=kind,
        loading=f'import flexrel\n\nmodel = flexrel.hub.load("{name}"{into})',
        base=base if base.count("/") == 1 and not Path(base).exists() else "",
        transformers=config is not None,
        data=data,
        command=command,
    )
    text = model_card(record, result.asked, card)
    (folder / "README.md").write_text(text, encoding="utf-8")


def _config_of(model: nn.Module) -> Any:  # noqa: ANN401 - of transformers, an extra
    """Return the model's configuration as it is to be saved; None if it has none."""
    own = getattr(model, "config", None)
    if not callable(getattr(own, "save_pretrained", None)):
        return None
    config: Any = copy.deepcopy(own)
    config.architectures = [type(model).__name__]
    return config


def _unsaved(model: nn.Module) -> dict[str, Tensor]:
    """Return the buffers of fractions that no state has: another dtype may have made others."""
    saved = model.state_dict().keys()
    return {
        name: buffer
        for name, buffer in model.named_buffers()
        if name not in saved and buffer.is_floating_point()
    }


def load_from_folder(folder: str | Path, into: nn.Module | None = None) -> nn.Module:
    """Return the network that `flexrel.hub.save` wrote, with its class and widths, offline.

    Args:
        folder: that `flexrel.hub.save` wrote.
        into: a network of the class that was pruned, dense, changed in place and returned; None:
            one is made by the configuration, of the class of transformers that it names, in
            evaluation mode and in the dtypes that were saved.

    Raises:
        UsageError: the folder or its weights are missing, or others wrote them; its class is not
            one of transformers, and there is no `into`, or `into` is of another.
        PackError: the weights are damaged.
    """
    where = Path(folder)
    tensors, notes = _read(where)
    kind = notes[_CLASS]
    if into is not None:
        found = type(unwrapped(into)).__name__
        if found != kind:
            raise UsageError(f"{folder} holds a {kind}, and into= is a {found}")
        restore_(into, tensors, notes, str(folder))
        return into
    if not (where / "config.json").is_file():
        raise UsageError(
            f"{folder} holds a {kind}, which no configuration tells how to make; pass into=, a "
            f"{kind} as it was before it was pruned"
        )
    transformers = extra_module("transformers", _EXTRA, f"a {kind}")
    try:
        made = getattr(transformers, kind, None)
    except Exception as error:  # transformers imports what the class needs
        raise UsageError(
            f"{folder} holds a {kind}, which transformers can't load: {error}; `flexrel doctor` "
            "says what of its libraries is broken"
        ) from error
    if made is None:
        raise UsageError(
            f"{folder} holds a {kind}, which transformers does not have; pass into=, a {kind} as "
            "it was before it was pruned"
        )
    config = transformers.AutoConfig.from_pretrained(where, local_files_only=True)
    with torch.random.fork_rng(devices=()):  # its first weights are drawn, and replaced
        network = made(config).eval()
    _cast_(network, tensors)
    restore_(network, tensors, notes, str(folder))
    return network  # type: ignore[no-any-return]


def is_saved(folder: str | Path) -> bool:
    """Return whether a folder has weights that `flexrel.hub.save` wrote."""
    try:
        with safe_open(Path(folder) / _WEIGHTS, framework="pt") as file:
            return _CLASS in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False


def _read(folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors in a folder, and the texts beside them."""
    path = folder / _WEIGHTS
    if not path.is_file():
        missing = f"has no {_WEIGHTS}" if folder.is_dir() else "no such folder"
        raise UsageError(f"{folder}: {missing}; flexrel.hub.load takes what flexrel.hub.save wrote")
    try:
        with safe_open(path, framework="pt") as file:
            notes = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise PackError(f"{path}: is no file of safetensors, or damaged: {error}") from error
    if _CLASS not in notes:
        raise UsageError(f"{path}: was not written by flexrel.hub.save; load it as you did before")
    return tensors, notes


def _cast_(network: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Give a network's parameters and buffers the dtypes of tensors of their names."""
    for name, slot in (*network.named_parameters(), *network.named_buffers()):
        if name in tensors and slot.dtype != tensors[name].dtype:
            slot.data = slot.data.to(tensors[name].dtype)
