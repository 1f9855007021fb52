"""How well a network does its job: the accuracy that the caller measures."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flexrel.core.batches import Batch, RawBatch, read_batches, samples_of
from flexrel.core.running import call, duplicate, scores_in, undisturbed
from flexrel.errors import ModelError, UsageError

Evaluate = Callable[[nn.Module], float]
_RANK = 2  # of class scores: [samples, classes]


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Top-1 accuracy on labelled batches, in [0, 1]: an `evaluate` for networks that classify.

    Attributes:
        batches: that can be gone through again and again, with labels; never the calibration set.
    """

    batches: Iterable[RawBatch]

    def __post_init__(self) -> None:
        if iter(self.batches) is self.batches:
            raise UsageError("evaluation batches are an iterator, gone after one use; pass a list")

    @property
    def samples(self) -> int:
        """How many inputs there are."""
        return samples_of(self.batches, nn.Module())

    def __call__(self, model: nn.Module) -> float:
        """Return the share of inputs whose largest score is at their label.

        Raises:
            UsageError: no batch, or one without a class number for each input.
            ModelError: the model returns no class scores `[samples, classes]`.
        """
        right, samples = 0, 0
        with undisturbed(model), torch.no_grad():
            for batch in read_batches(self.batches, model):
                if batch.labels is None:
                    raise UsageError(f"evaluation batch {batch.index} has no labels")
                right += _hits(scores_in(call(model, batch)), batch, batch.labels)
                samples += batch.samples
        if samples == 0:
            raise UsageError("the evaluation set is empty; pass at least one batch with labels")
        return right / samples


def _hits(scores: object, batch: Batch, labels: Tensor) -> int:
    if not isinstance(scores, Tensor) or scores.ndim != _RANK:
        found = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ModelError(
            f"accuracy needs class scores [samples, classes], but the model returns {found} for "
            f"batch {batch.index}; pass a function of your own as evaluate="
        )
    if labels.shape != scores.shape[:1]:
        raise UsageError(
            f"labels of evaluation batch {batch.index} have the shape {list(labels.shape)}; "
            f"give one class number for each of the {len(scores)} inputs"
        )
    return int((scores.argmax(dim=1) == labels).sum())


def standard_error(accuracy: float, samples: int) -> float:
    """Return the standard error of a share measured on so many independent samples."""
    return math.sqrt(accuracy * (1 - accuracy) / samples)


def checked(evaluate: Evaluate, model: nn.Module) -> float:
    """Return what `evaluate` says of the model, as a float in [0, 1].

    Raises:
        UsageError: it says something else.
    """
    safe = isinstance(evaluate, Accuracy)  # which leaves no trace, as others may
    said = evaluate(model if safe else duplicate(model).eval())
    try:
        accuracy = float(said)
    except (TypeError, ValueError, RuntimeError) as error:  # the last: a tensor of several numbers
        kind = type(said).__name__
        raise UsageError(f"evaluate returned a {kind}; return a number in [0, 1]") from error
    if not 0 <= accuracy <= 1:  # NaN is refused here too
        raise UsageError(f"evaluate returned {accuracy}; return a number in [0, 1], 1 is best")
    return accuracy
