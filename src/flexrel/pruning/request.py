"""What is asked of `prune`, checked, and the limits that it comes to."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from flexrel.core.batches import RawBatches
from flexrel.core.budgets import PARAMETERS_LEFT, Bytes, MACs, Parameters, budget_of
from flexrel.core.class_names import check_class_names
from flexrel.core.deadline import NO_DEADLINE, Deadline, seconds_in
from flexrel.core.evaluate import ACCURACY, Evaluate, Evaluation, evaluate_of
from flexrel.core.events import Judge, check_listeners, unheard
from flexrel.core.granularity import Pattern
from flexrel.core.latency import Latency
from flexrel.core.measurement import Progress, silent
from flexrel.core.outputs import check_outputs
from flexrel.core.precision import VALUES, RequestedPrecision, check_values
from flexrel.core.progress import check_progress
from flexrel.core.resources import Budget, Resource
from flexrel.core.targets import Target, targets_of, unnamed
from flexrel.criteria import ALLOCATIONS, SALIENCY, Criterion, Magnitude
from flexrel.errors import UsageError
from flexrel.io import check_metadata, check_runtime
from flexrel.pruning.arguments import are_candidates, criteria_of, recoveries
from flexrel.pruning.options import EFFORTS, FORMS, PruneOptions
from flexrel.relevance import Attribution
from flexrel.repair import ClosedForm, FineTune, Recovery

_LEAST: Mapping[str, Resource] = {
    b.resource.name.lower(): b.resource for b in (Bytes, MACs, Parameters)
}
_THOROUGH = 30_000  # rows of each layer that are fitted
_SHARES: Mapping[str, float] = {  # of the time there is that may be over when a stage ends
    "calibrating": 0.15,
    "measuring K-FAC factors": 0.3,
    "refitting readers": 0.4,
    "measuring saliency": 0.45,
    "repairing": 1.0,
    "rounding": 1.0,
    "epoch": 1.0,  # of training
}
_REPAIRED = 0.6  # instead, where rounding or training follows


@dataclass(frozen=True, slots=True)
class Request:
    """All that was asked, checked and read: what the arguments of `prune` say of each field."""

    evaluate: Evaluate | None
    targets: tuple[Target, ...]
    budgets: tuple[Budget, ...]
    criteria: tuple[Criterion, ...]  # one is chosen, if several
    quick: bool  # whether the first of these that can score something is taken
    granularity: str
    repair: ClosedForm | None  # of every network that is tried
    training: Recovery | None  # of the one that is chosen
    recover: str  # what the last two were asked by
    values: RequestedPrecision
    keep: tuple[str, ...]
    seed: int
    options: PruneOptions
    halved: bool = False  # multiples of widths that are less than two: those were found, not asked
    progress: Progress = silent  # what is told of each step, while it goes on, and ends stages
    deadline: Deadline = NO_DEADLINE  # while it goes on
    judged: Judge = unheard  # is told of candidates, while it goes on

    @property
    def stages(self) -> tuple[str, ...]:
        """How the names of the stages begin that it takes, in their order."""
        needs = [need for criterion in self.criteria for need in criterion.needs]
        attributed = any(isinstance(need, Attribution) for need in needs)
        saliency = ("measuring K-FAC factors", "refitting readers", "measuring saliency")
        parts = (
            ("reading the data", "tracing the network"),
            ("calibrating",) if attributed and self.options.known_relevance is None else (),
            saliency if SALIENCY in needs else (),
            ("measuring dense",),
            ("choosing a criterion",) if len(self.criteria) > 1 else (),
            ("searching",) if self.targets else (),
            () if self.training is None else ("fine-tuning",),
            ("finishing",),
        )
        return tuple(chain.from_iterable(parts))

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
        options = replace(self.options, progress=None, stats=None, cache=None, listeners=())
        return replace(
            self,
            evaluate=None,
            training=None,
            options=options,
            progress=silent,
            deadline=NO_DEADLINE,
            judged=unheard,
        )

    def within(self, deadline: Deadline) -> "Request":
        """Return the request whose stages end by then, each at its share of the time."""
        follows = self.training is not None or self.values != "float32"
        shares = {**_SHARES, "repairing": _REPAIRED} if follows else _SHARES
        ending = deadline.ending(self.progress, shares)
        return replace(self, deadline=deadline, progress=ending)


def requested(
    *,
    evaluate: Evaluate | RawBatches | None,
    target: Target | str | Sequence[Target | str] | None,
    budgets: Sequence[Budget | str] | Budget | str,
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
    budgets = (budgets,) if isinstance(budgets, str | Budget) else budgets
    if not isinstance(budgets, Sequence):
        raise UsageError(f"budgets is a {type(budgets).__name__}; pass a list, [MACs(0.5)]")
    _check_keep(keep)
    if not isinstance(options, PruneOptions):
        raise UsageError(f"options is a {type(options).__name__}; pass a flexrel.PruneOptions(...)")
    evaluate = evaluate_of(evaluate, options.outputs)
    if options.time_limit is not None:
        seconds_in(options.time_limit)
    read = tuple(map(budget_of, budgets))
    _check_alike(read)
    targets = targets_of(target)
    check_values(values, ("auto", *VALUES))
    check_outputs(options.outputs)
    check_progress(options.progress)
    check_metadata(options.metadata)
    check_class_names(options.class_names)
    check_listeners(options.listeners)
    _check_known("form", options.form, FORMS)
    _check_known("effort", options.effort, EFFORTS)
    _check_known("allocation", options.allocation, ALLOCATIONS)
    if options.form == "exported" and granularity == "depth":
        raise UsageError("a program has no blocks to remove; use form 'module' for depth")
    pattern = Pattern.of(granularity)
    _check_minimised(options.minimise)
    if not targets and not read and pattern.unit != "n:m":
        raise UsageError("nothing to prune to; pass target=AccuracyDrop(0.01) or budgets=[...]")
    check_evaluated(targets, evaluate)
    _check_width(options.multiple_of, granularity, pattern)
    criteria = criteria_of(criterion, granularity, recover)
    repair, training = recoveries(recover, seed)
    left_open = are_candidates(criteria, granularity, recover)
    quick = options.effort == "fast" and repair is not None and left_open
    if quick:
        criteria = (criteria[0], Magnitude())
    if repair and options.effort == "thorough":
        repair = replace(repair, rows=_THOROUGH)
    if options.regrow:
        repair = repair and replace(repair, regrow=True)
        training = replace(training, regrow=True) if isinstance(training, FineTune) else training
    if isinstance(training, FineTune) and training.outputs == "auto":
        training = replace(training, outputs=options.outputs)
    return Request(
        evaluate=evaluate,
        targets=targets,
        budgets=read,
        criteria=criteria,
        quick=quick,
        granularity=granularity,
        repair=repair,
        training=training,
        recover=recover if isinstance(recover, str) else recover.name,
        values=values,
        keep=tuple(keep),
        seed=seed,
        options=options,
    )


def _check_keep(keep: Sequence[object]) -> None:
    if isinstance(keep, str):
        raise UsageError(f"keep is the text {keep!r}; pass a list of names of layers, [{keep!r}]")
    for one in keep:
        if not isinstance(one, str):
            raise UsageError(
                f"keep has a {type(one).__name__}; pass names of layers, as model.named_modules() "
                "has them"
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


def _check_width(width: int, granularity: str, pattern: Pattern) -> None:
    rounds = pattern.unit in ("channel", "head")
    if not isinstance(width, int) or width < 1 or (width > 1 and not rounds):
        raise UsageError(
            f"multiple_of={width!r} of granularity {granularity!r}; the widths of channels and "
            "heads can be rounded up to a multiple of 1 or more"
        )


def _check_alike(budgets: Sequence[Budget]) -> None:
    """Refuse two budgets that a result would report under one name, but that count differently.

    And a runtime that is not installed.
    """
    found: dict[str, Resource] = {}
    timed = [one for one in budgets if isinstance(one, Latency)]
    if len(timed) > 1:
        raise UsageError(f"{len(timed)} budgets on latency; one runtime at a time can be asked for")
    for latency in timed:
        if not latency.profile:
            check_runtime(latency.runtime)
    for one in budgets:
        resource = one.resource
        if found.setdefault(resource.key, resource) != resource:
            raise UsageError(
                f"two budgets on {resource.name!r} are counted in two ways, as over two links; "
                "give the tighter of them"
            )


def _check_known(name: str, value: str, known: Collection[str]) -> None:
    if value not in known:
        raise UsageError(f"{name} {value!r} is not known; there are: {', '.join(known)}")
