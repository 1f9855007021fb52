"""One reading of a batch, whatever form the caller's loader gives it in."""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from flexrel.core.forms import (
    LISTED,
    LOADER,
    batches_of,
    check_further,
    made_of,
    numbers_of,
    parts_of,
    renamed,
)
from flexrel.errors import UsageError

RawBatch = Any  # a tensor, a tuple (inputs, labels, ...), a dict as transformers have it, a Batch
RawBatches = Iterable[RawBatch] | Dataset[Any]
_SHOWN = 4  # kinds in an error
EXAMPLE_SAMPLES = 2  # that structure is read on, and exports are made with


@dataclass(frozen=True, slots=True)
class Batch:
    """The inputs of one call of the model, and their labels and weights if there are any."""

    index: int  # counting from 0
    args: tuple[Tensor, ...]
    kwargs: Mapping[str, Any]
    labels: Tensor | None  # numbers, one or more for each sample
    weights: Tensor | None = None  # how often each sample counts
    unread: str = ""  # why there are no labels, where something else was given
    whole: bool = False  # whether it may not be cut into samples

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shapes of all input tensors."""
        return [tuple(tensor.shape) for tensor in self.tensors]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All input tensors, positional first."""
        named = tuple(v for v in self.kwargs.values() if isinstance(v, Tensor))
        return self.args + named

    def mapped(self, change: Callable[[Any], Any]) -> "Batch":
        """Return the batch with each argument, labels and weights changed."""
        kwargs = {name: change(value) for name, value in self.kwargs.items()}
        args, rest = tuple(map(change, self.args)), (change(self.labels), change(self.weights))
        return Batch(self.index, args, kwargs, *rest, self.unread, self.whole)

    @property
    def samples(self) -> int:
        """Length of the first axis of the inputs: of that which fits labels or weights, if any."""
        lengths = [len(tensor) for tensor in self.tensors if tensor.ndim]
        told = [len(t) for t in (self.labels, self.weights) if t is not None and t.ndim]
        return next((length for length in told if length in lengths), len(self.tensors[0]))


def check_repeatable(batches: RawBatches) -> None:
    """Raise a UsageError if evaluation batches can be gone through only once."""
    if isinstance(batches, Iterator):
        raise UsageError("evaluation batches are an iterator, gone after one use; pass a list")


def collect(batches: RawBatches) -> list[RawBatch]:
    """Return all batches in a list, to go through them again and again.

    Raises:
        UsageError: it is one tensor, which would be gone through sample by sample; or they take
            more than half of the machine's memory.
    """
    _check_iterable(batches)
    if isinstance(batches, list | tuple):  # they are there already
        return list(batches)
    kept: list[RawBatch] = []
    taken, most = 0, memory_bytes() / 2
    for raw in batches_of(batches):
        kept.append(raw)
        taken += sum(t.numel() * t.element_size() for t in _tensors_in(raw))
        if taken > most:
            raise UsageError(
                f"{len(kept):,} batches take {taken / 1e9:,.3g} GB, more than half of this "
                "machine's memory, and calibration keeps all; some hundred samples do: pass some, "
                "such as list(itertools.islice(loader, 8))"
            )
    return kept


