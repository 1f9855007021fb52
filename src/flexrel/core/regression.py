"""How far a network's values are from those that are true: metrics of a regression."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from flexrel.core.batches import Batch, RawBatches, check_repeatable, missing_labels, read_batches
from flexrel.core.running import call, scores_in, undisturbed
from flexrel.errors import ModelError, UsageError

_SURE: Final = 1e-3  # that probabilities may be off one in all
_FLAT: Final = 2  # axes: [samples, outputs]
_MASKS: Final = "; classes of pixels are whole numbers, torch.as_tensor(numpy.array(mask))"


@dataclass(frozen=True, slots=True)
class Regression:
    """How far values are from labels: an `evaluate`, with "mse", "mae" and "r2".

    The mean squared and the mean absolute error, over all samples and outputs, in the units of the
    labels: lower is better. And one minus the squared error over that of the labels' own mean, of
    several outputs the mean: higher is better, 1 is best. Labels that are NaN are left out, and so
    are of "r2" outputs whose labels are all alike.

    Attributes:
        batches: that can be gone through again and again, with labels of the shape of the outputs,
            or a `torch.utils.data.Dataset` of samples; never the calibration set.
    """

    batches: RawBatches

    def __post_init__(self) -> None:
        check_repeatable(self.batches)

    def __call__(self, model: nn.Module) -> Mapping[str, float]:
        """Return the model's metrics, by name.

        Raises:
            UsageError: no batch, or one without labels of the shape of the outputs.
            ModelError: the model returns no numbers.
        """
        with undisturbed(model), torch.no_grad():
            batches = read_batches(self.batches, model)
            pairs = [_values(call(model, batch), batch) for batch in batches]
        if not pairs:
            raise UsageError("the evaluation set is empty; pass at least one batch with labels")
        found, truth = (torch.cat(part).double() for part in zip(*pairs, strict=True))
        known = truth.isfinite()
        if not bool(known.any()):
            raise UsageError("no label of the evaluation set is a number; pass labels")
        errors = torch.where(known, found - truth, 0)
        count = known.sum(0)
        mean = torch.where(known, truth, 0).sum(0) / count
        spread = torch.where(known, truth - mean, 0).square().sum(0)
        moving = spread > 0
        shares = errors.square().sum(0)[moving] / spread[moving]
        told = {"mse": errors.square().sum() / count.sum(), "mae": errors.abs().sum() / count.sum()}
        told |= {"r2": 1 - shares.mean()} if bool(moving.any()) else {}
        return {name: float(value) for name, value in told.items()}


def are_values(batches: RawBatches) -> bool:
    """Return whether labels of the first batch are values: no whole numbers, no probabilities."""
    if isinstance(batches, Iterator) or not isinstance(
        batches, Iterable | torch.utils.data.Dataset
    ):
        return False
    labels = next((batch.labels for batch in read_batches(batches, nn.Module())), None)
    if labels is None or not labels.is_floating_point():
        return False
    known = labels[labels.isfinite()]
    shares = labels.ndim > 1 and labels.shape[1] > 1 and bool((labels >= 0).all())
    if shares and torch.allclose(labels.sum(1), torch.ones(()), atol=_SURE):
        return False
    return bool((known != known.round()).any())


def _values(result: object, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return what a model says, and what is true, as `[samples, outputs]`, on the CPU."""
    if batch.labels is None:
        raise UsageError(f"evaluation {missing_labels(batch)}")
    values = scores_in(result)
    if not isinstance(values, Tensor) or not values.is_floating_point():
        raise ModelError(
            f"the model returns {type(values).__name__} for batch {batch.index}, no one tensor of "
            "values; pass a function of your own as evaluate="
        )
    labels = batch.labels.detach().float()
    masks = "" if values.ndim <= _FLAT else _MASKS
    if labels.numel() != values.numel() or len(labels) != len(values):
        raise UsageError(
            f"labels of evaluation batch {batch.index} have the shape {list(labels.shape)}, the "
            f"network's values {list(values.shape)}; give one number for each{masks}"
        )
    pair = (values.detach().float(), labels)
    found, truth = (tensor.reshape(len(tensor), -1).cpu() for tensor in pair)
    return found, truth
