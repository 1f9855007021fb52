"""How well a network does its job: the accuracy, or other metrics, that the caller measures."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from flexrel.core.answers import Tally, answers_of, tally_of
from flexrel.core.batches import RawBatches, check_repeatable, read_batches, samples_of
from flexrel.core.regression import Regression, are_values
from flexrel.core.running import call, duplicate, undisturbed
from flexrel.core.segmentation import Segmentation, are_maps
from flexrel.errors import UsageError

ACCURACY: Final = "accuracy"
Metrics = Mapping[str, float]  # name -> value; "accuracy" is in [0, 1]
Evaluate = Callable[[nn.Module], float | Metrics]


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
        check_repeatable(self.batches)

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


LabelledData = Accuracy | Regression | Segmentation  # what measures on data of its own


def evaluate_of(given: object, outputs: object = "auto") -> Evaluate | None:
    """Return what says how a network does: the function that is given, or what labels allow.

    That is `Accuracy`; `Regression` where the first labels are no whole numbers; `Segmentation`
    where they are those of pixels.

    Args:
        given: a function of a network, or labelled data; None for nothing.
        outputs: what the network's outputs are, as in `prune`: labels of "values" may be whole.

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
    if outputs == "values" or are_values(given):
        return Regression(given)
    return Segmentation(given) if are_maps(given) else Accuracy(given)


def standard_error(accuracy: float, samples: int, deviation: float | None = None) -> float:
    """Return the standard error of a share measured on so many independent samples.

    Args:
        accuracy: the share.
        samples: how many.
        deviation: from sample to sample; None where each is right or wrong.
    """
    if deviation is None:
        deviation = math.sqrt(accuracy * (1 - accuracy))
    return deviation / math.sqrt(samples)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What `evaluate` says of a network, by name.

    Attributes:
        evaluate: returns a number, or a mapping of names to numbers.
        alone: what a number is that has no name; None: it must have one.
    """

    evaluate: Evaluate
    alone: str | None = ACCURACY

    def __call__(self, model: nn.Module) -> Metrics:
        """Return what it says of the model, which is not changed.

        Raises:
            UsageError: it says something else, or an accuracy that is not in [0, 1].
        """
        safe = isinstance(self.evaluate, LabelledData)  # which leave no trace, as others may
        said: Any = self.evaluate(model if safe else duplicate(model).eval())
        if not isinstance(said, Mapping):
            name = ACCURACY if isinstance(self.evaluate, Accuracy) else self.alone
            if name is None:
                raise UsageError(
                    "evaluate returned a number, but there are targets on several metrics; return "
                    "a mapping of their names to numbers"
                )
            said = {name: said}
        if not said:
            raise UsageError("evaluate returned nothing in a mapping; return a number in [0, 1]")
        return {str(name): _number(str(name), value) for name, value in said.items()}


def _number(name: str, said: Any) -> float:  # noqa: ANN401 - of the user's function
    wanted = "a number in [0, 1]" if name == ACCURACY else "a number"
    what = "evaluate returned" if name == ACCURACY else f"evaluate returned for {name!r}"
    try:
        number = float(said.detach() if isinstance(said, Tensor) else said)
    except (TypeError, ValueError, RuntimeError) as error:  # the last: a tensor of several numbers
        raise UsageError(f"{what} a {type(said).__name__}; return {wanted}") from error
    if name == ACCURACY and not 0 <= number <= 1:  # NaN is refused here too
        raise UsageError(
            f'{what} {number}; return {wanted}, 1 is best, or under its name: {{"loss": {number}}}'
        )
    return number
