"""How well a network does its job: the accuracy that the caller measures."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.data import Dataset

from flexrel.core.answers import Tally, answers_of, tally_of
from flexrel.core.batches import RawBatches, read_batches, samples_of
from flexrel.core.running import call, duplicate, undisturbed
from flexrel.errors import UsageError

Evaluate = Callable[[nn.Module], float]


@dataclass(frozen=True, slots=True)
class Accuracy:
    """The share of labelled samples that a network answers right, in [0, 1]: an `evaluate`.

    Labels `[samples]` are class numbers, as whole or floating-point numbers, and the answer is the
    largest of the scores `[samples, classes]`. A network with one score a sample, `[samples]` or
    `[samples, 1]`, says 1 where it is above the threshold, else 0. Labels `[samples, labels]` of 0
    and 1 are several for each sample, and an answer is right where all of them are; where each
    sample has just one, they are classes. Samples with the label -1 or -100 are left out; but
    where labels for yes and no are -1 and 1, and none is 0, -1 means no.

    Attributes:
        batches: that can be gone through again and again, with labels, or a
            `torch.utils.data.Dataset` of samples; never the calibration set.
        threshold: above which a score says yes: 0 for logits, 0.5 for probabilities. Class numbers
            need none.
    """

    batches: RawBatches
    threshold: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.batches, Iterator):
            raise UsageError("evaluation batches are an iterator, gone after one use; pass a list")

    @property
    def samples(self) -> int:
        """How many inputs there are, those without a label that counts too."""
        return samples_of(self.batches, nn.Module())

    def __call__(self, model: nn.Module) -> float:
        """Return the share of samples that the model answers right; raises as `tally` does."""
        return self.tally(model).accuracy

    def tally(self, model: nn.Module) -> Tally:
        """Return how many samples the model answers right, and what their labels are.

        Raises:
            UsageError: no batch, one without labels, or labels that the model can't give.
            ModelError: the model returns no scores.
        """
        with undisturbed(model), torch.no_grad():
            batches = read_batches(self.batches, model)
            return tally_of([answers_of(call(model, b), b, self.threshold) for b in batches])


def evaluate_of(given: object) -> Evaluate | None:
    """Return what measures accuracy: the function that is given, or `Accuracy` on labelled data.

    Raises:
        UsageError: it is neither.
    """
    if given is None or callable(given):
        return given
    if not isinstance(given, Iterable | Dataset):
        raise UsageError(
            f"evaluate is a {type(given).__name__}; pass a function model -> [0, 1], or batches "
            "with labels, such as a DataLoader"
        )
    return Accuracy(given)


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
