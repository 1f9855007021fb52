"""What is asked of `prune`, checked, and the limits that it comes to."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from flexrel.core.budgets import PARAMETERS_LEFT, AccuracyDrop, budget_of, target_of
from flexrel.core.evaluate import Evaluate
from flexrel.core.granularity import Pattern
from flexrel.core.measurement import Progress, silent
from flexrel.core.precision import VALUES, RequestedPrecision, check_values
from flexrel.core.resources import Budget, Candidate, Resource
from flexrel.criteria import (
    ALLOCATIONS,
    OBS,
    Blend,
    Criterion,
    FlexRel,
    Magnitude,
    Relevance,
)
from flexrel.errors import UsageError
from flexrel.relevance import Attribution, RelevanceStats
from flexrel.repair import ClosedForm, FineTune, Recovery

Form = Literal["auto", "module", "exported"]
FORMS: tuple[Form, ...] = ("auto", "module", "exported")
_REPORTED = ("accuracy", "sparsity", "parameters", "macs", "bytes")  # whether asked for or not


@dataclass(frozen=True, slots=True)
class PruneOptions:
    """The rarer options of `prune`.

    Attributes:
        allocation: "global" compares all units of the network; "per-layer" takes the same share
            of every layer.
        multiple_of: round the widths that remain up to multiples of this, such as 8: kernels of
            some devices want it, and onnxruntime's convolutions. For channels and heads.
        form: "module" cuts the module itself, so that its class stays; "exported" cuts a
            self-contained program that `torch.export` makes of it, where numbers in its code are
            no obstacle, and which is in evaluation mode for good; "auto" takes the program only
            where the module can't be cut, or not enough for the budgets, and the program can.
        stats: relevance of this very network, measured before: taken wherever a criterion needs
            relevance, and none is measured.
        progress: told after each step.
    """

    allocation: Literal["global", "per-layer"] = "global"
    multiple_of: int = 1
    form: Form = "auto"
    stats: RelevanceStats | None = None
    progress: Progress = silent


@dataclass(frozen=True, slots=True)
class Request:
    """All that was asked, checked and read: what the arguments of `prune` say of each field."""

    evaluate: Evaluate | None
    target: AccuracyDrop | None
    budgets: tuple[Budget, ...]
    criteria: tuple[Criterion, ...]  # one is chosen, if several
    granularity: str
    repair: Recovery | None  # of every network that is tried
    training: Recovery | None  # of the one that is chosen
    recover: str  # what the last two were asked by
    values: RequestedPrecision
    keep: tuple[str, ...]
    seed: int
    options: PruneOptions = field(default_factory=PruneOptions)

    @property
    def fits(self) -> bool:
        """Whether weights are fitted to calibration data."""
        return self.repair is not None or self.training is not None

    @property
    def short(self) -> Resource:
        """What units are weighed by: the first budget's resource if it says what a unit takes.

        Else parameters, which bytes go with; and for zeros, which save no multiply-adds.
        """
        first = self.budgets[0].resource if self.budgets else PARAMETERS_LEFT
        zeros = Pattern.of(self.granularity).zeros
        return PARAMETERS_LEFT if zeros or first.unit_costs is None else first


def requested(
    *,
    evaluate: Evaluate | None,
    target: AccuracyDrop | str | None,
    budgets: Sequence[Budget | str],
    criterion: Criterion | Sequence[Criterion] | None,
    granularity: str,
    recover: str | Recovery,
    values: RequestedPrecision,
    keep: Sequence[str],
    seed: int,
    options: PruneOptions,
) -> Request:
    """Return what is asked, read and checked.

    Raises:
        UsageError: something is unknown, or makes no sense together.
    """
    if not isinstance(budgets, Sequence) or isinstance(budgets, str):
        raise UsageError(f"budgets is a {type(budgets).__name__}; pass a list, [MACs(0.5)]")
    read = tuple(map(budget_of, budgets))
    goal = None if target is None else target_of(target)
    check_values(values, ("auto", *VALUES))
    _check_known("form", options.form, FORMS)
    _check_known("allocation", options.allocation, ALLOCATIONS)
    if options.form == "exported" and granularity == "depth":
        raise UsageError("a program has no blocks to remove; use form='module' for depth")
    pattern = Pattern.of(granularity)
    if goal is None and not read and pattern.unit != "n:m":
        raise UsageError("nothing to prune to; pass target=AccuracyDrop(0.01) or budgets=[...]")
    if goal is not None and evaluate is None:
        raise UsageError("a target on accuracy needs evaluate=, a function model -> [0, 1]")
    width = options.multiple_of
    if width < 1 or (width > 1 and pattern.unit not in ("channel", "head")):
        raise UsageError(
            f"multiple_of={width} of granularity {granularity!r}; the widths of channels and "
            "heads can be rounded up to a multiple of 1 or more"
        )
    repair, training = recoveries(recover, seed)
    if criterion is None:
        criterion = candidates(granularity, recover)
    return Request(
        evaluate=evaluate,
        target=goal,
        budgets=read,
        criteria=(criterion,) if isinstance(criterion, Criterion) else tuple(criterion),
        granularity=granularity,
        repair=repair,
        training=training,
        recover=recover if isinstance(recover, str) else recover.name,
        values=values,
        keep=tuple(keep),
        seed=seed,
        options=options,
    )


def recoveries(recover: str | Recovery, seed: int) -> tuple[Recovery | None, Recovery | None]:
    """Return what repairs every network that is tried, and what goes on from the one chosen.

    Args:
        recover: "none", "closed-form", "finetune:E" for E epochs on the calibration data, or what
            is to follow the repair.
        seed: of random numbers.

    Raises:
        UsageError: it is none of these.
    """
    if recover == "none":
        return None, None
    if recover == "closed-form":
        return ClosedForm(seed=seed), None
    if isinstance(recover, str):
        kind, _, epochs = recover.partition(":")
        if kind != "finetune" or not epochs.isdecimal():
            raise UsageError(
                f"recover {recover!r} is not known; there are: none, closed-form, finetune:EPOCHS"
            )
        recover = FineTune(int(epochs), seed=seed)
    if not isinstance(recover, Recovery):
        raise UsageError(
            f"recover is a {type(recover).__name__}, which does not fit flexrel.Recovery; pass "
            "none, closed-form, finetune:EPOCHS or a flexrel.FineTune(...)"
        )
    return (recover, None) if isinstance(recover, ClosedForm) else (ClosedForm(seed=seed), recover)


def candidates(
    granularity: str = "channel",
    recover: str | Recovery = "closed-form",
    attribution: Attribution = Attribution(),  # noqa: B008 - frozen
) -> tuple[Criterion, ...]:
    """Return the criteria that `criterion=None` chooses from; of equals, the earlier is taken.

    Where each network tried is repaired, which takes longer, they are few. For channels and heads
    `OBS`, which knows of the repair, and the signals that it does not always beat; for weights the
    three that were best wherever it was measured: magnitude first, since a budget on bytes has its
    network repaired already. `docs/method.md` has the measurements.

    Args:
        granularity: as in `prune`.
        recover: likewise.
        attribution: by which rule and from which output relevance is measured.
    """
    rule, output = attribution.rule, attribution.output

    def blended(delta: float, blend: Blend = "sum") -> FlexRel:
        return FlexRel(delta, blend=blend, rule=rule, output=output)

    relevance = Relevance(rule=rule, output=output)
    repairs = recover != "none"
    if repairs and granularity in ("channel", "head"):
        return (OBS(), blended(0.5), Magnitude(), relevance)
    if repairs and granularity != "depth":
        return (Magnitude(), blended(1 / 3, "product"), blended(0.1))
    sums = tuple(map(blended, (0.1, 0.3, 0.5, 0.7, 0.9)))
    products = tuple(blended(delta, "product") for delta in (1 / 3, 0.5, 2 / 3))
    return (*sums, *products, Magnitude(), relevance)


def _check_known(name: str, value: str, known: Collection[str]) -> None:
    if value not in known:
        raise UsageError(f"{name} {value!r} is not known; there are: {', '.join(known)}")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a network must keep to.

    Attributes:
        floor: the least accuracy allowed; None: any.
        amounts: each budget's resource, with its limit in the resource's unit.
    """

    floor: float | None
    amounts: tuple[tuple[Resource, float], ...]

    @property
    def measured(self) -> tuple[tuple[Resource, float], ...]:
        """Those that only the network itself tells, such as the bytes of its file."""
        return tuple(pair for pair in self.amounts if not pair[0].steady)

    def as_json(self) -> Mapping[str, float | None]:
        """Return every limit by its resource, None where nothing was asked for."""
        found: dict[str, float | None] = dict.fromkeys(_REPORTED)
        found["accuracy"] = self.floor
        for resource, limit in self.amounts:
            name = resource.name.lower()
            tightest = max if resource.at_least else min
            known = found.get(name)
            found[name] = limit if known is None else tightest(known, limit)
        return found


def limits_of(request: Request, dense: Candidate, accuracy: float | None) -> Limits:
    """Return the limits that a request comes to for a dense network of this accuracy."""
    floor = None
    if request.target is not None and accuracy is not None:
        floor = max(accuracy - request.target.amount, 0.0)
    return Limits(
        floor, tuple((b.resource, b.limit(b.resource.count(dense))) for b in request.budgets)
    )
