"""Answers of a network that classifies, beside their labels: which count, and which are right."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flexrel.core.batches import Batch, missing_labels
from flexrel.core.running import scores_in
from flexrel.errors import ModelError, UsageError

OWN_FUNCTION = (
    "pass a function of your own, model -> number, as evaluate= (--evaluation file.py:function)"
)
IGNORED = (-100, -1)  # labels of samples that are not to be counted, as torch and others have them
_TABLE = 2  # axes of scores: [samples, scores]
_TWO = 2  # classes of one score


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """What a network says of the samples of a batch, and what is true."""

    largest: Tensor  # [samples], where the largest score is
    above: Tensor  # [samples, scores], which scores are above the threshold
    sound: Tensor  # [samples], False where a score is NaN: no such answer is right
    labels: Tensor  # [samples], class numbers; or [samples, scores], yes or no for each score


@dataclass(frozen=True, slots=True)
class Tally:
    """How many answers are right, and what the labels are.

    Attributes:
        right: how many.
        samples: that have a label.
        ignored: samples whose label is left out of the count.
        labels: how many different ones there are.
        commonest: samples with the label that most samples have.
        classes: that the network tells apart; or how many labels, where a sample has several.
        seen: what there was, in words.
        hits: [samples], which answers are right.
        truth: [samples], class numbers, 0 and 1 where there is one score; or [samples, labels],
            where a sample has several, 1 for yes and those in `IGNORED` left out.
        said: what the network says, likewise; of [samples, labels] 0 or 1 each.
        places: [samples], of each among all inputs, those too that are left out of the count.
    """

    right: int
    samples: int
    ignored: int
    labels: int
    commonest: int
    classes: int
    seen: str
    hits: Tensor = field(compare=False, repr=False)
    truth: Tensor = field(compare=False, repr=False)
    said: Tensor = field(compare=False, repr=False)
    places: Tensor = field(compare=False, repr=False)

    @property
    def accuracy(self) -> float:
        """The share of answers that are right."""
        return self.right / self.samples

    @property
    def chance(self) -> float:
        """The share that is right if the answer is always the most frequent label."""
        return self.commonest / self.samples


def answers_of(result: object, batch: Batch, threshold: float) -> Answers:
    """Return what a model says of a labelled batch.

    Args:
        result: what the model returned: class scores `[samples, classes]`; one score a sample,
            `[samples]` or `[samples, 1]`; or one for each of several labels.
        batch: with class numbers `[samples]`, or with 0 and 1 of the shape of the scores.
        threshold: above which a score says yes.

    Raises:
        UsageError: the batch has no such labels.
        ModelError: the model returns no such scores.
    """
    if batch.labels is None:
        raise UsageError(
            f"evaluation {missing_labels(batch)}; give a label for each input, or {OWN_FUNCTION}"
        )
    scores = _table_of(scores_in(result), batch)
    labels = batch.labels.detach()
    if scores.shape[1] == 1 and labels.shape == scores.shape[:1]:
        labels = labels[:, None]
    if labels.shape not in (scores.shape, scores.shape[:1]):
        raise UsageError(
            f"labels of evaluation batch {batch.index} have the shape {list(labels.shape)}; "
            f"give one class number for each of the {len(scores)} inputs, or 0 and 1 for each "
            f"score, {list(scores.shape)}"
        )
    return Answers(
        scores.argmax(1).cpu(),
        (scores > threshold).cpu(),
        ~scores.isnan().any(1).cpu(),
        _whole(labels, batch).cpu(),
    )


def _table_of(scores: object, batch: Batch) -> Tensor:
    """Return scores as `[samples, scores]`."""
    if isinstance(scores, Tensor) and not scores.is_complex():
        alone = scores.shape in ((batch.samples,), (batch.samples, 1)) or scores.ndim == 0
        if alone and scores.is_floating_point() and scores.numel() == batch.samples:
            return scores.detach().reshape(-1, 1)
        if scores.ndim == _TABLE and scores.shape[1] > 1:
            return scores.detach()
    raise ModelError(
        f"accuracy needs class scores [samples, classes], but the model returns {_found(scores)} "
        f"for batch {batch.index}; {OWN_FUNCTION}"
    )


def _found(scores: object) -> str:
    """Return what a model returns, in words."""
    if isinstance(scores, Tensor):
        return str(list(scores.shape))
    if isinstance(scores, Mapping):
        parts = (f"{name} {_found(one)}" for name, one in scores.items())
        return f"a mapping of {', '.join(parts)}"
    if isinstance(scores, tuple | list):
        return f"a {type(scores).__name__} of {len(scores)}"
    return type(scores).__name__


def _whole(labels: Tensor, batch: Batch) -> Tensor:
    """Return labels as whole numbers."""
    odd = labels[:0]
    if labels.is_complex():
        odd = labels
    elif labels.is_floating_point():
        odd = labels[~labels.isfinite() | (labels != labels.floor())]
    if odd.numel():
        raise UsageError(
            f"labels of evaluation batch {batch.index} are no whole numbers, such as "
            f"{odd.flatten()[0].item():.4g}; pass class numbers, or 0 and 1; values of a "
            f"regression are measured by flexrel.Regression (--outputs values); or {OWN_FUNCTION}"
        )
    return labels.long()


def tally_of(parts: Sequence[Answers]) -> Tally:
    """Return how many answers of all batches are right.

    Class numbers: where the largest score is at the label. One score a sample, or one for each of
    several labels: where each is above the threshold if its label is 1, and only then; labels of
    which every sample has just one are classes. Labels -1 and -100 are left out: -1 not where it
    stands for no, which is where no label is 0 and others are 1.

    Raises:
        UsageError: no sample has a label, or there are labels that the network can't give.
        ModelError: the model returns other numbers of scores for other batches.
    """
    if not parts:
        raise UsageError("the evaluation set is empty; pass at least one batch with labels")
    widths = sorted({part.above.shape[1] for part in parts})
    if len(widths) > 1:
        raise ModelError(f"the model returns {widths[0]} scores a sample, and {widths[-1]}")
    if len({part.labels.ndim for part in parts}) > 1:
        raise UsageError(
            "labels of some evaluation batches are class numbers, of others 0 and 1 for each "
            "score; pass one kind"
        )
    labels = torch.cat([part.labels for part in parts])
    if labels.ndim == _TABLE and _minus_is_no(labels):
        labels = labels.where(labels != -1, 0)
    known = ~torch.isin(labels, torch.tensor(IGNORED))
    counted = known if known.ndim == 1 else known.any(1)
    if not bool(counted.any()):
        raise UsageError(
            f"all {len(labels)} labels of the evaluation set are -1 or -100, which are left out "
            "of the count; pass labels"
        )
    seen = _checked_range(labels, known, widths[0])
    largest, above, sound = (
        torch.cat([getattr(part, name) for part in parts])[counted]
        for name in ("largest", "above", "sound")
    )
    labels, known = labels[counted], known[counted]
    truth, said = _told(labels, known, largest, above)
    agree = truth == said if truth.ndim == 1 else ((truth == said) | ~known).all(1)
    right = sound & agree
    sizes = labels.unique(dim=0, return_counts=True)[1]
    ignored = int((~counted).sum())
    return Tally(
        right=int(right.sum()),
        samples=len(labels),
        ignored=ignored,
        labels=len(sizes),
        commonest=int(sizes.max()),
        classes=max(widths[0], _TWO),
        seen=seen,
        hits=right,
        truth=truth,
        said=said,
        places=counted.nonzero().flatten(),
    )


def _minus_is_no(labels: Tensor) -> bool:
    """Return whether labels are -1 and 1, instead of 0 and 1."""
    return bool((labels == -1).any() and (labels == 1).any() and not (labels == 0).any())


def _told(labels: Tensor, known: Tensor, largest: Tensor, above: Tensor) -> tuple[Tensor, Tensor]:
    """Return what is true and what is said: class numbers, or yes and no of several labels."""
    if labels.ndim == 1:
        return labels, largest
    if labels.shape[1] == 1:
        return labels[:, 0], above[:, 0].long()
    if bool(known.all() and (labels.sum(1) == 1).all()):
        return labels.argmax(1), largest
    return labels, above.long()


def _checked_range(labels: Tensor, known: Tensor, width: int) -> str:
    """Return what labels and scores there are, in words.

    Raises:
        UsageError: the network can't give these labels.
    """
    found = labels[known]
    low, high = int(found.min()), int(found.max())
    given = f"{width} classes" if labels.ndim == 1 else f"{width} scores for 0 or 1 each"
    if width == 1:
        given = "one score a sample, for 0 or 1"
    seen = f"labels go from {low} to {high}, the network gives {given}"
    if low < 0 or high >= (width if labels.ndim == 1 else 2):
        raise UsageError(f"{seen}; pass the labels that it was trained on, or evaluate=")
    return seen
