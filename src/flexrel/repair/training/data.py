"""Which batches are trained on, in which order, and which are held out."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from flexrel.core.batches import Batch, RawBatch, device_of, read_batch, read_batches
from flexrel.core.fingerprint import digest
from flexrel.errors import UsageError

Augment = Callable[[Tensor, torch.Generator], Tensor]  # generator: of the tensor's device


@dataclass(frozen=True, slots=True)
class Source:
    """Batches that can be gone through again and again.

    Attributes:
        name: of the argument, for messages.
        batches: a list, or anything else that gives its batches anew each time.
        places: of a list, which of its batches; None: all, in the order in which they come.
    """

    name: str
    batches: Iterable[RawBatch]
    places: tuple[int, ...] | None

    def read(self, model: nn.Module, shuffle: torch.Generator | None = None) -> Iterator[Batch]:
        """Yield each batch on the model's device, a list's in an order that `shuffle` draws."""
        if self.places is None or not isinstance(self.batches, Sequence):
            yield from read_batches(self.batches, model)
            return
        order = torch.arange(len(self.places))
        if shuffle is not None:
            order = torch.randperm(len(self.places), generator=shuffle)
        for place in order.tolist():
            index = self.places[place]
            yield read_batch(self.batches[index], index, device_of(model))

    def first(self, model: nn.Module) -> Batch:
        """Return the first batch on the model's device; raise UsageError if there is none."""
        first = next(self.read(model), None)
        if first is None:
            raise UsageError(
                f"{self.name} gives no batch; pass a list, or a loader that gives them anew each "
                "time"
            )
        return first

    def told(self) -> str:
        """Return a text that differs if the batches of a list do; of others, what they are."""
        if self.places is None:
            return f"{type(self.batches).__name__} of {self.count()}"
        sha = hashlib.sha256()
        for batch in self.read(nn.Module()):
            tensors = (*batch.tensors, batch.labels, batch.weights)
            sha.update(digest((str(place), t) for place, t in enumerate(tensors)).encode())
        return sha.hexdigest()

    def count(self) -> int:
        """Return how many batches there are, by going through them if nothing tells."""
        if self.places is not None:
            return len(self.places)
        try:
            return len(self.batches)  # type: ignore[arg-type] # a loader's may raise TypeError too
        except TypeError:
            return sum(1 for _ in self.batches)


def split(
    data: Iterable[RawBatch], validation: Iterable[RawBatch] | float, seed: int
) -> tuple[Source, Source, str]:
    """Return the batches to train on, those to validate on, and what the latter are, in words.

    Args:
        data: all that there is to train on.
        validation: other batches, or the share of a list's to hold out: at least one, drawn at
            random, and not all. Of a list of one batch none is held out.
        seed: of the draw.

    Raises:
        UsageError: they are one tensor, or gone after one use, or can't be split.
    """
    source = _source(data, "data")
    if not isinstance(validation, float | int):
        held_out = _source(validation, "validation")
        return source, held_out, "batches given as validation="
    if source.places is None:
        raise UsageError(
            f"validation={validation:g} holds out a share of a list of batches, but data is a "
            f"{type(data).__name__}, which may order its batches anew each time; pass "
            "validation=batches"
        )
    count = len(source.places)
    if count <= 1:
        return source, source, "the training data, which is one batch"
    draw = torch.Generator().manual_seed(seed)
    out = min(max(round(validation * count), 1), count - 1)
    order = torch.randperm(count, generator=draw).tolist()
    held, rest = tuple(sorted(order[:out])), tuple(sorted(order[out:]))
    return (
        replace(source, places=rest),
        replace(source, places=held),
        f"{out} of {count} batches, held out",
    )


def _source(batches: Iterable[RawBatch], name: str) -> Source:
    if isinstance(batches, Tensor):
        raise UsageError(
            f"{name} is one tensor of shape {list(batches.shape)}; pass a list of batches, for one "
            "batch a list of one"
        )
    if isinstance(batches, Iterator):
        raise UsageError(f"{name} is an iterator, gone after one use; pass a list of batches")
    places = tuple(range(len(batches))) if isinstance(batches, Sequence) else None
    return Source(name, batches, places)


def augmented(batch: Batch, augment: Augment, draw: torch.Generator) -> Batch:
    """Return the batch with its first input tensor changed.

    Raises:
        UsageError: `augment` does not return a tensor of as many samples.
    """
    first = batch.tensors[0]
    made = augment(first, draw)
    if not isinstance(made, Tensor) or made.shape[:1] != first.shape[:1]:
        found = list(made.shape) if isinstance(made, Tensor) else type(made).__name__
        raise UsageError(
            f"augment= must return a tensor of {len(first)} samples, but returned {found} for "
            f"batch {batch.index}"
        )
    if batch.args:
        return replace(batch, args=(made, *batch.args[1:]))
    kwargs = {name: made if value is first else value for name, value in batch.kwargs.items()}
    return replace(batch, kwargs=kwargs)
