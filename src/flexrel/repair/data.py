"""Which batches are trained on, in which order, and which are held out."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flexrel.core.batches import Batch, RawBatch, read_batch
from flexrel.errors import UsageError


@dataclass(frozen=True, slots=True)
class BatchSource:
    """Batches that can be gone through again and again.

    Attributes:
        name: of the argument, for messages.
        said: what they are, in words.
        device: that they are put on.
        batches: a list, or anything else that gives its batches anew each time.
        places: of a list, which of its batches; None: all, in the order in which they come.
    """

    name: str
    said: str
    device: torch.device
    batches: Iterable[RawBatch]
    places: tuple[int, ...] | None

    def __post_init__(self) -> None:
        if isinstance(self.batches, Tensor):
            raise UsageError(
                f"{self.name} is one tensor of shape {list(self.batches.shape)}; pass a list of "
                "batches, for one batch a list of one"
            )
        if isinstance(self.batches, Iterator):
            raise UsageError(
                f"{self.name} is an iterator, gone after one use; pass a list of batches"
            )

    def read(self, shuffle: torch.Generator | None = None) -> Iterator[Batch]:
        """Yield each batch, a list's in an order that `shuffle` draws."""
        if self.places is None or not isinstance(self.batches, Sequence):
            for index, raw in enumerate(self.batches):
                yield read_batch(raw, index, self.device)
            return
        count = len(self.places)
        order = torch.randperm(count, generator=shuffle) if shuffle else torch.arange(count)
        for place in order.tolist():
            index = self.places[place]
            yield read_batch(self.batches[index], index, self.device)

    def first(self) -> Batch:
        """Return the first batch; raise UsageError if there is none."""
        first = next(self.read(), None)
        if first is None:
            raise UsageError(
                f"{self.name} gives no batch; pass a list, or a loader that gives them anew each "
                "time"
            )
        return first

    def count(self) -> int:
        """Return how many batches there are, by going through them if nothing tells."""
        if self.places is not None:
            return len(self.places)
        try:
            return len(self.batches)  # type: ignore[arg-type] # a loader's may raise TypeError too
        except TypeError:
            return sum(1 for _ in self.batches)


def hold_out(
    data: Iterable[RawBatch],
    validation: Iterable[RawBatch] | float,
    device: torch.device,
    seed: int,
) -> tuple[BatchSource, BatchSource]:
    """Return the batches to train on, and those to validate on.

    Args:
        data: all that there is to train on.
        validation: other batches, or the share of a list's to hold out: at least one, drawn at
            random, and not all. Of a list of one batch none is held out.
        device: that they are put on.
        seed: of the draw.

    Raises:
        UsageError: they are one tensor, or gone after one use, or can't be split.
    """
    source = BatchSource("data", "all batches", device, data, _places(data))
    if not isinstance(validation, float | int):
        said = "batches given as validation="
        return source, BatchSource("validation", said, device, validation, _places(validation))
    if source.places is None:
        raise UsageError(
            f"validation={validation:g} holds out a share of a list of batches, but data is a "
            f"{type(data).__name__}, which may order its batches anew each time; pass "
            "validation=batches"
        )
    count = len(source.places)
    if count <= 1:
        return source, replace(source, said="the training data, which is one batch")
    out = min(max(round(validation * count), 1), count - 1)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    said = f"{out} of {count} batches, held out"
    return (
        replace(source, places=tuple(sorted(order[out:]))),
        replace(source, places=tuple(sorted(order[:out])), said=said),
    )


def _places(batches: Iterable[RawBatch]) -> tuple[int, ...] | None:
    return tuple(range(len(batches))) if isinstance(batches, Sequence) else None
