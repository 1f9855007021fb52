"""The samples that structure is read on: few, or as many as a network of experts takes."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from flexrel.core.batches import Batch, RawBatch, first_samples, read_batches, samples_in
from flexrel.core.joint import as_one, kind_of
from flexrel.core.running import call, undisturbed
from flexrel.tracing import Op, OpRecorder

_SIZES: Final = (32, 256)  # samples, where some weights are not used on the first two


def telling_example(model: nn.Module, batches: Sequence[RawBatch]) -> Batch:
    """Return the samples, as few as do, on which the model uses the most of its weights.

    Two, for nearly all models. Where experts take turns, or branches are taken by what the inputs
    are, more are tried, up to 256; a batch that may not be cut is taken as it is.

    Args:
        model: whose inputs they are.
        batches: as `read_batches` takes them, one at least.
    """
    first = next(read_batches(batches[:1], model))
    best = first_samples(first)
    if first.whole or not (left := _unused(model, best)):
        return best
    for example in _larger(model, batches, first):
        unused = _unused(model, example)
        if unused >= left:
            break
        best, left = example, unused
    return best


def _larger(model: nn.Module, batches: Sequence[RawBatch], first: Batch) -> Iterator[Batch]:
    kind = kind_of(first)
    for size in _SIZES:
        taken = list[Batch]()
        for batch in read_batches(batches, model):
            missing = size - sum(one.samples for one in taken)
            if missing > 0 and (not taken or (kind is not None and kind_of(batch) == kind)):
                taken.append(samples_in(batch, slice(missing)))
        yield taken[0] if len(taken) == 1 else as_one(taken)


def _unused(model: nn.Module, batch: Batch) -> int:
    """Return how many entries the weights have that no operation takes in."""
    seen = _Taken()
    with undisturbed(model), torch.no_grad(), seen:
        call(model, batch)
    weights = {_storage(p): p.numel() for p in model.parameters() if p.ndim > 1}
    return sum(count for place, count in weights.items() if place not in seen.places)


class _Taken(OpRecorder):
    """Writes down whose memory operations take in."""

    def __init__(self) -> None:
        super().__init__()
        self.places: set[int] = set()

    def run(self, op: Op) -> Any:  # noqa: ANN401
        """Run the operation and note it."""
        self.places |= set(map(_storage, op.given()))
        return super().run(op)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
