"""Calibration data, read once: what is fitted, what judges, and the example."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from flexrel.core.batches import (
    Batch,
    RawBatch,
    collect,
    first_samples,
    fitted_and_judged,
    read_batches,
)
from flexrel.errors import UsageError


@dataclass(frozen=True, slots=True, eq=False)
class CalibrationData:
    """Inputs as a network will see them.

    Attributes:
        batches: all of them, as they were given.
        fitted: what scores and repairs are fitted to.
        judged: what criteria, repair and training are judged by.
        first: the first batch, which exports are made with.
        samples: how many inputs there are in all.
    """

    batches: Sequence[RawBatch]
    fitted: Sequence[RawBatch]
    judged: Sequence[RawBatch]
    first: Batch
    samples: int

    @property
    def example(self) -> Batch:
        """The samples that structure is read on, and multiply-adds are counted with."""
        return first_samples(self.first)


def calibration_data(
    model: nn.Module, calibration: Iterable[RawBatch], *, fits: bool
) -> CalibrationData:
    """Return the data, all of it kept in memory.

    Args:
        model: whose inputs they are.
        calibration: batches as `read_batches` takes them.
        fits: whether weights are fitted to them, so that some must be held out.

    Raises:
        UsageError: there is no batch, or one can't be used.
    """
    batches = collect(calibration)
    read = list(read_batches(batches, model))
    if not read:
        raise UsageError("the calibration set is empty; pass at least one batch")
    fitted, judged = fitted_and_judged(batches, model, fits=fits)
    return CalibrationData(batches, fitted, judged, read[0], sum(b.samples for b in read))
