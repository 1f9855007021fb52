"""What is asked of `prune`, checked, and the limits that it comes to."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from flexrel.core.budgets import PARAMETERS_LEFT, Bytes, MACs, Parameters, budget_of
from flexrel.core.evaluate import ACCURACY, Evaluate, Evaluation
from flexrel.core.granularity import Pattern
from flexrel.core.measurement import Progress, silent
from flexrel.core.outputs import RequestedOutputs, check_outputs
from flexrel.core.precision import VALUES, RequestedPrecision, check_values
from flexrel.core.resources import Budget, Candidate, Resource
from flexrel.core.targets import Goal, Target, targets_of, unnamed
from flexrel.criteria import ALLOCATIONS, Criterion
from flexrel.errors import UsageError
from flexrel.pruning.arguments import criteria_of, recoveries
from flexrel.relevance import RelevanceStats
from flexrel.repair import FineTune, Recovery

Form = Literal["auto", "module", "exported"]
FORMS: tuple[Form, ...] = ("auto", "module", "exported")
_LEAST: Mapping[str, Resource] = {
    b.resource.name.lower(): b.resource for b in (Bytes, MACs, Parameters)
}
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
        outputs: what the network's outputs are, which says how far two networks are apart:
            "classes", scores `[samples, classes]`; "logits", each a yes or no of its own; "values";
            or a function (dense network's result, another's) -> their mean distance, of a batch.
            "auto" goes by the labels of calibration or evaluation; without labels by a distance
            that sees scale and shift, as of "values". `FineTune` follows it.
        minimise: what is to be least where there is a target: "bytes" of the packed file, "macs",
            "parameters", or any `flexrel.Resource`.
        assured: with a target on accuracy, keep so far within it on the samples searched with that
            those set aside can mostly confirm it: less goes, and `Result.promise` is mostly kept.
        stats: relevance of this very network, measured before: taken wherever a criterion needs
            relevance, and none is measured.
        progress: told after each step.
    """

    allocation: Literal["global", "per-layer"] = "global"
    multiple_of: int = 1
    form: Form = "auto"
    outputs: RequestedOutputs = "auto"
    minimise: str | Resource = "bytes"
    assured: bool = False
    stats: RelevanceStats | None = None
    progress: Progress = silent


@dataclass(frozen=True, slots=True)
class Request:
    """All that was asked, checked and read: what the arguments of `prune` say of each field."""

    evaluate: Evaluate | None
    targets: tuple[Target, ...]
    budgets: tuple[Budget, ...]
    criteria: tuple[Criterion, ...]  # one is chosen, if several
    granularity: str
    repair: Recovery | None  # of every network that is tried
    training: Recovery | None  # of the one that is chosen
    recover: str  # what the last two were asked by
    values: RequestedPrecision
    keep: tuple[str, ...]
    seed: int
    options: PruneOptions

    @property
    def fits(self) -> bool:
        """Whether weights are fitted to calibration data."""
        return self.repair is not None or self.training is not None

    @property
    def short(self) -> Resource:
        """What units are weighed by: what is to be least, or the first budget's resource.

        Of these the first that says what a unit takes. Else parameters, which bytes go with; and
        for zeros, which save no multiply-adds.
        """
        asked = [self.minimised] if self.targets else []
        asked += [budget.resource for budget in self.budgets[:1]]
        zeros = Pattern.of(self.granularity).zeros
        weigh = (one for one in asked if one.steady and one.unit_costs is not None and not zeros)
        return next(weigh, PARAMETERS_LEFT)

    @property
    def minimised(self) -> Resource:
        """What is to be least where there is a target."""
        asked = self.options.minimise
        return asked if isinstance(asked, Resource) else _LEAST[asked]

    @property
    def evaluation(self) -> Evaluation | None:
        """What says how a network does."""
        return self.evaluate and Evaluation(self.evaluate, unnamed(self.targets))

    def told(self) -> "Request":
        """Return what a result tells of it: without what measures, trains and listens."""
        options = replace(self.options, progress=silent, stats=None)
        return replace(self, evaluate=None, training=None, options=options)


