"""What is promised of the network returned, told by samples that nothing was chosen on."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any, Final

from torch import nn

from flexrel.core.answers import Tally
from flexrel.core.batches import RawBatch, RawBatches, read_batches, samples_in
from flexrel.core.evaluate import ACCURACY, Accuracy, Evaluate
from flexrel.core.forms import batches_of
from flexrel.core.paired import drop_bound, samples_needed
from flexrel.core.targets import Goal

CONFIDENCE: Final = 0.95
BOUND: Final = "drop at most"  # of accuracy, by the margin that a search keeps
MARGIN: Final = 0.999  # confidence of that: `benchmarks/promise.py` has how much is then promised
_WORTH: Final = 6.0  # over the drop allowed: how many samples, set aside, may show it at all
_WHOLE: Final = 8  # batches, from which on every other one is set aside, else every other sample
_POINT: Final = 100  # of accuracy, in a whole
_ROUND: Final = 1e-6  # hundredths of a point, which floats are off by


@dataclass(frozen=True, slots=True)
class Promise:
    """How much accuracy is lost at most, with a confidence, on samples like those evaluated.

    Attributes:
        drop: the most, in [-1, 1]; None where there are no samples that nothing was chosen on.
        asked: what the target allows; None without one on accuracy.
        samples: that nothing was chosen on.
        lost: of these, those that the dense network answers right and the pruned one wrong.
        won: the other way round.
        accuracy_dense: of the dense network on these.
        accuracy: of the pruned network.
        needed: how many evaluation samples would show what is asked, in all, were they like these;
            None: no number would, or these do.
        aside: whether they were set aside, as the search chooses on the others.
        confidence: in (0, 1).
    """

    drop: float | None
    asked: float | None
    samples: int = 0
    lost: int = 0
    won: int = 0
    accuracy_dense: float | None = None
    accuracy: float | None = None
    needed: int | None = None
    aside: bool = False
    confidence: float = CONFIDENCE

    @property
    def kept(self) -> bool:
        """Whether no more is lost than the target allows, with the confidence."""
        return self.drop is not None and self.asked is not None and self.drop <= self.asked

    def as_json(self) -> dict[str, Any]:
        """Return what `result.json` has of it."""
        return {**asdict(self), "kept": self.kept, "told": str(self)}

    def __str__(self) -> str:
        """Say it in a line."""
        sure = f"with {self.confidence:.0%} confidence"
        asked = "" if self.asked is None else f"drop ≤ {self.asked * _POINT:.2f} points"
        would = "" if self.needed is None else f"about {self.needed:,} evaluation samples would do"
        if self.drop is None:
            why = f"too few evaluation samples to set some aside: {would}"
            return f"{asked} can't be promised {sure}: {why if would else 'no samples would do'}"
        most = math.ceil(self.drop * _POINT * 100 - _ROUND) / 100
        seen = f"{self.samples:,} samples that nothing was chosen on"
        said = f"drop ≤ {most:.2f} points {sure}, on {seen} ({self.lost:,} lost, {self.won:,} won)"
        if not asked:
            return said
        if self.kept:
            return f"{said}; asked was {asked}"
        measured = (self.lost - self.won) / self.samples * _POINT
        why = f"too few samples to say {asked}: {would}"
        return (
            f"{said}; {why if would else f'asked was {asked}, and on these it is {measured:.2f}'}"
        )


@dataclass(frozen=True, slots=True, eq=False)
class Untouched:
    """Evaluation samples that nothing is chosen on.

    Attributes:
        dense: what the dense network answers; None: there are too few to set some aside.
        asked: by how much accuracy may drop; None without such a target.
        aside: whether they are part of the evaluation samples, the others being searched with.
    """

    dense: Tally | None
    asked: float | None
    aside: bool

    def promise(self, tally: Tally | None) -> Promise:
        """Return what they say of a network that was chosen without them.

        Args:
            tally: what it answers on them; None where there are too few.
        """
        if self.dense is None or tally is None:
            return Promise(None, self.asked, needed=_fewest(self.asked))
        lost, won, samples = _changed(self.dense, tally)
        said = Promise(
            drop=drop_bound(lost, won, samples, CONFIDENCE),
            asked=self.asked,
            samples=samples,
            lost=lost,
            won=won,
            accuracy_dense=self.dense.accuracy,
            accuracy=tally.accuracy,
            aside=self.aside,
        )
        if said.asked is None or said.kept:
            return said
        needed = samples_needed(lost, won, samples, said.asked, CONFIDENCE) if said.asked else None
        share = 2 if self.aside else 1
        return replace(said, needed=None if needed is None else share * needed)


def worth_setting_aside(samples: int, asked: float) -> bool:
    """Return whether half of the samples may show that accuracy drops by no more than asked."""
    fewest = _fewest(asked)
    return fewest is not None and samples >= fewest


def _fewest(asked: float | None) -> int | None:
    return math.ceil(round(2 * _WORTH / asked, 6)) if asked else None


def halves(evaluate: Accuracy, *, whole: bool) -> tuple[Accuracy, Accuracy] | None:
    """Return accuracy on half of the samples, to search with, and on the other half.

    Of many batches every other one goes to either, of few every other sample.

    Args:
        evaluate: on all of them, in the same order at each pass.
        whole: whether the network runs on no part of a batch: then of few batches too every other
            one goes to either; None where there is only one.
    """
    count = len(list(islice(batches_of(evaluate.batches), _WHOLE)))
    if whole and count < 2:  # noqa: PLR2004 - one for each half
        return None
    whole = whole or count == _WHOLE
    parts = (_Half(evaluate.batches, second, whole) for second in (False, True))
    searched, untouched = (replace(evaluate, batches=part) for part in parts)
    return searched, untouched


def searched_with(
    evaluate: Accuracy, model: nn.Module, goals: Sequence[Goal], *, whole: bool
) -> Evaluate:
    """Return what the goals of a result were searched with, where samples were set aside.

    Args:
        evaluate: on all samples.
        model: the dense network.
        goals: with one on `BOUND` if a margin was kept.
        whole: whether the network runs on no part of a batch.
    """
    searched, _ = halves(evaluate, whole=whole) or (evaluate, evaluate)
    if any(goal.metric == BOUND for goal in goals):
        return BoundedAccuracy(searched, searched.tally(model))
    return searched


@dataclass(frozen=True, slots=True, eq=False)
class BoundedAccuracy:
    """The accuracy, and what its drop is at most by a wide margin: an `evaluate` to search with.

    What is just good enough on the samples searched with is mostly not on others. With the margin
    most of what is found can be promised.

    Attributes:
        accuracy: on the samples searched with.
        dense: what the dense network answers on them.
    """

    accuracy: Accuracy
    dense: Tally

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Return the model's accuracy on them, and the bound of its drop, both in [0, 1]."""
        tally = self.accuracy.tally(model)
        return {ACCURACY: tally.accuracy, BOUND: drop_bound(*_changed(self.dense, tally), MARGIN)}


def _changed(dense: Tally, pruned: Tally) -> tuple[int, int, int]:
    """Return how many samples are lost, won, and there are."""
    lost = int((dense.hits & ~pruned.hits).sum())
    won = int((pruned.hits & ~dense.hits).sum())
    return lost, won, pruned.samples


@dataclass(frozen=True, slots=True)
class _Half:
    """Every other batch of some, or every other sample of each."""

    batches: RawBatches
    second: bool
    whole: bool

    def __iter__(self) -> Iterator[RawBatch]:
        """Go through it; again and again, if the batches can be."""
        if self.whole:
            yield from (
                raw for at, raw in enumerate(batches_of(self.batches)) if at % 2 == self.second
            )
            return
        for batch in read_batches(self.batches, nn.Module()):
            if batch.samples > self.second:
                yield samples_in(batch, slice(int(self.second), None, 2))
