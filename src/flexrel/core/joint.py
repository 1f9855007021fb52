"""Requests as batches, and several as one, for networks that answer each in it as alone."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flexrel.core.batches import Batch
from flexrel.core.network import private_copy
from flexrel.core.running import call, undisturbed
from flexrel.core.whole import same_outputs, telling_numbers
from flexrel.errors import FlexrelError


def copied(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Batch:
    """Return the arguments of a call, with copies of their tensors that autograd takes."""
    with torch.inference_mode(mode=False), torch.no_grad():
        return Batch(0, args, kwargs, None).mapped(
            lambda value: value.detach().clone() if isinstance(value, Tensor) else value
        )


def kind_of(batch: Batch) -> Hashable:
    """Return what batches have alike that may go together; None: this one goes alone.

    All its tensors have to have samples along their first axis; all but these, and all that is no
    tensor, has to be the same in each.
    """
    given = [*enumerate(batch.args), *batch.kwargs.items()]
    if any(t.ndim == 0 or len(t) != batch.samples for t in batch.tensors):
        return None
    kinds = [(name, _kind_of(value)) for name, value in given]
    return None if any(kind is None for _, kind in kinds) else tuple(kinds)


def _kind_of(value: Any) -> Hashable:  # noqa: ANN401 - arguments of the user's model
    if isinstance(value, Tensor):
        return value.dtype, value.device, tuple(value.shape[1:])
    plain = value is None or isinstance(value, bool | int | float | str)
    return (type(value).__name__, value) if plain else None


def as_one(batches: Sequence[Batch]) -> Batch:
    """Return batches of one kind, without labels and weights, as one."""
    first = batches[0]
    args = tuple(torch.cat(parts) for parts in zip(*(b.args for b in batches), strict=True))
    kwargs = {
        name: torch.cat([b.kwargs[name] for b in batches]) if isinstance(value, Tensor) else value
        for name, value in first.kwargs.items()
    }
    return Batch(first.index, args, kwargs, None)


def answers_alike(model: nn.Module, batches: Sequence[Batch]) -> bool | None:
    """Return whether the model's outputs for batches as one are those for each alone.

    None, where they have a NaN or infinity, which tells nothing.

    Args:
        model: a copy of it runs on each and on all as one.
        batches: of one kind.
    """
    try:
        network = private_copy(model)
        with undisturbed(network), torch.no_grad():
            whole = telling_numbers(call(network, as_one(batches)))
            each = [telling_numbers(call(network, batch)) for batch in batches]
            alone = [torch.cat(parts) for parts in zip(*each, strict=True)]
    except (
        FlexrelError,
        RuntimeError,
        ValueError,
    ):  # fixed to a number, or outputs of no one shape
        return False
    if not all(bool(tensor.isfinite().all()) for tensor in (*whole, *alone)):
        return None
    return same_outputs(model, whole, alone)
