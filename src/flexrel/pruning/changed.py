"""Which answers of a network changed when it was pruned, and which classes lost most."""

from dataclasses import asdict, dataclass
from typing import Any, Final

from torch import Tensor

from flexrel.core.answers import Tally
from flexrel.core.evaluate import Accuracy

_SHOWN: Final = 12  # samples
_CLASSES: Final = 10


@dataclass(frozen=True, slots=True)
class ClassAnswers:
    """How many samples of one class are answered right."""

    label: int
    samples: int
    right_dense: int
    right: int


@dataclass(frozen=True, slots=True)
class ChangedAnswer:
    """A sample that the dense network answers right and the pruned one wrong, or the other way."""

    place: int  # among all evaluation samples of that part, from 0
    label: int
    dense: int  # the class that the dense network says
    pruned: int


@dataclass(frozen=True, slots=True)
class ChangedAnswers:
    """Which answers changed between right and wrong.

    Attributes:
        samples: on which both networks were asked.
        lost: of these, those that the dense network answers right and the pruned one wrong.
        won: the other way round.
        classes: those that lost most, at most 10, the worst first; none where labels are several
            a sample.
        shown: at most 12 of the samples, those lost first.
    """

    samples: int
    lost: int
    won: int
    classes: tuple[ClassAnswers, ...]
    shown: tuple[ChangedAnswer, ...]

    def as_json(self) -> dict[str, Any]:
        """Return what `result.json` has of it."""
        return asdict(self)


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
        return ChangedAnswers(
            samples=dense.samples,
            lost=int(lost.sum()),
            won=int(won.sum()),
            classes=_classes(dense, pruned) if alone else (),
            shown=_shown(dense, pruned, lost, won) if alone else (),
        )


def _classes(dense: Tally, pruned: Tally) -> tuple[ClassAnswers, ...]:
    """Return the classes that lost answers, the share of their samples that did falling."""
    found = []
    for label in dense.truth.unique().tolist():
        of = dense.truth == label
        right = (int((one.hits & of).sum()) for one in (dense, pruned))
        found.append(ClassAnswers(label, int(of.sum()), *right))
    worst = [one for one in found if one.right < one.right_dense]
    worst.sort(key=lambda one: (one.right - one.right_dense) / one.samples)
    return tuple(worst[:_CLASSES])


def _shown(dense: Tally, pruned: Tally, lost: Tensor, won: Tensor) -> tuple[ChangedAnswer, ...]:
    places = [at for part in (lost, won) for at in part.nonzero().flatten().tolist()]
    return tuple(
        ChangedAnswer(
            int(dense.places[at]), int(dense.truth[at]), int(dense.said[at]), int(pruned.said[at])
        )
        for at in places[:_SHOWN]
    )
