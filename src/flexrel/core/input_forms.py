"""Inputs that a network does not run on, and the form in which it does: what to do about them."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Final

import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode

from flexrel.core.batches import Batch
from flexrel.core.forms import LISTED, LOADER, SEVERAL_INPUTS, signature_of

_Change = Callable[[Tensor], Tensor]
_IMAGES: Final = 4  # axes: [samples, height, width, channels]
_NOTHING: Final = inspect.Parameter.empty  # the default of what must be given
_TABLE: Final = 2  # axes: [samples, columns]
_SPARE: Final = 4  # columns that are no inputs, at most
_CHANNELS: Final = (1, 3, 4)
_BYTES: Final = (torch.uint8, torch.int8, torch.int16)


def better_form(model: nn.Module, batch: Batch) -> str:
    """Return what to do if a model does not run on a batch: a form that it runs on; else nothing.

    Nothing too where what runs is watched: it must not run again.
    """
    try:
        signature_of(model).bind(*batch.args, **batch.kwargs)
    except TypeError:
        return _other_arguments(model, batch)
    if _get_current_function_mode() is not None:
        return ""
    bytes_in = any(tensor.dtype == torch.uint8 for tensor in batch.tensors)
    scaled = ", of bytes mostly x / 255" if bytes_in else ""
    forms = chain(_forms(model, scaled), _narrower(batch))
    return next((f"; {told}" for told, change in forms if _runs(model, batch, change)), "")


def _other_arguments(model: nn.Module, batch: Batch) -> str:
    """Return what to do where a batch has other arguments than a model takes."""
    images = {(tensor.ndim, len(tensor)) for tensor in batch.args if tensor.ndim == _IMAGES - 1}
    if len(images) == 1 < len(batch.args) and _get_current_function_mode() is None:
        first = replace(batch, args=batch.args[:1])
        if _runs(model, first, lambda x: x[None] if x.ndim == _IMAGES - 1 else x):
            return (
                "; it runs on images one by one: pass [image[None] for images, *_ in loader for "
                "image in images], or of one size torch.stack(images)"
            )
    alike = len({tensor.shape for tensor in batch.args}) == 1 < len(batch.args)
    return f"; pass {_inputs_of(model, batch)}{f'; {LISTED}' if alike else ''}"


def _inputs_of(model: nn.Module, batch: Batch) -> str:
    """Return how inputs are passed to a model that takes others than a batch has."""
    taken = signature_of(model).parameters.values()
    needed = [one.name for one in taken if one.kind is one.POSITIONAL_OR_KEYWORD]
    needed = [name for name in needed if signature_of(model).parameters[name].default is _NOTHING]
    if len(needed) < 2:  # noqa: PLR2004
        return SEVERAL_INPUTS
    names = ", ".join(needed)
    has = f", where the batch has {', '.join(batch.kwargs)}" if batch.kwargs else ""
    return (
        f"what it takes, {names}{has}: batches (({names}), labels), of a loader "
        f"[(({names}), labels) for {names}, labels in loader], or dicts of these names and "
        "'labels'"
    )


def _runs(model: nn.Module, batch: Batch, change: _Change) -> bool:
    """Return whether a model runs on a batch that is changed so, if that changes it."""
    try:
        with torch.no_grad():
            args = tuple(map(change, batch.args))
            kwargs = {
                name: change(value) if isinstance(value, Tensor) else value
                for name, value in batch.kwargs.items()
            }
            named = tuple(value for value in kwargs.values() if isinstance(value, Tensor))
            pairs = zip(batch.tensors, (*args, *named), strict=True)
            if all(a.shape == b.shape and a.dtype == b.dtype for a, b in pairs):
                return False
            model(*args, **kwargs)
    except Exception:  # noqa: BLE001 - of the user's model
        return False
    return True


def _forms(model: nn.Module, scaled: str) -> Iterator[tuple[str, _Change]]:
    """Yield forms that inputs may be meant in, in words and as a function.

    Args:
        model: whose inputs they are.
        scaled: how they are mostly scaled, in words.
    """
    floating = (one.dtype for one in model.parameters() if one.is_floating_point())
    dtype = next(floating, torch.float32)
    name = str(dtype)
    for told, change in (("", _same), (" with channels first, x.permute(0, 3, 1, 2),", _first)):
        made = f"made x.to({name}), scaled as in training{scaled}"
        if told:
            yield f"it runs on them{told.rstrip(',')}", change
        yield f"it runs on them{told} {made}", partial(_made, change, dtype)
    yield "it runs on them as whole numbers, x.long()", _whole
    yield f"it runs on them as one sample: {LOADER}", lambda x: x[None]
    yield "it runs on them with an axis of channels, x[:, None]", lambda x: x[:, None]
    yield "it runs on them with a row a sample, x.flatten(1)", lambda x: x.flatten(1)


def _narrower(batch: Batch) -> Iterator[tuple[str, _Change]]:
    """Yield the same with columns less: a label, or a number of the row, may be among them."""
    if len(batch.tensors) != 1 or batch.tensors[0].ndim != _TABLE:
        return
    columns = batch.tensors[0].shape[1]
    for less in range(1, min(_SPARE, columns - 1) + 1):
        rest = "" if less == 1 else "; leave out the others, &drop=NAME"
        told = (
            f"it runs on {columns - less} columns, and these are {columns}: is one the label? of a "
            f"table name it, FILE.csv?label=NAME{rest}; of arrays pass it beside the inputs, "
            "(x[:, :-1], x[:, -1])"
        )
        yield told, partial(_first_columns, columns - less)


def _first_columns(count: int, x: Tensor) -> Tensor:
    return x[:, :count]


def _made(change: _Change, dtype: torch.dtype, x: Tensor) -> Tensor:
    return change(x).to(dtype)


def _same(x: Tensor) -> Tensor:
    return x


def _first(x: Tensor) -> Tensor:
    return x.movedim(-1, 1) if x.ndim == _IMAGES and x.shape[-1] in _CHANNELS else x


def _whole(x: Tensor) -> Tensor:
    whole = x.is_floating_point() and bool((x == x.round()).all())
    return x.long() if whole or x.dtype in _BYTES else x
