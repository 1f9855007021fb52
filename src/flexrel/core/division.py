"""Which samples are used for what: held out, spread over all of the data, joined in batches."""

from collections.abc import Iterable, Iterator, Sequence
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from flexrel.core.batches import Batch, RawBatch, read_batches, samples_in, samples_of

_JUDGED = 128  # calibration samples that judge and fit nothing, or
_MOST_JUDGED = 0.25  # of all
_JUDGED_UNFITTED = 512  # that judge where nothing is fitted


def divided(
    batches: Sequence[RawBatch], model: nn.Module, held: float
) -> Iterator[tuple[Batch | None, Batch | None]]:
    """Yield each batch in two: what stays of it, and what is held out; None where that is empty.

    Args:
        batches: as `read_batches` takes them.
        model: likewise.
        held: which share of all samples is held out: the last of each batch, or every so many
            batches where these are small; of batches that stay whole that share of them, at least
            one, but never the only one.
    """
    seen = taken = 0
    apart = _held_whole(len(batches), held)
    for at, batch in enumerate(read_batches(batches, model)):
        if batch.whole:
            yield (None, batch) if at in apart else (batch, None)
            continue
        seen += batch.samples
        out = min(int(held * seen) - taken, batch.samples)
        taken += out
        stay = batch.samples - out
        yield (
            samples_in(batch, slice(stay)) if stay else None,
            samples_in(batch, slice(stay, None)) if out else None,
        )


def _held_whole(count: int, held: float) -> set[int]:
    """Return which of `count` whole batches are held out: evenly spread, the last one too."""
    out = min(max(round(held * count), 1), count - 1) if held else 0
    return {(at + 1) * count // out - 1 for at in range(out)}


def spread(batches: Sequence[RawBatch], model: nn.Module, count: int) -> list[Batch]:
    """Return so many samples, evenly from all of the data, in batches that are no larger.

    Args:
        batches: as `read_batches` takes them; all of them are returned where they are no more.
        model: likewise.
        count: of samples.
    """
    share = count / max(samples_of(batches, model), 1)
    if share >= 1:
        return list(read_batches(batches, model))
    most = max(batch.samples for batch in read_batches(batches, model))
    found = (part for _, part in divided(batches, model, share) if part is not None)
    return joined(found, most) or list(read_batches(batches, model))


def joined(batches: Iterable[Batch], most: float = inf) -> list[Batch]:
    """Return fewer, larger batches: neighbours in one where all that they hold is by samples.

    Args:
        batches: in order.
        most: samples that one may have that several are joined in.
    """
    groups: list[list[Batch]] = []
    for batch in batches:
        size = sum(each.samples for each in groups[-1]) if groups else 0
        if groups and size + batch.samples <= most and _alike(groups[-1][0], batch):
            groups[-1].append(batch)
        else:
            groups.append([batch])
    return [_joined(group) if len(group) > 1 else group[0] for group in groups]


def _alike(one: Batch, other: Batch) -> bool:
    """Return whether the batches differ in their samples alone, and can follow one another."""
    if one.whole or other.whole:
        return False
    if len(one.args) != len(other.args) or list(one.kwargs) != list(other.kwargs):
        return False
    parts = _by_samples(one), _by_samples(other)
    shapes = [[t if t is None else (t.shape[1:], t.dtype) for t in part or ()] for part in parts]
    return None not in parts and shapes[0] == shapes[1]


def _by_samples(batch: Batch) -> list[Tensor | None] | None:
    """Return all that the batch holds, if every value of it is one entry a sample, or missing."""
    values = [*batch.args, *batch.kwargs.values(), batch.labels, batch.weights]
    fit = (v is None or (isinstance(v, Tensor) and v.shape[:1] == (batch.samples,)) for v in values)
    return values if all(fit) else None


def _joined(group: Sequence[Batch]) -> Batch:
    def cat(values: Sequence[Tensor | None]) -> Any:  # noqa: ANN401 - None where there is none
        return None if values[0] is None else torch.cat([v for v in values if v is not None])

    first = group[0]
    return Batch(
        first.index,
        tuple(cat(values) for values in zip(*(batch.args for batch in group), strict=True)),
        {name: cat([batch.kwargs[name] for batch in group]) for name in first.kwargs},
        cat([batch.labels for batch in group]),
        cat([batch.weights for batch in group]),
        first.unread,
    )


def fitted_and_judged(
    batches: Sequence[RawBatch], model: nn.Module, *, fits: bool = True
) -> tuple[Sequence[RawBatch], Sequence[RawBatch]]:
    """Return what scores and repairs are fitted to, and what they are judged by.

    A repair fits the very data it sees: by those, the criterion would be chosen that fits best,
    not that which holds on others. Scores alone fit nothing: all may measure, and judge.

    Args:
        batches: of calibration.
        model: whose inputs they are.
        fits: whether weights are fitted to them.
    """
    samples = max(samples_of(batches, model), 1)
    share = min(_JUDGED / samples, _MOST_JUDGED) if fits else _JUDGED_UNFITTED / samples
    if share >= 1:
        return batches, batches
    parts = list(divided(batches, model, share))
    fitted = [part for part, _ in parts if part is not None]
    judged = [part for _, part in parts if part is not None]
    return fitted if fits else batches, judged or fitted
