"""What was asked of a network: limits, relative to the dense one, and whether they make sense."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from flexrel.core.budgets import RESOURCES, AccuracyDrop, Budget
from flexrel.core.cost import Resource
from flexrel.core.evaluate import Evaluate
from flexrel.core.granularity import Pattern
from flexrel.core.measurement import Measurement
from flexrel.core.precision import VALUES, check_values
from flexrel.criteria import ALLOCATIONS
from flexrel.errors import UsageError
from flexrel.pruning.sources import FORMS


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for, with the dense network it is relative to."""

    target: AccuracyDrop | None
    budgets: tuple[Budget, ...]
    dense: Measurement

    @property
    def floor(self) -> float | None:
        """The least accuracy allowed."""
        if self.target is None or self.dense.accuracy is None:
            return None
        return max(self.dense.accuracy - self.target.amount, 0.0)

    @property
    def most_bytes(self) -> float:
        """The most bytes that the budgets allow; infinity without one on them."""
        limits = (b.limit(self.dense.bytes) for b in self.budgets if b.resource == "bytes")
        return min(limits, default=math.inf)

    def limits(self) -> dict[str, float | None]:
        """Return every limit in its resource's unit, None where nothing was asked for."""
        dense = {
            "sparsity": 1.0,
            "parameters": self.dense.parameters,
            "MACs": self.dense.macs,
            "bytes": self.dense.bytes,
        }
        limits: dict[str, float | None] = {"accuracy": self.floor}
        for resource, amount in dense.items():
            asked = [b.limit(amount) for b in self.budgets if b.resource == resource]
            tightest = max if resource == "sparsity" else min
            limits[resource.lower()] = tightest(asked, default=None)
        return limits


def short_of(budgets: Sequence[Budget], pattern: Pattern) -> Resource:
    """Return what units are weighed against: multiply-adds if the first budget is on them.

    Else parameters, which bytes go with, and for zeros, which save no multiply-adds.
    """
    first = budgets[0].resource if budgets else "bytes"
    return "MACs" if first == "MACs" and not pattern.zeros else "parameters"


def check_request(
    target: AccuracyDrop | None,
    budgets: Sequence[Budget],
    evaluate: Evaluate | None,
    allocation: str,
    values: str,
    granularity: str,
    multiple_of: int,
    form: str,
) -> None:
    """Raise UsageError unless all that was asked makes sense together."""
    if not isinstance(budgets, Sequence):
        raise UsageError(f"budgets is a {type(budgets).__name__}; pass a list, [MACs(0.5)]")
    for budget in budgets:
        if not isinstance(budget, Budget) or budget.resource not in RESOURCES:
            raise UsageError(
                f"{budget!r} is no budget that can be counted; one is on {', '.join(RESOURCES)}"
            )
    check_values(values, ("auto", *VALUES))
    _check_known("form", form, FORMS)
    _check_known("allocation", allocation, ALLOCATIONS)
    if form == "exported" and granularity == "depth":
        raise UsageError("a program has no blocks to remove; use form='module' for depth")
    pattern = Pattern.of(granularity)
    if target is None and not budgets and pattern.unit != "n:m":
        raise UsageError("nothing to prune to; pass target=AccuracyDrop(0.01) or budgets=[...]")
    if target is not None and evaluate is None:
        raise UsageError("a target on accuracy needs evaluate=, a function model -> [0, 1]")
    if multiple_of < 1 or (multiple_of > 1 and pattern.unit not in ("channel", "head")):
        raise UsageError(
            f"multiple_of={multiple_of} of granularity {granularity!r}; the widths of channels and "
            "heads can be rounded up to a multiple of 1 or more"
        )


def _check_known(name: str, value: str, known: Collection[str]) -> None:
    if value not in known:
        raise UsageError(f"{name} {value!r} is not known; there are: {', '.join(known)}")
