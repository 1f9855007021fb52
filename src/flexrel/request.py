"""What was asked of a network: limits, relative to the dense one, and whether they make sense."""

from collections.abc import Sequence
from dataclasses import dataclass

from flexrel.allocate import ALLOCATIONS
from flexrel.budgets import RESOURCES, AccuracyDrop, Budget
from flexrel.errors import UsageError
from flexrel.evaluate import Evaluate
from flexrel.granularity import Pattern
from flexrel.pack import VALUES
from flexrel.records import Measurement


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


def check_request(
    target: AccuracyDrop | None,
    budgets: Sequence[Budget],
    evaluate: Evaluate | None,
    allocation: str,
    values: str,
    granularity: str,
    multiple_of: int,
) -> None:
    """Raise UsageError unless all that was asked makes sense together."""
    if not isinstance(budgets, Sequence):
        raise UsageError(f"budgets is a {type(budgets).__name__}; pass a list, [MACs(0.5)]")
    for budget in budgets:
        if not isinstance(budget, Budget) or budget.resource not in RESOURCES:
            raise UsageError(
                f"{budget!r} is no budget that can be counted; one is on {', '.join(RESOURCES)}"
            )
    if values not in VALUES:
        raise UsageError(f"values {values!r} is not known; there are: {', '.join(VALUES)}")
    pattern = Pattern.of(granularity)
    if target is None and not budgets and pattern.unit != "group":
        raise UsageError("nothing to prune to; pass target=AccuracyDrop(0.01) or budgets=[...]")
    if target is not None and evaluate is None:
        raise UsageError("a target on accuracy needs evaluate=, a function model -> [0, 1]")
    if allocation not in ALLOCATIONS:
        raise UsageError(
            f"allocation {allocation!r} is not known; there are: {', '.join(ALLOCATIONS)}"
        )
    if multiple_of < 1 or (multiple_of > 1 and pattern.unit not in ("channel", "head")):
        raise UsageError(
            f"multiple_of={multiple_of} of granularity {granularity!r}; the widths of channels and "
            "heads can be rounded up to a multiple of 1 or more"
        )
