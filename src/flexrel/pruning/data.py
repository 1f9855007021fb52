"""Calibration data: what is fitted, what judges, the example; and whether they are like training's.

The first batch norm of a network remembers the mean and the variance of what came to it in
training. Data scaled in another way, or of another kind, miss them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from flexrel.core.batches import (
    Batch,
    RawBatch,
    RawBatches,
    collect,
    first_samples,
    read_batches,
    samples_of,
)
from flexrel.core.division import fitted_and_judged, spread
from flexrel.core.running import call, undisturbed
from flexrel.core.whole import UncutBatches, alike, uncut
from flexrel.errors import UsageError
from flexrel.pruning.examples import telling_example
from flexrel.tracing import Op, OpRecorder, check_batched

_FEW = 64  # samples that networks are repaired with that are only compared
_SAMPLES = 64  # looked at, of the first batch
_NORMS = ("batch_norm", "instance_norm")
_FAR = 1.0  # standard deviations that means may be off
_SPREAD = 2.0  # times that standard deviations may be larger or smaller


@dataclass(frozen=True, slots=True, eq=False)
class CalibrationData:
    """Inputs as a network will see them.

    Attributes:
        batches: all of them, as they were given.
        fitted: what scores and repairs are fitted to.
        few: some of these, of all parts alike, enough to tell better plans from worse; or all.
        judged: what criteria, repair and training are judged by.
        first: the first batch, which exports are made with.
        example: what structure is read on, and multiply-adds are counted with: samples, or a batch.
        samples: how many inputs there are in all.
        warnings: how batches are used where the network runs on no part of one, a line each.
    """

    batches: Sequence[RawBatch]
    fitted: Sequence[RawBatch]
    few: Sequence[RawBatch]
    judged: Sequence[RawBatch]
    first: Batch
    example: Batch
    samples: int
    warnings: tuple[str, ...] = ()


def calibration_data(model: nn.Module, calibration: RawBatches, *, fits: bool) -> CalibrationData:
    """Return the data, all of it kept in memory.

    Args:
        model: whose inputs they are.
        calibration: batches as `read_batches` takes them.
        fits: whether weights are fitted to them, so that some must be held out.

    Raises:
        UsageError: there is no batch, or one can't be used.
    """
    batches = collect(calibration)
    if not batches:
        raise UsageError("the calibration set is empty; pass at least one batch")
    check_batched(model, next(read_batches(batches[:1], model)))
    data = _divided(model, uncut(model, batches), fits=fits)
    if not data.first.whole:
        return data
    told = f"multiply-adds are those of one call, with inputs {data.first.shapes}"
    return replace(data, warnings=(*data.warnings, told))


def data_alike(
    model: nn.Module, data: CalibrationData, example: Batch, *, fits: bool
) -> CalibrationData:
    """Return what of the data a program takes that takes the example's shapes alone, uncut.

    Args:
        model: whose inputs they are.
        data: likewise.
        example: that the program was exported on.
        fits: as for `calibration_data`.
    """
    found = _divided(model, alike(data.batches, model, example), fits=fits)
    return replace(found, warnings=(*data.warnings, *found.warnings))


def _divided(model: nn.Module, found: UncutBatches, *, fits: bool) -> CalibrationData:
    batches = found.batches
    first = next(read_batches(batches[:1], model))
    fitted, judged = fitted_and_judged(batches, model, fits=fits)
    few = fitted if samples_of(fitted, model) < 2 * _FEW else spread(fitted, model, _FEW)
    samples = samples_of(batches, model)
    example = telling_example(model, batches)
    return CalibrationData(batches, fitted, few, judged, first, example, samples, found.warnings)


@dataclass(frozen=True, slots=True)
class InputShift:
    """How far values are from those of training, where a norm remembers these.

    Attributes:
        norm: name of the first that does.
        channels: of it.
        apart: root mean square, over channels, of the distance of means, in standard deviations of
            training.
        spread: median, over channels, of standard deviations, as multiples of training's.
    """

    norm: str
    channels: int
    apart: float
    spread: float

    @property
    def warns(self) -> bool:
        """Whether it is more than data of another mix of classes would explain."""
        return self.apart > _FAR or not 1 / _SPREAD <= self.spread <= _SPREAD

    def __str__(self) -> str:
        """Say it in a line."""
        return (
            f"calibration data are unlike what the network was trained on: at {self.norm!r} the "
            f"means of {self.channels} channels are {self.apart:.2g} standard deviations off, and "
            f"values spread {self.spread:.2g} times as far; check that they are scaled as in "
            "training"
        )


def input_shift(model: nn.Module, batches: Sequence[RawBatch]) -> InputShift | None:
    """Return how unlike training the data are; None if no batch norm of the network can tell.

    Args:
        model: runs once in evaluation mode, and is left as it was.
        batches: calibration data; the first 64 samples of the first are looked at.
    """
    first = first_samples(next(read_batches(batches[:1], model)), _SAMPLES)
    names = MappingProxyType({id(buffer): name for name, buffer in model.named_buffers()})
    norm = _FirstNorm(names)
    with undisturbed(model), torch.no_grad(), norm:
        call(model, first)
    return norm.found


class _FirstNorm(OpRecorder):
    """Compares what comes to the first norm that remembers training."""

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self.found: InputShift | None = None
        self._names = names

    def run(self, op: Op) -> Any:  # noqa: ANN401
        """Run the operation, and look at its input if it is such a norm."""
        if self.found is None and op.name in _NORMS:
            given = op.norm_arguments()
            name = self._names.get(id(given["running_mean"]))
            if name is not None:
                self.found = _compared(name.rpartition(".")[0], given)
        return super().run(op)


def _compared(norm: str, given: Mapping[str, Any]) -> InputShift | None:
    values: Tensor = given["input"].detach().movedim(1, 0).flatten(1).double()
    variance = given["running_var"].double()
    moving = variance > 0
    if values.shape[1] < 2 or not moving.any():  # noqa: PLR2004 - one value has no spread
        return None
    size = variance[moving].sqrt()
    off = (values.mean(1) - given["running_mean"])[moving] / size
    spread = (values.std(1)[moving] / size).median()
    return InputShift(norm, int(moving.sum()), float(off.square().mean().sqrt()), float(spread))
