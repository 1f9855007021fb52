"""The spine: from a network and what the target can afford to the result."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from flexrel.core.batches import RawBatches
from flexrel.core.caches import cache_again_, uncached
from flexrel.core.class_names import class_names
from flexrel.core.deadline import Deadline
from flexrel.core.distance import Divergence
from flexrel.core.evaluate import Evaluate
from flexrel.core.events import heard, result_told
from flexrel.core.latency import Timing
from flexrel.core.measurement import Measurement
from flexrel.core.network import plain_network
from flexrel.core.precision import RequestedPrecision
from flexrel.core.progress import shown
from flexrel.core.resources import Budget
from flexrel.core.targets import Target
from flexrel.criteria import Criterion
from flexrel.errors import BudgetError
from flexrel.pruning.binding import BoundRequest, bound
from flexrel.pruning.choice import Solution, best_solution, finished
from flexrel.pruning.clock import Clock
from flexrel.pruning.data import calibration_data
from flexrel.pruning.evaluation import EvaluationData, evaluation_data
from flexrel.pruning.evaluator import divergence_of, evaluator_of
from flexrel.pruning.evidence import evidence_of
from flexrel.pruning.in_time import kept_in_time
from flexrel.pruning.late import late_warnings
from flexrel.pruning.limits import Limits, limits_of
from flexrel.pruning.options import PruneOptions
from flexrel.pruning.possible import possible_target
from flexrel.pruning.recorded import recorded
from flexrel.pruning.request import Request, requested
from flexrel.pruning.result import Result
from flexrel.pruning.signals import Relevances, first_stats, measured_relevance, measured_signals
from flexrel.pruning.sources import PruneTarget, Sources
from flexrel.pruning.stages import AUTO, CHANNELS, carried_out, stages_of
from flexrel.pruning.warnings import warnings_of
from flexrel.repair import Recovery
from flexrel.structure import program_bytes

_DEFAULTS = PruneOptions()
_END = 1.25  # times as long as reading, evaluating and tracing takes the end: it does the like


@torch.inference_mode(mode=False)
def prune(
    model: nn.Module,
    *,
    calibration: RawBatches,
    evaluate: Evaluate | RawBatches | None = None,
    target: Target | str | Sequence[Target | str] | None = None,
    budgets: Sequence[Budget | str] | Budget | str = (),
    criterion: Criterion | str | Sequence[Criterion | str] | None = None,
    granularity: str = "channel",
    recover: str | Recovery = "closed-form",
    values: RequestedPrecision = "float32",
    keep: Sequence[str] = (),
    seed: int = 0,
    options: PruneOptions = _DEFAULTS,
) -> Result:
    """Return the smallest network found that keeps to the target and the budgets.

    Args:
        model: trained; never changed. Taken out of `DataParallel` and `torch.compile`; masks of
            `torch.nn.utils.prune` are applied to a copy, weight norm, spectral norm and
            parametrizations that are constant folded, and `Result.warnings` says so.
        calibration: batches of inputs as the network will see them, or a data set of samples;
            labels are not needed, and all of them are kept in memory. The first is the example for
            multiply-adds and structure. Of the samples 128, or a quarter, are held out: nothing is
            fitted to them, and criteria, repair and training are judged by how far they bring the
            outputs on these from the dense network's. Where nothing is repaired or trained all
            measure, and 512 judge. A network that runs on no part of a batch, as one fixed to 16
            samples, or on lists of edges, has whole batches held out, and its multiply-adds are
            those of one call.
        evaluate: `model -> accuracy` in [0, 1], on other data, or such data with labels, on which
            `Accuracy` is measured; only a target needs it. A function may tell more, or something
            else: a mapping of names to numbers. Samples that are too few for the target, or of one
            class, are among the result's warnings. Of the samples of an `Accuracy` half are set
            aside where there is a target that they can tell: nothing is chosen on them, and
            `Result.promise` is what they say of the network returned. It is called twice on the
            dense network: one that is random is told or refused.
        target: how much accuracy may be lost, as `AccuracyDrop(0.01)`, "accuracy-drop=1%" or "1%";
            or the worst that any metric may come to, as `Ceiling("loss", 0.35)` or "loss<=0.35";
            one or several (`flexrel.core.targets.targets_of` has all texts). With it, as much as
            possible is removed.
        budgets: what the network may cost at most, one or several, as `MACs(0.5)` or "macs=50%";
            with them alone, as little as possible goes.
        criterion: what scores units, or its name, such as "magnitude" or "flexrel:0.5". Of several,
            the one whose pruned network's outputs change least on the calibration samples that
            judge is taken; None stands for a few that measured best (`docs/method.md`).
        granularity: "channel" removes channels for real, and neurons and heads; "head" attention
            heads alone; "depth" whole residual blocks. "element" sets weights to zero; "block:4x4"
            does so by blocks of 4 outputs and 4 inputs, or any other size; "2:4" in every 4
            consecutive inputs but the best 2, or any N of M. N:M needs no budget: without a target
            all layers have it that can, with one as many as it allows. "auto" removes channels for
            multiply-adds, parameters, memory and latency, and sets weights to zero for bytes, a
            link and sparsity, also one after the other; a target then bounds both.
        recover: "closed-form" refits the weights that stay, layer by layer, to what the dense
            network's layers give on calibration data, without labels; every network that is
            measured on the way is repaired so. "none" changes nothing. A `FineTune`, or anything
            that fits `flexrel.Recovery`, goes on from the repaired network once its plan is
            found; "finetune:E" stands for `FineTune(epochs=E)` on the calibration data. A step
            that does not bring the outputs on held-out samples closer to the dense network's is
            undone, and the result says what each brought.
        values: precision of the packed file, which is what a byte budget counts. Accuracy is that
            of the rounded network; "int8" and "int4" round, where weights are repaired, so that
            the layers' outputs on calibration data change least. "auto" finds the precision too:
            with a target that of the smallest file, with a budget on bytes that of the least
            change of outputs, else the coarsest that hardly adds to what the cut changes.
        keep: names of layers to leave alone.
        seed: of every random number: the vectors and rows that saliency and repair are measured
            with, and the order of training. The same seed gives the same plan.
        options: the rarer ones.

    Raises:
        UsageError: the request, the data or the evaluation is wrong: with a target also if the
            network does not meet it as it came, or its accuracy is no better than chance, or may
            drop to nothing.
        BudgetError: the target or a budget can't be met; says the closest that can.
        ModelError: the network can't be analysed, as one of TorchScript, already quantised or with
            weights that are NaN can't; or its cut does not verify.
    """
    request = requested(
        evaluate=evaluate,
        target=target,
        budgets=budgets,
        criterion=criterion,
        granularity=CHANNELS if granularity == AUTO else granularity,
        recover=recover,
        values=values,
        keep=keep,
        seed=seed,
        options=options,
    )
    requests = stages_of(request) if granularity == AUTO else (request,)
    stages, listeners = requests[-1].stages, options.listeners
    with (
        shown(options.progress, stages) as shows,
        heard(listeners, shows, stages) as (progress, judged),
    ):
        told = [replace(one, progress=progress, judged=judged) for one in requests]
        result = carried_out(_pruned, model, calibration, told)
    failed = result_told(listeners, result.as_json())
    return replace(result, warnings=(*result.warnings, *failed)) if failed else result


def _pruned(
    model: nn.Module, calibration: RawBatches, request: Request, dense: nn.Module | None
) -> Result:
    """Return the result, outputs and metrics judged against `dense`; raises as `prune` does."""
    deadline = Deadline.after(request.options.time_limit)
    request.progress("reading the data", 0, None)
    plain = plain_network(model)
    model = uncached(plain.network)
    data = calibration_data(model, calibration, fits=request.fits)
    dense = model if dense is None else dense
    evaluation = _evaluated(dense, request, whole=data.first.whole)
    asked, data_given = request.options.class_names, (request.evaluate, calibration)
    names, unlike = class_names(asked, dense, data_given, evaluation.classes)
    divergence = divergence_of(dense, data, request)
    sources = Sources(model, data, request)
    request.progress("tracing the network", 0, None)
    source = possible_target(sources)
    if source.samples is not None:  # only batches of one size
        evaluation = _evaluated(dense, request, whole=True)
    request = request.within(deadline.reserving(_END * deadline.gone))
    sources = replace(sources, request=request)
    relevances = measured_relevance(model, request, source.data)
    try:
        solved = _solved(source, sources, relevances, divergence, evaluation)
    except BudgetError as error:
        source = sources.instead(source, error)
        if source.samples is not None:
            evaluation = _evaluated(dense, request, whole=True)
        solved = _solved(source, sources, relevances, divergence, evaluation)
    solution, timing, request = solved.solution, solved.timing, solved.bound.request
    source.verify(solution.plan)
    evaluator, limits = solution.evaluator, solved.limits
    network, steps = finished(solution, request.training)
    request.progress("finishing", 0, None)
    final = evaluator.candidate(solution.plan, network)
    achieved = evaluator.measure(solution.criterion.name, final)
    program = program_bytes(source.program, network.rounded) if source.program else None
    promise, changed = evaluation.told(network.rounded)
    stats = first_stats(relevances)
    evidence = evidence_of(solution, network, source.network, stats, request, changed)
    cache_again_(network.rounded, plain.network)
    result = Result(
        model=network.rounded,
        plan=solution.plan,
        criterion=solution.criterion,
        dense=solved.dense,
        achieved=achieved,
        recovery=steps,
        warnings=(
            *warnings_of(plain, evaluation, source.data, solution.plan),
            *unlike,
            *solved.notes,
            *late_warnings(deadline, request, solution, relevances, source.data, steps),
        ),
        request=request.told(),
        outputs=divergence.told,
        limits=limits,
        amounts={},
        timing=timing,
        samples=evaluation.samples,
        deviation=evaluation.deviation,
        promise=promise,
        stats=stats,
        samples_a_call=source.samples,
        calibration_samples=source.data.samples,
        example=source.data.first,
        values=network.values,
        packed=network.packed,
        evidence=evidence,
        class_names=names,
        program=program,
    )
    return recorded(result, evaluator.dense)


@dataclass(frozen=True, slots=True, eq=False)
class _Solved:
    """What keeps to a request.

    Attributes:
        bound: the request, its budgets bound to what is cut.
        dense: what the network as it came costs and does.
        solution: the plan, and where it was found.
        limits: that it keeps to.
        timing: how long its network takes, if that is limited.
        notes: warnings.
    """

    bound: BoundRequest
    dense: Measurement
    solution: Solution
    limits: Limits
    timing: Timing | None
    notes: tuple[str, ...]


def _evaluated(model: nn.Module, request: Request, *, whole: bool) -> EvaluationData:
    """Return how the dense network does, some samples set aside; raises as `evaluation_data`."""
    assured = request.options.assured
    return evaluation_data(
        request.evaluate, model, request.targets, set_aside=True, assured=assured, whole=whole
    )


def _solved(
    source: PruneTarget,
    sources: Sources,
    relevances: Relevances,
    divergence: Divergence,
    evaluation: EvaluationData,
) -> _Solved:
    """Return what keeps to the request.

    Raises:
        BudgetError: nothing does.
    """
    whole = bound(sources.request, source)
    request = replace(whole.request, evaluate=evaluation.evaluate)
    signals = measured_signals(source, request, relevances)
    if source.data is not sources.data:  # a program may not take all of them
        divergence = divergence_of(sources.model, source.data, whole.request)
    evaluator = evaluator_of(signals, divergence)
    dense = evaluator.measure("dense", evaluator.dense, evaluation.metrics)
    limits = limits_of(request, evaluator.dense, evaluation.goals)
    solution = best_solution(evaluator, signals, limits)
    if whole.clock is None:
        return _Solved(whole, dense, solution, limits, None, signals.untried)

    def again(clock: Clock) -> Solution:
        told = whole.told_by(clock).request
        alone = replace(signals, request=told, criteria=(solution.criterion,))
        return best_solution(evaluator, alone, limits_of(told, evaluator.dense, evaluation.goals))

    clock, kept, timing = kept_in_time(whole.clock, solution, again)
    whole = whole.told_by(clock)
    limits = limits_of(whole.request, evaluator.dense, evaluation.goals)
    return _Solved(whole, dense, kept, limits, timing, (*signals.untried, *timing.notes))
