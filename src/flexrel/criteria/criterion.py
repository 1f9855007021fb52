"""What `prune` asks of a criterion: a name, scores, and which signals it makes them of."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

from torch import Tensor

from flexrel.criteria.signals import GroupSignals
from flexrel.relevance import Attribution, AttributionTarget, check_output


@dataclass(frozen=True, slots=True)
class SaliencyTarget:
    """Which saliency is wanted: what a removal costs that no refit of the readers makes up for.

    Attributes:
        output: that it costs, as in `calibrate`; but "auto" is "norm", all of them.

    Raises:
        UsageError: there is no such output.
    """

    output: str | AttributionTarget = "auto"

    def __post_init__(self) -> None:
        check_output(self.output)


SALIENCY: Final = SaliencyTarget()
Signal = Attribution | SaliencyTarget


@runtime_checkable
class Criterion(Protocol):
    """What `prune` asks of a criterion."""

    @property
    def name(self) -> str:
        """Name in plans and reports."""

    @property
    def needs(self) -> frozenset[Signal]:
        """What must be measured for it besides weights: SALIENCY, an `Attribution`, or both."""

    def scores(self, signals: Sequence[GroupSignals]) -> Iterator[Tensor]:
        """Yield one tensor of scores for each group, of the group's shape. Higher means keep."""


def attribution_of(criterion: Criterion) -> Attribution | None:
    """Return which relevance the criterion needs, if any."""
    return next((need for need in criterion.needs if isinstance(need, Attribution)), None)


def saliency_of(criterion: Criterion) -> SaliencyTarget | None:
    """Return which saliency the criterion needs, if any."""
    return next((need for need in criterion.needs if isinstance(need, SaliencyTarget)), None)