def memory_bytes() -> float:
    """Return how much memory the machine has; infinite where it does not say."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):  # of systems without
        return math.inf


def _tensors_in(raw: RawBatch) -> Iterator[Tensor]:
    if isinstance(raw, Tensor):
        yield raw
    elif isinstance(raw, Batch):
        yield from raw.tensors
    elif isinstance(raw, Mapping | tuple | list):
        for one in raw.values() if isinstance(raw, Mapping) else raw:
            yield from _tensors_in(one)


def _check_iterable(batches: RawBatches) -> None:
    if isinstance(batches, Tensor):  # iterable too, but sample by sample
        raise UsageError(
            f"the batches are one tensor of shape {tuple(batches.shape)}; "
            "pass an iterable of batches, for one batch a list of one"
        )
    parts = batches if isinstance(batches, tuple) else ()
    tensors = [part for part in parts if isinstance(part, Tensor)]
    if len(tensors) == len(parts) and len({part.ndim for part in tensors}) > 1:
        raise UsageError(
            f"the batches are {len(parts)} tensors that differ in axes, as inputs and labels do; "
            "pass a list of batches, [(inputs, labels)], or torch.utils.data.TensorDataset(inputs, "
            "labels); of several inputs [((a, b), labels)]"
        )
    if not isinstance(batches, Iterable) and not hasattr(batches, "__getitem__"):
        raise UsageError(
            f"the batches are a {type(batches).__name__}; pass an iterable of batches, such as a "
            "list or a loader"
        )


def read_batches(batches: RawBatches, model: nn.Module) -> Iterator[Batch]:
    """Yield each batch on the model's device, checked.

    Args:
        batches: tensors; tuples `(inputs, labels, ...)`, where what follows the labels is left
            alone, and several inputs are a tuple or a dict of their own, `((a, b), labels)`; or
            dicts with the model's keyword arguments and, under "labels" or "label", labels, under
            "sample_weight" how often each sample counts; a single input may have any name. Or a
            `torch.utils.data.Dataset` of samples, which are taken 64 a batch. Labels that are no
            numbers, or not as many as samples, are left to whoever needs labels to refuse.
        model: tells the device that inputs go to.

    Raises:
        UsageError: a batch has another form, no sample, or a NaN or infinity (says which).
    """
    _check_iterable(batches)
    device = device_of(model)
    for index, raw in enumerate(batches_of(batches)):
        check_further(raw, index, model)
        yield read_batch(renamed(raw, model), index, device)


def samples_of(batches: RawBatches, model: nn.Module) -> int:
    """Return how many samples the batches have in all; raises as `read_batches` does."""
    return sum(batch.samples for batch in read_batches(batches, model))


def device_of(model: nn.Module) -> torch.device:
    """Return where the model's first parameter is; the CPU for a model without any."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def read_batch(raw: RawBatch, index: int, device: torch.device) -> Batch:
    """Return the batch of that number on the device, checked; raises as `read_batches` does."""
    if isinstance(raw, Batch):
        there = all(tensor.device == device for tensor in raw.tensors)
        return replace(raw if there else _moved(raw, device), index=index)
    args, kwargs, labels, weights = parts_of(raw, index)
    given = [*args, *kwargs.values()]
    tensors = [v for v in given if isinstance(v, Tensor)]
    if not tensors or not all(isinstance(v, Tensor) for v in args):
        kinds = [type(v).__name__ for v in given]
        found = ", ".join(kinds[:_SHOWN]) + (" ..." if len(kinds) > _SHOWN else "")
        found = found or "nothing"
        listed = any(_are_tensors(v) for v in given)
        advice = f"; {LISTED}" if listed else ""
        advice = next(filter(None, map(made_of, given)), advice)
        raise UsageError(f"batch {index} has no input tensor, but {found}{advice}")
    counts = None if weights is None else numbers_of(weights)
    if weights is not None and counts is None:
        kind = type(weights).__name__
        raise UsageError(f"weights of batch {index} are a {kind} that is no tensor of numbers")
    whole = Batch(index, args, kwargs, None if labels is None else numbers_of(labels), counts)
    batch = _with_fitting(_moved(whole, device), labels)
    weights = batch.weights
    for tensor in batch.tensors:
        if tensor.ndim == 0 or tensor.numel() == 0:
            raise UsageError(
                f"batch {index} has an input of shape {tuple(tensor.shape)}: no sample"
            )
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            bad = int((~tensor.isfinite()).sum())
            raise UsageError(
                f"batch {index} (counting from 0) has {bad:,} NaN or infinite values "
                f"of {tensor.numel():,}"
            )
    if weights is not None and not _are_weights(weights, batch.samples):
        raise UsageError(
            f"weights of batch {index} must be {batch.samples} numbers from 0 on, not all 0, but "
            f"are {list(weights.shape)} of {str(weights.dtype).removeprefix('torch.')}"
        )
    return batch


def _are_tensors(value: object) -> bool:
    return isinstance(value, list | tuple) and any(isinstance(one, Tensor) for one in value)


def _are_weights(weights: Tensor, samples: int) -> bool:
    if weights.shape != (samples,) or weights.is_complex() or weights.dtype == torch.bool:
        return False
    return bool(weights.isfinite().all() and (weights >= 0).all() and weights.any())


def _moved(batch: Batch, device: torch.device) -> Batch:
    def placed(value: Any) -> Any:  # noqa: ANN401 - of the user's model
        if not isinstance(value, Tensor):
            return value
        there = value.to(device)
        return there.clone() if there.is_inference() else there  # autograd refuses those

    return batch.mapped(placed)


def _with_fitting(batch: Batch, given: Any) -> Batch:  # noqa: ANN401 - of the loader
    """Return the batch with labels, or with the reason why those given are none."""
    labels, unread = batch.labels, ""
    if given is not None and labels is None:
        unread = f"has labels that are a {type(given).__name__}, no tensor of numbers"
    elif labels is not None and labels.ndim == 0:
        unread = f"has {batch.samples} inputs but one label for all; {LOADER}"
    elif labels is not None and len(labels) != batch.samples:
        unread = f"has {batch.samples} inputs but {len(labels)} labels"
    return replace(batch, labels=None, unread=unread) if unread else batch


def missing_labels(batch: Batch) -> str:
    """Return what a batch has instead of labels, to be said where they are needed."""
    return f"batch {batch.index} {batch.unread or 'has no labels'}"


def first_samples(batch: Batch, count: int = EXAMPLE_SAMPLES) -> Batch:
    """Return the batch cut to its first `count` samples: by default to an example."""
    return samples_in(batch, slice(count))


def samples_in(batch: Batch, where: slice) -> Batch:
    """Return the batch cut to some of its samples; as it is where it may not be cut."""
    if batch.whole:
        return batch
    size = batch.samples

    def cut(value: Any) -> Any:  # noqa: ANN401 - arguments of the user's model
        whole = isinstance(value, Tensor) and value.ndim > 0 and len(value) == size
        return value[where] if whole else value

    return batch.mapped(cut)
