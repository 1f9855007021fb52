"""The forms that a loader gives batches in."""

import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate

from flexrel.errors import UsageError

LISTED = (
    "of a network that takes a list of tensors make one that takes a tensor, whose forward(self, "
    "x) returns self.network(list(x))"
)
LOADER = (
    "samples come in batches, as torch.utils.data.DataLoader(samples, batch_size=64) makes them; "
    "of sizes that differ [x[None] for x in samples]"
)
SEVERAL_INPUTS = "several inputs as ((a, b), labels) or as a dict of the model's arguments"
_LABELS = ("labels", "label")
_CALLED: Final = ("targets", "target", "y")  # labels too, where no input is called so
_WEIGHTS = "sample_weight"
_BATCH: Final = 64  # samples of a data set


def signature_of(model: nn.Module) -> inspect.Signature:
    """Return what the model's `forward` takes: anything, where it does not tell."""
    try:
        return inspect.signature(model.forward)
    except (TypeError, ValueError):  # of what is no Python function
        return inspect.signature(lambda *_, **__: None)


def argument_names(model: nn.Module, count: int) -> list[str]:
    """Return the names by which `forward` takes its first positional arguments.

    Where it takes any number, the name that it gives them, numbered from 0; "input" where it does
    not tell.
    """
    taken = list(signature_of(model).parameters.values())
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [one.name for one in taken if one.kind in plain][:count]
    rest = next((one.name for one in taken if one.kind is one.VAR_POSITIONAL), "_")
    rest = "input" if rest == "_" else rest
    return [*names, *(f"{rest}_{at}" for at in range(count - len(names)))]


def batches_of(data: Iterable[Any] | Dataset[Any]) -> Iterable[Any]:
    """Return the data as batches: of a `torch.utils.data.Dataset` 64 samples each, else as it is.

    Raises:
        UsageError: when they are gone through, if samples can't be stacked.
    """
    return DataLoader(data, _BATCH, collate_fn=_stacked) if isinstance(data, Dataset) else data


def _stacked(samples: list[Any]) -> Any:  # noqa: ANN401 - whatever the samples are
    try:
        return default_collate(samples)
    except (RuntimeError, TypeError) as error:
        first = samples[0]
        parts = first if isinstance(first, tuple | list) else [first]
        raise UsageError(
            f"samples of the data set, such as ({', '.join(type(p).__name__ for p in parts)}), "
            "can't be stacked to a batch; give it a transform that returns tensors of one shape, "
            "or pass a DataLoader with a collate_fn"
        ) from error


def renamed(raw: Any, model: nn.Module) -> Any:  # noqa: ANN401 - of the loader
    """Return a dict with its one input under the name that the model takes it by.

    So {"pixel_values": x, "labels": y} is a batch for a model whose `forward` takes one tensor. And
    labels under another name that people have for them, where the model takes none of that name.
    Whatever else a batch is, and one whose names the model may take, stays as it is.
    """
    if not isinstance(raw, Mapping):
        return raw
    taken = signature_of(model).parameters.values()
    own = [p.name for p in taken if p.kind is p.POSITIONAL_OR_KEYWORD]
    free = any(p.kind is p.VAR_KEYWORD for p in taken)
    if not own or free:
        return raw
    if not any(name in raw for name in _LABELS):
        called = next((name for name in _CALLED if name in raw and name not in own), None)
        raw = {_LABELS[0] if name == called else name: value for name, value in raw.items()}
    inputs = [name for name in raw if name not in (*_LABELS, _WEIGHTS)]
    if len(inputs) != 1 or inputs[0] in (p.name for p in taken):
        return raw
    return {own[0] if name == inputs[0] else name: value for name, value in raw.items()}


def check_further(raw: object, index: int, model: nn.Module) -> None:
    """Raise a UsageError for a tuple whose second entry may be an input as well as a label."""
    if not isinstance(raw, tuple | list) or len(raw) <= 2:  # noqa: PLR2004 - inputs and labels
        return
    pair = [tuple(v.shape) for v in raw[:2] if isinstance(v, Tensor) and v.ndim > 1]
    taken = signature_of(model)
    names = [p.name for p in taken.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    if len(names) > 1 and len(pair) > 1 and pair[0] == pair[1]:
        raise UsageError(
            f"batch {index} is a tuple of {len(raw)}, which would be inputs, labels and what is "
            f"left alone, but its first two are alike and the model takes {', '.join(names[:3])}; "
            f"pass {SEVERAL_INPUTS}; or if they are samples of one batch, torch.stack(batch)"
        )


def parts_of(raw: object, index: int) -> tuple[tuple[Any, ...], dict[str, Any], Any, Any]:
    """Return positional and named arguments, labels and weights, as they were given."""
    if isinstance(raw, Tensor):
        return (raw,), {}, None, None
    if isinstance(raw, Mapping):
        kwargs = {k: v for k, v in raw.items() if k not in (*_LABELS, _WEIGHTS)}
        labels = next((raw[k] for k in _LABELS if k in raw), None)
        return (), kwargs, labels, raw.get(_WEIGHTS)
    if isinstance(raw, tuple | list) and raw:
        first, labels = (*raw, None)[:2]
        if isinstance(first, Mapping):
            args, kwargs, within, weights = parts_of(first, index)
            return args, kwargs, within if labels is None else labels, weights
        several = isinstance(first, tuple | list) and first
        return tuple(first) if several else (first,), {}, labels, None
    raise UsageError(
        f"batch {index} is a {type(raw).__name__}; a batch is a tensor, a tuple "
        f"(inputs, labels, ...), or a dict of the model's arguments{made_of(raw)}"
    )


def made_of(value: object) -> str:
    """Return how a tensor is made of what is none, of a kind that people have; else nothing."""
    if isinstance(value, np.ndarray):
        return "; make arrays tensors, torch.from_numpy(array), whose first axis counts samples"
    if isinstance(value, str | Path):
        return (
            "; texts are made into tokens first, tokenizer(texts, return_tensors='pt'), images in "
            "files into tensors, as in training"
        )
    if type(value).__module__.partition(".")[0] == "PIL":
        return (
            "; make images tensors as in training, by torchvision.transforms or by "
            "torch.from_numpy(numpy.array(image)).permute(2, 0, 1) / 255, scaled alike, and "
            "torch.stack(images[:64]) is a batch; of sizes that differ [x[None] for x in images]"
        )
    return ""


def numbers_of(values: object) -> Tensor | None:
    """Return the values as a tensor; None if they are no numbers."""
    try:
        return torch.as_tensor(values)
    except (LookupError, OverflowError, RuntimeError, TypeError, ValueError):
        return None
