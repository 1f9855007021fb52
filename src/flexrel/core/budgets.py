"""What the target can afford: budgets on resources, and a target on accuracy.

A budget given as a fraction is a fraction of the dense network: `MACs(0.5)` is half of its
multiply-adds. Every budget is met from below, or the call fails and says what is possible.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from flexrel.core import cost
from flexrel.core.graph import PruningGraph
from flexrel.core.resources import Budget, Candidate, Resource
from flexrel.errors import UsageError

_NUMBER = re.compile(r"([0-9]*\.?[0-9]+)\s*(%|[kMG]?)")
_BYTES = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*((?:[kKMG]i?)?B)\s*")
_FACTORS = {"k": 10**3, "M": 10**6, "G": 10**9}
_UNITS = {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_UNITS |= {"KiB": 2**10, "kiB": 2**10, "MiB": 2**20, "GiB": 2**30}


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
        _checked(self.resource.name, self.amount)

    def limit(self, dense: float) -> int:
        """Return the most parameters allowed."""
        return _share_or_count(self.amount, dense)


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
        _checked(self.resource.name, self.amount)

    def limit(self, dense: float) -> int:
        """Return the most multiply-adds allowed."""
        return _share_or_count(self.amount, dense)


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
        if not isinstance(self.amount, str):
            _checked(self.resource.name, self.amount)
        elif not self.limit(10**12):
            raise self._unread()

    def limit(self, dense: float) -> int:
        """Return the most bytes allowed."""
        if not isinstance(self.amount, str):
            return _share_or_count(self.amount, dense)
        if _NUMBER.fullmatch(self.amount):  # "500", "500k", "50%"
            return _share_or_count(self.amount, dense)
        found = _BYTES.fullmatch(self.amount)
        if found is None:
            raise self._unread()
        return math.floor(Fraction(found[1]) * _UNITS[found[2]])

    def _unread(self) -> UsageError:
        return UsageError(
            f'bytes budget is {self.amount!r}; write it like "500 kB", "1.5 MiB" or 500000'
        )


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
        readable = not isinstance(self.amount, str) or _NUMBER.fullmatch(self.amount)
        amount = _number(self.amount) if readable else None
        if amount is None or not 0 <= amount < 1:
            raise UsageError(f"sparsity is {self.amount!r}; it is the fraction removed, in [0, 1)")

    def limit(self, dense: float) -> float:  # noqa: ARG002 - a sparsity does not depend on it
        """Return the least fraction removed."""
        return float(_number(self.amount))


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
        if not 0 <= (math.nan if isinstance(self.amount, str) else _number(self.amount)) <= 1:
            raise UsageError(f"accuracy drop is {self.amount!r}; 0.01 is one point, at most 1")

    def limit(self, dense: float) -> float:
        """Return the least accuracy allowed."""
        return dense - self.amount


_NAMED: Mapping[str, type[Bytes | MACs | Parameters | Sparsity]] = {
    "bytes": Bytes,
    "macs": MACs,
    "parameters": Parameters,
    "sparsity": Sparsity,
}
_EXAMPLES = "bytes=500kB, macs=50%, parameters=120k, sparsity=80%"
TARGET_EXAMPLES = "accuracy-drop=1%, accuracy>=90%, loss<=0.35, perplexity+5%, mAP-0.5"


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
            f"limit, or a text like {_EXAMPLES}"
        )
    name, _, amount = given.partition("=")
    if name not in _NAMED:
        raise UsageError(f"budget {given!r} is not known; write it like {_EXAMPLES}")
    if _NUMBER.fullmatch(amount):
        return _NAMED[name](_number(amount))
    if name == "bytes" and amount.endswith("B"):
        return Bytes(amount)
    raise UsageError(f"budget {given!r} has no amount that can be read; write it like {_EXAMPLES}")


def target_of(given: object) -> AccuracyDrop:
    """Return the target that is given, or that "accuracy-drop=1%" or "1%" asks for.

    Raises:
        UsageError: it is no target.
    """
    if isinstance(given, AccuracyDrop):
        return given
    bare = isinstance(given, str) and _NUMBER.fullmatch(given)
    name, _, amount = (f"accuracy-drop={given}" if bare else str(given)).partition("=")
    if name != "accuracy-drop" or not isinstance(given, str):
        raise UsageError(f"target {given!r} is not known; write it like {TARGET_EXAMPLES}")
    if not _NUMBER.fullmatch(amount):
        raise UsageError(
            f"target {given!r} has no amount that can be read; write it like {TARGET_EXAMPLES}"
        )
    share = float(_number(amount))
    if share >= 1 and not amount.endswith("%"):
        raise UsageError(f"target {given!r} is unclear; write one point as 1% or as 0.01")
    return AccuracyDrop(share)


def _number(given: object) -> float:
    """Return a share for "50%" and "0.5", a whole number for "500", "120k" and "1.5M".

    Numbers are what they are, and NaN what is none.
    """
    if isinstance(given, bool) or not isinstance(given, str | int | float):
        return math.nan
    if not isinstance(given, str):
        return given
    found = _NUMBER.fullmatch(given)
    if found is None:
        raise UsageError(f"amount {given!r} can't be read; write it like 500, 120k, 0.5 or 50%")
    number, unit = found.groups()
    if unit == "%":
        return float(number) / 100
    if unit or "." not in number:
        return round(float(number) * _FACTORS.get(unit, 1))
    return float(number)


def _share_or_count(amount: float | str, dense: float) -> int:
    """Return the limit, rounded down: 0.29 of 100 is 29, though the product of floats is less."""
    number = _number(amount)
    return math.floor(Fraction(str(number)) * Fraction(dense)) if _is_share(number) else int(number)


def _is_share(number: float) -> bool:
    return isinstance(number, float)


def _checked(resource: str, given: float | str) -> None:
    number = _number(given)
    if not (0 < number <= 1 if _is_share(number) else number > 0):
        raise UsageError(
            f"{resource} budget is {given!r}; give a share of the dense network in (0, 1] "
            "as a float, or a count of at least 1 as an int"
        )
