"""Whether a network runs on a part of a batch; where it does not, batches are never cut.

Some networks are fixed to a number of samples, and some inputs have no samples along their first
axis: the two rows of a list of edges, the steps of a sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from flexrel.core.batches import EXAMPLE_SAMPLES, Batch, RawBatch, first_samples, read_batches
from flexrel.core.running import call, tensors_of, undisturbed
from flexrel.errors import ModelError

_NEAR = 1e-2  # the difference that another number of samples may make, as a share of the largest,
_STEPS = 8  # or so many steps of the coarsest precision
_TINY = 1e-30  # in place of a divisor that is 0


@dataclass(frozen=True, slots=True)
class UncutBatches:
    """Batches, and what of them may be cut.

    Attributes:
        batches: as they were given; or, marked to stay whole, those that the network runs on.
        warnings: what was found, a line each; none where batches may be cut.
    """

    batches: Sequence[RawBatch]
    warnings: tuple[str, ...] = ()


def uncut(model: nn.Module, batches: Sequence[RawBatch]) -> UncutBatches:
    """Return the batches, marked to stay whole if the network does not run on a part of one.

    It is run on the first batch of two samples or more, and on parts of that: on these its outputs
    have to be the same. Where they are random, parts tell nothing, and batches may be cut.

    Args:
        model: whose inputs they are.
        batches: as `read_batches` takes them.

    Raises:
        ModelError: the network does not run on that batch as it came.
        UsageError: as `read_batches` does.
    """
    batch = next((one for one in read_batches(batches, model) if one.samples > 1), None)
    reason = None if batch is None else _why_whole(model, batch)
    if batch is None or reason is None:
        return UncutBatches(batches)
    if spread := _spread(model, batch):
        told = (
            f"the network does not give the same twice: two calls on the same inputs differ by "
            f"{spread:.0%} of what its outputs vary by; all is measured with that noise, so leave "
            "it out in evaluation mode if you can"
        )
        return UncutBatches(batches, (told,))
    usable, unusable = list[Batch](), list[Batch]()
    for one in read_batches(batches, model):
        runs = one.samples == batch.samples or _runs(model, one)
        (usable if runs else unusable).append(replace(one, whole=True))
    told = (
        f"the network does not run on parts of a batch ({reason}), so batches are fitted and held "
        "out whole"
    )
    return UncutBatches(usable, tuple(filter(None, (told, _single(usable), _left(unusable)))))


def alike(batches: Sequence[RawBatch], model: nn.Module, example: Batch) -> UncutBatches:
    """Return the batches of the example's shapes, marked to stay whole.

    Args:
        batches: as `read_batches` takes them.
        model: whose inputs they are.
        example: of a program that takes no other shapes.
    """
    usable, unusable = list[Batch](), list[Batch]()
    for one in read_batches(batches, model):
        (usable if one.shapes == example.shapes else unusable).append(replace(one, whole=True))
    told = (
        f"the exported program takes inputs {example.shapes} alone, so batches are fitted and held "
        "out whole"
    )
    return UncutBatches(usable, tuple(filter(None, (told, _single(usable), _left(unusable)))))


def _single(usable: Sequence[Batch]) -> str:
    if len(usable) > 1:
        return ""
    return (
        "there is only one such batch, so repair and criteria are judged by what they were fitted "
        "to; pass two or more"
    )


def _left(unusable: Sequence[Batch]) -> str:
    if not unusable:
        return ""
    first = unusable[0]
    return (
        f"{len(unusable)} calibration batches were left out, the first of them batch {first.index} "
        f"of inputs {first.shapes}: the network does not run on these"
    )


def _why_whole(model: nn.Module, batch: Batch) -> str | None:
    """Return what is wrong with the network's outputs for a part of the batch; None: nothing."""
    lengths = dict.fromkeys(len(tensor) for tensor in batch.tensors)
    on_cpu = all(tensor.device.type == "cpu" for tensor in batch.tensors)
    if len(lengths) > 1 and not on_cpu:  # where an index out of range stops the whole process
        return f"its inputs have {' and '.join(map(str, lengths))} entries"
    with undisturbed(model), torch.no_grad():
        whole = telling_numbers(call(model, batch))
        if any(bool(tensor.isnan().any()) for tensor in whole):
            return None  # as it came: for others to say
        for count in _parts(batch.samples):
            tried = f"{count} of {batch.samples} samples"
            try:
                part = telling_numbers(call(model, first_samples(batch, count)))
            except ModelError as error:
                cause = error.__cause__ or error
                return f"{tried}: {next(iter(str(cause).splitlines()), type(cause).__name__)}"
            if not same_outputs(model, whole, part, count / batch.samples):
                return f"{tried}: other outputs for these than in the whole batch"
    return None


def _spread(model: nn.Module, batch: Batch) -> float:
    """Return by how much two calls on one batch differ, as a share of how outputs vary; or 0."""
    with undisturbed(model), torch.no_grad():
        one, other = (telling_numbers(call(model, batch)) for _ in range(2))
    if same_outputs(model, one, other) or [t.shape for t in one] != [t.shape for t in other]:
        return 0.0
    shares = [
        float((a.double() - b.double()).std() / a.double().std().clamp_min(_TINY))
        for a, b in zip(one, other, strict=True)
        if a.numel() > 1
    ]
    return max(shares, default=0.0)


def _parts(samples: int) -> list[int]:
    """Return numbers of samples, fewer than all: as many as an example has, and an odd one."""
    half = samples // 2
    odd = half - 1 + half % 2
    return sorted({min(EXAMPLE_SAMPLES, samples - 1), min(max(odd, 3), samples - 1)})


def _runs(model: nn.Module, batch: Batch) -> bool:
    try:
        with undisturbed(model), torch.no_grad():
            call(model, batch)
    except ModelError:
        return False
    return True


def telling_numbers(result: Any) -> list[Tensor]:  # noqa: ANN401 - whatever the model returns
    """Return the tensors that tell samples apart: scalars, as of a loss, only without others."""
    numbers = [tensor for tensor in tensors_of(result) if tensor.is_floating_point()]
    return [tensor for tensor in numbers if tensor.ndim] or numbers


def same_outputs(
    model: nn.Module, whole: Sequence[Tensor], part: Sequence[Tensor], share: float = 1.0
) -> bool:
    """Return whether outputs for the first samples are what they are in the whole batch.

    Args:
        model: whose precision says what is the same.
        whole: outputs of the whole batch, as `telling_numbers` returns them.
        part: of its first samples.
        share: how many samples these are, of all.
    """
    if len(part) != len(whole) and len(part) != len(whole) * share:  # a list with one a sample
        return False
    kinds = [t.dtype for t in (*model.parameters(), *whole) if t.is_floating_point()]
    coarsest = max((torch.finfo(kind).eps for kind in kinds), default=0.0)
    for every, some in zip(whole, part, strict=False):
        if every.ndim != some.ndim:
            return False
        for axis, (length, left) in enumerate(zip(every.shape, some.shape, strict=True)):
            if left != length:
                if left != length * share:
                    return False
                every = every.narrow(axis, 0, left)  # noqa: PLW2901
        apart = torch.where(every == some, 0.0, every.double() - some.double()).abs()
        if apart.numel() and not apart.max() <= max(_NEAR, _STEPS * coarsest) * every.abs().max():
            return False
    return True
