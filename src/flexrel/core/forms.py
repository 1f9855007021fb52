"""The forms that a loader gives batches in."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flexrel.errors import UsageError

SEVERAL_INPUTS = "several inputs as ((a, b), labels) or as a dict of the model's arguments"
_LABELS = ("labels", "label")
_WEIGHTS = "sample_weight"


def signature_of(model: nn.Module) -> inspect.Signature:
    """Return what the model's `forward` takes: anything, where it does not tell."""
    try:
        return inspect.signature(model.forward)
    except (TypeError, ValueError):  # of what is no Python function
        return inspect.signature(lambda *_, **__: None)


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
            f"pass {SEVERAL_INPUTS}"
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
        "(inputs, labels, ...), or a dict of the model's arguments"
    )


def numbers_of(values: object) -> Tensor | None:
    """Return the values as a tensor; None if they are no numbers."""
    try:
        return torch.as_tensor(values)
    except (LookupError, OverflowError, RuntimeError, TypeError, ValueError):
        return None
