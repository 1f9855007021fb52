"""How far what a network returns is from what the dense one does."""

import math
from collections.abc import Iterator, Sequence
from operator import mul
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from flexrel.core.batches import Batch, RawBatch, read_batches
from flexrel.core.outputs import (
    Outputs,
    RequestedOutputs,
    apart,
    apart_but_for_scale,
    check_shapes,
    mean_apart,
    numbers_in,
    resolved,
)
from flexrel.core.running import call, tensors_of, undisturbed
from flexrel.errors import ModelError, UsageError


class Divergence:
    """How far a network's outputs are from the dense network's, on calibration data.

    Lower is better, 0 is the dense network itself. For "classes": the mean Kullback-Leibler
    divergence of the predicted distributions, in nats, but for how confident all of them are
    (`apart_but_for_scale`). For "logits": that of each output's own distribution, summed over
    outputs. For "values", also several in tuples or mappings: the squared error over the squared
    size of the dense outputs, which sees scale and shift; of several tensors the mean. For a
    distance of the caller's: its mean over samples.

    Attributes:
        outputs: what they are: as asked, or as labels say; without labels, "values".
    """

    def __init__(
        self,
        dense: nn.Module,
        batches: Sequence[RawBatch],
        outputs: RequestedOutputs = "auto",
        labelled: Sequence[RawBatch] = (),
    ) -> None:
        """Run the dense network once over the batches and keep its outputs.

        Args:
            dense: the network before it was pruned.
            batches: that outputs are compared on.
            outputs: as in `prune`.
            labelled: batches that tell what outputs are where the others have no labels.

        Raises:
            UsageError: they were said to be class scores, and are not.
            ModelError: there is a NaN in them.
        """
        self._batches, self._whole = batches, callable(outputs)
        runs = list(self._run(dense, batches))
        self._goals = [goal for _, goal in runs]
        for batch, goal in runs:
            if any(bool(tensor.isnan().any()) for tensor in tensors_of(goal)):
                raise ModelError(
                    f"the network returns NaN for calibration batch {batch.index} as it is; check "
                    "its weights and how the inputs are scaled"
                )
        if not callable(outputs):
            told = [(goal, batch.labels) for batch, goal in runs]
            if outputs == "auto" and all(labels is None for _, labels in told):
                told += [(goal, batch.labels) for batch, goal in self._run(dense, labelled)]
            outputs = resolved(outputs, told)
        self.outputs = outputs

    @property
    def told(self) -> str:
        """What outputs are, in a word."""
        return "distance" if callable(self.outputs) else self.outputs

    def __call__(self, model: nn.Module) -> float:
        """Return the model's divergence; infinity where its outputs are not finite.

        Raises:
            ModelError: its outputs have other shapes than the dense network's.
            UsageError: the caller's distance is no number.
        """
        if not self._goals:
            return 0.0
        runs = list(self._run(model, self._batches))
        pairs = zip(self._goals, (found for _, found in runs), strict=True)
        if callable(self.outputs):
            counts = [batch.samples for batch, _ in runs]
            distances = [float(measured(self.outputs(*pair))) for pair in pairs]
            value = sum(map(mul, counts, distances)) / sum(counts)
        else:
            value = _far(self.outputs, list(pairs))
        return value if math.isfinite(value) else math.inf

    def _run(self, model: nn.Module, batches: Sequence[RawBatch]) -> Iterator[tuple[Batch, Any]]:
        """Yield each batch and what the model returns: all of it, or the tensors of numbers."""
        with undisturbed(model), torch.no_grad():
            for batch in read_batches(batches, model):
                result = call(model, batch)
                yield batch, result if self._whole else numbers_in(result, batch)


def _far(outputs: Outputs, pairs: Sequence[tuple[list[Tensor], list[Tensor]]]) -> float:
    """Return how far outputs of all batches are apart; of classes one factor serves them all."""
    if outputs == "classes":
        for goals, found in pairs:
            check_shapes(goals, found)
        dense, other = (torch.cat([pair[side][0] for pair in pairs]) for side in (0, 1))
        return apart_but_for_scale(dense, other)
    exact = [[[tensor.double() for tensor in side] for side in pair] for pair in pairs]
    sums = [torch.stack(apart(outputs, goals, found)) for goals, found in exact]
    most = max(each.shape[1] for each in sums)  # batches of fewer samples may give fewer tensors
    errors, sizes = torch.stack([pad(each, (0, most - each.shape[1])) for each in sums]).sum(0)
    return float(mean_apart(errors, sizes))


def measured(distance: object) -> Tensor:
    """Return what a caller's distance says, a scalar.

    Raises:
        UsageError: it is none.
    """
    if isinstance(distance, Tensor) and distance.numel() == 1:
        return distance.reshape(())
    found = list(distance.shape) if isinstance(distance, Tensor) else type(distance).__name__
    raise UsageError(f"outputs= must return the mean distance, one number, but returned {found}")
