"""Which answers of a network changed when it was pruned, and which classes or labels lost most."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from flexrel.core.answers import IGNORED, Tally
from flexrel.core.batches import Batch, RawBatches, read_batches
from flexrel.core.evaluate import Accuracy
from flexrel.io import png_of

_SHOWN: Final = 12  # samples
_CLASSES: Final = 10
_PICTURED: Final = 2048  # samples that are read once more for pictures
_IMAGES: Final = 4  # axes: [samples, channels, height, width]
_SMALLEST: Final = 4  # pixels a side, of what is an image


@dataclass(frozen=True, slots=True)
class ClassAnswers:
    """How many samples of one class are answered right."""

    label: int
    samples: int
    right_dense: int
    right: int


@dataclass(frozen=True, slots=True)
class LabelAnswers:
    """How well one of several labels a sample is answered.

    Attributes:
        label: its number.
        samples: of which it is known.
        having: of these, those that have it.
        right_dense: how many of them the dense network answers right, yes or no.
        right: likewise, the pruned one.
        f1_dense: harmonic mean of precision and recall, of the dense network; 0 where it never
            says yes rightly.
        f1: likewise, of the pruned one.
    """

    label: int
    samples: int
    having: int
    right_dense: int
    right: int
    f1_dense: float
    f1: float


@dataclass(frozen=True, slots=True)
class ChangedAnswer:
    """A sample that the dense network answers right and the pruned one wrong, or the other way.

    Each entry is the number of a class; or those of the labels that the sample has, where it may
    have several.
    """

    place: int  # among all evaluation samples of that part, from 0
    label: int | tuple[int, ...]
    dense: int | tuple[int, ...]  # that the dense network says
    pruned: int | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ChangedAnswers:
    """Which answers changed between right and wrong.

    Attributes:
        samples: on which both networks were asked.
        lost: of these, those that the dense network answers right and the pruned one wrong.
        won: the other way round.
        classes: those that lost most, at most 10, the worst first; none where labels are several
            a sample.
        labels: where these are, those that lost most F1, likewise.
        f1: of all labels together (micro), of the dense network and of the pruned one; None where
            a sample has one class.
        shown: at most 12 of the samples, those lost first.
        pictures: of these, by their places, as PNG; where the first input is an image of 1 channel
            or 3, and of the first 2,048 samples alone. Records have them that lie beside a report,
            and no others.
        unit: what is counted: pixels where these have labels, and then none are shown.
    """

    samples: int
    lost: int
    won: int
    classes: tuple[ClassAnswers, ...]
    labels: tuple[LabelAnswers, ...]
    f1: tuple[float, float] | None
    shown: tuple[ChangedAnswer, ...]
    pictures: Mapping[int, bytes] = field(default_factory=dict, repr=False, hash=False)
    unit: Literal["samples", "pixels"] = "samples"

    def as_json(self) -> dict[str, Any]:
        """Return what records have of it, wherever they go: all but the pictures."""
        return {name: told for name, told in asdict(self).items() if name != "pictures"}


@dataclass(frozen=True, slots=True, eq=False)
class Compared:
    """Samples on which two networks are compared, and what the dense one answers."""

    accuracy: Accuracy
    dense: Tally

    def changed(self, pruned: Tally) -> ChangedAnswers:
        """Return which answers changed, where the pruned network answers the same samples."""
        dense = self.dense
        lost, won = dense.hits & ~pruned.hits, pruned.hits & ~dense.hits
        alone = dense.truth.ndim == 1
        shown = _shown(dense, pruned, lost, won)
        return ChangedAnswers(
            samples=dense.samples,
            lost=int(lost.sum()),
            won=int(won.sum()),
            classes=_classes(dense, pruned) if alone else (),
            labels=() if alone else _labels(dense, pruned),
            f1=None if alone else (_f1(dense.truth, dense.said), _f1(pruned.truth, pruned.said)),
            shown=shown,
            pictures=_pictures(self.accuracy.batches, {one.place for one in shown}),
        )


def _classes(dense: Tally, pruned: Tally) -> tuple[ClassAnswers, ...]:
    """Return the classes that lost answers, the share of their samples that did falling."""
    found = []
    for label in dense.truth.unique().tolist():
        of = dense.truth == label
        right = (int((one.hits & of).sum()) for one in (dense, pruned))
        found.append(ClassAnswers(label, int(of.sum()), *right))
    return worst_classes(found)


def worst_classes(found: Iterable[ClassAnswers]) -> tuple[ClassAnswers, ...]:
    """Return the classes that lost answers, at most 10, those that lost most of theirs first."""
    worst = [one for one in found if one.right < one.right_dense]
    worst.sort(key=lambda one: (one.right - one.right_dense) / one.samples)
    return tuple(worst[:_CLASSES])


def _labels(dense: Tally, pruned: Tally) -> tuple[LabelAnswers, ...]:
    """Return the labels that lost F1, or right answers, the most of it first."""
    found = []
    columns = (tensor.unbind(1) for tensor in (dense.truth, dense.said, pruned.said))
    for label, (truth, before, now) in enumerate(zip(*columns, strict=True)):
        known = _known(truth)
        right = (int((said[known] == truth[known]).sum()) for said in (before, now))
        having, f1 = int((truth == 1).sum()), (_f1(truth, said) for said in (before, now))
        found.append(LabelAnswers(label, int(known.sum()), having, *right, *f1))
    worst = [one for one in found if one.f1 < one.f1_dense or one.right < one.right_dense]
    worst.sort(key=lambda one: (one.f1 - one.f1_dense, one.right - one.right_dense))
    return tuple(worst[:_CLASSES])


def _known(truth: Tensor) -> Tensor:
    return ~torch.isin(truth, torch.tensor(IGNORED))


def _f1(truth: Tensor, said: Tensor) -> float:
    """Return the harmonic mean of precision and recall of yes, over all that is known."""
    known = _known(truth)
    yes, says = truth[known] == 1, said[known] == 1
    either = int(yes.sum()) + int(says.sum())
    return 2 * int((yes & says).sum()) / either if either else 0.0


def _shown(dense: Tally, pruned: Tally, lost: Tensor, won: Tensor) -> tuple[ChangedAnswer, ...]:
    places = [at for part in (lost, won) for at in part.nonzero().flatten().tolist()]
    return tuple(
        ChangedAnswer(
            int(dense.places[at]),
            *(_numbers(told[at]) for told in (dense.truth, dense.said, pruned.said)),
        )
        for at in places[:_SHOWN]
    )


def _numbers(told: Tensor) -> int | tuple[int, ...]:
    """Return the number of a class, or those of the labels that are said."""
    return int(told) if told.ndim == 0 else tuple((told == 1).nonzero().flatten().tolist())


def _pictures(batches: RawBatches, places: Collection[int]) -> dict[int, bytes]:
    """Return those samples that are images, of the first 2,048."""
    found: dict[int, bytes] = {}
    wanted = {place for place in places if place < _PICTURED}
    first = 0
    for batch in read_batches(batches, nn.Module()) if wanted else ():
        if not _are_images(batch):
            break
        inside = sorted(place for place in wanted if first <= place < first + batch.samples)
        found |= {place: png_of(batch.tensors[0][place - first]) for place in inside}
        first += batch.samples
        if first > max(wanted):
            break
    return found


def _are_images(batch: Batch) -> bool:
    x = batch.tensors[0]
    return (
        x.ndim == _IMAGES
        and x.is_floating_point()
        and x.shape[1] in (1, 3)
        and min(x.shape[2:]) >= _SMALLEST
        and len(x) == batch.samples
    )