def requested(
    *,
    evaluate: Evaluate | None,
    target: Target | str | Sequence[Target | str] | None,
    budgets: Sequence[Budget | str],
    criterion: Criterion | str | Sequence[Criterion | str] | None,
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
    if isinstance(keep, str):
        raise UsageError(f"keep is the text {keep!r}; pass a list of names of layers, [{keep!r}]")
    if not isinstance(options, PruneOptions):
        raise UsageError(f"options is a {type(options).__name__}; pass a flexrel.PruneOptions(...)")
    read = tuple(map(budget_of, budgets))
    targets = targets_of(target)
    check_values(values, ("auto", *VALUES))
    check_outputs(options.outputs)
    _check_known("form", options.form, FORMS)
    _check_known("allocation", options.allocation, ALLOCATIONS)
    if options.form == "exported" and granularity == "depth":
        raise UsageError("a program has no blocks to remove; use form 'module' for depth")
    pattern = Pattern.of(granularity)
    _check_minimised(options.minimise)
    if not targets and not read and pattern.unit != "n:m":
        raise UsageError("nothing to prune to; pass target=AccuracyDrop(0.01) or budgets=[...]")
    check_evaluated(targets, evaluate)
    width = options.multiple_of
    if (
        not isinstance(width, int)
        or width < 1
        or (width > 1 and pattern.unit not in ("channel", "head"))
    ):
        raise UsageError(
            f"multiple_of={width!r} of granularity {granularity!r}; the widths of channels and "
            "heads can be rounded up to a multiple of 1 or more"
        )
    repair, training = recoveries(recover, seed)
    if isinstance(training, FineTune) and training.outputs == "auto":
        training = replace(training, outputs=options.outputs)
    return Request(
        evaluate=evaluate,
        targets=targets,
        budgets=read,
        criteria=criteria_of(criterion, granularity, recover),
        granularity=granularity,
        repair=repair,
        training=training,
        recover=recover if isinstance(recover, str) else recover.name,
        values=values,
        keep=tuple(keep),
        seed=seed,
        options=options,
    )


def check_evaluated(targets: Sequence[Target], evaluate: Evaluate | None) -> None:
    """Raise a UsageError if there are targets and nothing that tells what they are on."""
    if targets and evaluate is None:
        metric = targets[0].metric
        returns = "[0, 1]" if metric == ACCURACY else f'{{"{metric}": number}}'
        raise UsageError(f"a target on {metric} needs evaluate=, a function model -> {returns}")


def _check_minimised(given: object) -> None:
    if not isinstance(given, Resource):
        _check_known("minimise", str(given), _LEAST)
    elif given.at_least:
        raise UsageError(f"minimise is {given.name!r}, of which a network needs so much at least")


def _check_known(name: str, value: str, known: Collection[str]) -> None:
    if value not in known:
        raise UsageError(f"{name} {value!r} is not known; there are: {', '.join(known)}")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a network must keep to.

    Attributes:
        goals: what targets come to.
        amounts: each budget's resource, with its limit in the resource's unit.
        minimised: what is to be least, where there are goals.
    """

    goals: tuple[Goal, ...]
    amounts: tuple[tuple[Resource, float], ...]
    minimised: Resource

    @property
    def floor(self) -> float | None:
        """The least accuracy allowed; None: any."""
        return max((one.limit for one in self.goals if one.metric == ACCURACY), default=None)

    @property
    def measured(self) -> tuple[tuple[Resource, float], ...]:
        """Those that only the network itself tells, such as the bytes of its file."""
        return tuple(pair for pair in self.amounts if not pair[0].steady)

    def counted(self, dense: Candidate, achieved: Candidate) -> Mapping[str, tuple[float, float]]:
        """Return how much of each limited resource two networks take, by its name."""
        return {r.name.lower(): (r.count(dense), r.count(achieved)) for r, _ in self.amounts}

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


def limits_of(request: Request, dense: Candidate, goals: tuple[Goal, ...]) -> Limits:
    """Return the limits that a request comes to for a dense network."""
    amounts = tuple((b.resource, b.limit(b.resource.count(dense))) for b in request.budgets)
    return Limits(goals, amounts, request.minimised)
