"""What the target can afford: budgets on resources, and a target on accuracy.

A budget given as a fraction is a fraction of the dense network: `MACs(0.5)` is half of its
multiply-adds. Every budget is met from below, or the call fails and says what is possible.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

from flexrel.core import cost
from flexrel.core.graph import PruningGraph
from flexrel.core.latency import Latency
from flexrel.core.link import Link
from flexrel.core.memory import PeakMemory
from flexrel.core.quantities import (
    bytes_limit,
    bytes_unread,
    check_share_or_count,
    is_number,
    number_of,
    share_or_count,
)
from flexrel.core.resources import Budget, Candidate, Resource
from flexrel.errors import UsageError


def _parameters_left(candidate: Candidate) -> int:
    if candidate.graph.granularity == "element":  # masks of millions take a second
        return cost.parameters(candidate.graph) - candidate.removed
    return cost.parameters(candidate.graph, candidate.plan.masks)


PARAMETERS_LEFT = Resource("parameters", _parameters_left, unit_costs=cost.unit_parameters)


def _macs_left(candidate: Candidate) -> int:
    return cost.macs(candidate.graph, candidate.plan.masks)


def _packed_bytes(candidate: Candidate) -> int:
    return len(candidate.packed)


def _share_removed(candidate: Candidate) -> float:
    return candidate.removed / candidate.units


def _macs_advice(graph: PruningGraph) -> str:
    zeros = graph.pattern.zeros
    return "Zeros save no multiply-adds; use granularity='channel'." if zeros else ""


def _bytes_advice(graph: PruningGraph) -> str:
    channels = graph.pattern.unit == "channel"
    return "Granularity 'element' makes smaller files." if channels else ""


@dataclass(frozen=True, slots=True)
class Parameters:
    """At most `amount` parameters: a count, a share of the dense ones as a float, or "120k", "50%".

    Raises:
        UsageError: it is neither.
    """

    amount: float | str
    resource: ClassVar[Resource] = PARAMETERS_LEFT

    def __post_init__(self) -> None:
        check_share_or_count(self.resource.name, self.amount)

    def limit(self, dense: float) -> int:
        """Return the most parameters allowed."""
        return share_or_count(self.amount, dense)


@dataclass(frozen=True, slots=True)
class MACs:
    """At most `amount` multiply-adds for one sample: a count, a share of the dense ones, or text.

    Raises:
        UsageError: it is neither.
    """

    amount: float | str
    resource: ClassVar[Resource] = Resource(
        "MACs", _macs_left, unit_costs=cost.unit_macs, advice=_macs_advice
    )

    def __post_init__(self) -> None:
        check_share_or_count(self.resource.name, self.amount)

    def limit(self, dense: float) -> int:
        """Return the most multiply-adds allowed."""
        return share_or_count(self.amount, dense)


@dataclass(frozen=True, slots=True)
class Bytes:
    """At most `amount` bytes of the packed file: 500_000, "500 kB", "1.5 MiB", "50%", or a share.

    A share is a share of the dense network packed with the same encoder.

    Raises:
        UsageError: it is none of these.
    """

    amount: float | str
    resource: ClassVar[Resource] = Resource(
        "bytes", _packed_bytes, steady=False, tolerance=0.002, advice=_bytes_advice
    )

    def __post_init__(self) -> None:
        if not bytes_limit(self.resource.name, self.amount, 10**12):
            raise bytes_unread(self.resource.name, self.amount)

    def limit(self, dense: float) -> int:
        """Return the most bytes allowed."""
        return bytes_limit(self.resource.name, self.amount, dense)


@dataclass(frozen=True, slots=True)
class Sparsity:
    """At least this fraction of the prunable units removed, in [0, 1), or "80%".

    What can't be pruned does not count; `Measurement.weights_removed` says what share of all
    weights went. For elements and N:M units are weights. For channels they are channels (a
    pruning ratio), which take another share of the parameters with them; for blocks they are
    blocks, of which those at the end of a weight may be smaller.

    Raises:
        UsageError: it is no such fraction.
    """

    amount: float | str
    resource: ClassVar[Resource] = Resource("sparsity", _share_removed, at_least=True)

    def __post_init__(self) -> None:
        readable = not isinstance(self.amount, str) or is_number(self.amount)
        amount = number_of(self.amount) if readable else None
        if amount is None or not 0 <= amount < 1:
            raise UsageError(f"sparsity is {self.amount!r}; it is the fraction removed, in [0, 1)")

    def limit(self, dense: float) -> float:  # noqa: ARG002 - a sparsity does not depend on it
        """Return the least fraction removed."""
        return float(number_of(self.amount))


@dataclass(frozen=True, slots=True)
class AccuracyDrop:
    """The network may lose at most this much of `evaluate`: 0.01 is one point.

    Raises:
        UsageError: it is no number in [0, 1].
    """

    amount: float
    metric: ClassVar[str] = "accuracy"
    lower_is_better: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= (math.nan if isinstance(self.amount, str) else number_of(self.amount)) <= 1:
            raise UsageError(f"accuracy drop is {self.amount!r}; 0.01 is one point, at most 1")

    def limit(self, dense: float) -> float:
        """Return the least accuracy allowed."""
        return dense - self.amount


def _number_or_text(amount: str) -> float | str:
    return number_of(amount) if is_number(amount) else amount


_READERS: Final[Mapping[str, Callable[[str], Budget]]] = {  # each of what follows the "="
    "bytes": lambda amount: Bytes(_number_or_text(amount)),
    "macs": lambda amount: MACs(number_of(amount)),
    "parameters": lambda amount: Parameters(number_of(amount)),
    "sparsity": lambda amount: Sparsity(number_of(amount)),
    "link": Link.read,
    "latency": Latency.read,
    "memory": lambda amount: PeakMemory(_number_or_text(amount)),
}
BUDGET_EXAMPLES: Final = (
    "bytes=500kB, macs=50%, parameters=120k, sparsity=80%, link=8s@1Mbit/s, memory=50%, "
    "latency=5ms@onnxruntime"
)
TARGET_EXAMPLES: Final = "accuracy-drop=1%, accuracy>=90%, loss<=0.35, perplexity+5%, mAP-0.5"
_OTHER_NAMES: Final = {"flops": "macs", "params": "parameters", "size": "bytes"}


def budget_of(given: object) -> Budget:
    """Return the budget that is given, or that a text such as "macs=50%" asks for.

    Raises:
        UsageError: it is no budget; lists what can be written.
    """
    if isinstance(given, Budget) and isinstance(given.resource, Resource):
        return given
    if not isinstance(given, str):
        raise UsageError(
            f"{given!r} is no budget that can be counted; pass an object with a Resource and a "
            f"limit, or a text like {BUDGET_EXAMPLES}"
        )
    name, _, amount = given.partition("=")
    if name not in _READERS:
        other = name.strip().lower()
        meant = other if other in _READERS else _OTHER_NAMES.get(other, "")
        meant = f"did you mean {meant}={amount}? " if meant else ""
        raise UsageError(f"budget {given!r} is not known; {meant}write it like {BUDGET_EXAMPLES}")
    try:
        return _READERS[name](amount)
    except UsageError as error:
        raise UsageError(f"budget {given!r}: {error}; write it like {BUDGET_EXAMPLES}") from error


def target_of(given: object) -> AccuracyDrop:
    """Return the target that is given, or that "accuracy-drop=1%" or "1%" asks for.

    Raises:
        UsageError: it is no target.
    """
    if isinstance(given, AccuracyDrop):
        return given
    bare = isinstance(given, str) and is_number(given)
    name, _, amount = (f"accuracy-drop={given}" if bare else str(given)).partition("=")
    if name != "accuracy-drop" or not isinstance(given, str):
        raise UsageError(f"target {given!r} is not known; write it like {TARGET_EXAMPLES}")
    if not is_number(amount):
        raise UsageError(
            f"target {given!r} has no amount that can be read; write it like {TARGET_EXAMPLES}"
        )
    share = float(number_of(amount))
    if share >= 1 and not amount.endswith("%"):
        raise UsageError(f"target {given!r} is unclear; write one point as 1% or as 0.01")
    return AccuracyDrop(share)
