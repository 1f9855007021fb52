"""The spine: one stage a line, from a network and what the target can afford to the result."""

import platform
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache, partial
from importlib.metadata import version
from typing import Literal

from torch import nn

from flexrel.core.batches import (
    Batch,
    RawBatch,
    collect,
    first_samples,
    fitted_and_judged,
    read_batches,
)
from flexrel.core.budgets import AccuracyDrop, Budget
from flexrel.core.evaluate import Accuracy, Divergence, Evaluate
from flexrel.core.measurement import Measurement, Progress, silent
from flexrel.core.precision import RequestedPrecision, Values
from flexrel.core.running import unwrapped
from flexrel.criteria import (
    ALLOCATIONS,
    OBS,
    SALIENCY,
    Criterion,
    FlexRel,
    Magnitude,
    Relevance,
    attribution_of,
    measure_saliency,
    without_unmeasured,
)
from flexrel.errors import BudgetError, UsageError
from flexrel.pruning.builder import NetworkBuilder
from flexrel.pruning.input_shift import input_shift
from flexrel.pruning.request import Request, check_request, short_of
from flexrel.pruning.result import Result
from flexrel.pruning.solving import Found, least_of, plan_of, solved
from flexrel.pruning.sources import Form, PruneTarget, Sources
from flexrel.pruning.trials import Trials
from flexrel.relevance import AttributionTarget, RuleLike, calibrate, rule_of
from flexrel.repair import Recovery, recoveries
from flexrel.structure import program_bytes

_EXAMPLE_SAMPLES = 2
_CURVE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # shares of units removed


def candidates(granularity: str = "channel", recover: object = "none") -> tuple[Criterion, ...]:
    """Return the criteria that `criterion=None` chooses from; of equals, the earlier is taken.

    Where each network tried is repaired, which takes longer, they are few. For channels and heads
    `OBS`, which knows of the repair, and the signals that it does not always beat; for weights the
    three that were best wherever it was measured (`benchmarks/README.md`, "Repair", and
    `docs/results.md`, "Elements, repaired"): magnitude first, since a budget on bytes has its
    network repaired already.
    """
    if recover != "none" and granularity in ("channel", "head"):
        return (OBS(), FlexRel(), Magnitude(), Relevance())
    if recover != "none" and granularity != "depth":
        return (Magnitude(), FlexRel(1 / 3, blend="product"), FlexRel(0.1))
    deltas = (0.1, 0.3, 0.5, 0.7, 0.9)
    sums = tuple(FlexRel(delta) for delta in deltas)
    products = tuple(FlexRel(delta, blend="product") for delta in (1 / 3, 0.5, 2 / 3))
    return (*sums, *products, Magnitude(), Relevance())


def prune(
    model: nn.Module,
    *,
    calibration: Iterable[RawBatch],
    evaluate: Evaluate | None = None,
    target: AccuracyDrop | None = None,
    budgets: Sequence[Budget] = (),
    criterion: Criterion | Sequence[Criterion] | None = None,
    rule: RuleLike = "gradient-input",
    output: str | AttributionTarget = "auto",
    granularity: str = "channel",
    allocation: Literal["global", "per-layer"] = "global",
    keep: Sequence[str] = (),
    multiple_of: int = 1,
    recover: str | Recovery = "closed-form",
    values: RequestedPrecision = "float32",
    form: Form = "auto",
    compare: bool = False,
    seed: int = 0,
    progress: Progress = silent,
) -> Result:
    """Return the smallest network found that keeps to the target and the budgets.

    Args:
        model: trained; never changed.
        calibration: batches of inputs as the network will see them, labels not needed; all of
            them are kept in memory. The first is the example for multiply-adds and graph. Of
            the samples 128, or a quarter, are held out: nothing is fitted to them, and criteria,
            repair and training are judged by how far they bring the outputs on these from the
            dense network's. Where nothing is repaired or trained all measure, and 512 judge.
        evaluate: `model -> accuracy` in [0, 1], on other data; only a target needs it.
        target: how much accuracy may be lost; with it, as much as possible is removed.
        budgets: what the network may cost at most; with them alone, as little as possible goes.
        criterion: what scores units. Of several, the one whose pruned network's outputs change
            least on the calibration samples that judge is taken; None stands for `candidates()`.
        rule: of relevance, as in `calibrate`.
        output: what relevance starts from, as in `calibrate`.
        granularity: "channel" removes channels for real, and neurons and heads; "head" attention
            heads alone; "depth" whole residual blocks. "element" sets weights to zero; "block:4x4"
            does so by blocks of 4 outputs and 4 inputs, or any other size; "2:4" in every 4
            consecutive inputs but the best 2, or any N of M. N:M needs no budget: without a target
            all layers have it that can, with one as many as it allows.
        allocation: "global" compares all units of the network; "per-layer" takes the same share
            of every layer.
        keep: names of layers to leave alone.
        multiple_of: round the widths that remain up to multiples of this, such as 8: kernels of
            some devices want it, and onnxruntime's convolutions. For channels and heads.
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
        form: "module" cuts the module itself, so that its class stays; "exported" cuts a
            self-contained program that `torch.export` makes of it, where numbers in its code are
            no obstacle, and which is in evaluation mode for good; "auto" takes the program only
            where the module can't be cut, or not enough for the budgets, and the program can.
        compare: measure magnitude, relevance and the chosen criterion at several sizes, and
            magnitude and relevance for the same request, for the report.
        seed: of every random number (none is drawn yet); the same seed gives the same plan.
        progress: told after each step.

    Raises:
        UsageError: the request, the data or the evaluation is wrong.
        BudgetError: the target or a budget can't be met; says the closest that can.
        ModelError: the network can't be analysed, or its cut does not verify.
    """
    options = (
        (criterion,)
        if isinstance(criterion, Criterion)
        else criterion or candidates(granularity, recover)
    )
    check_request(target, budgets, evaluate, allocation, values, granularity, multiple_of, form)
    repair, training = recoveries(recover, seed)
    model = unwrapped(model)
    batches = collect(calibration)
    example = _example(model, batches)
    unlike = input_shift(model, batches)
    fits = repair is not None or training is not None
    fitted, judged = fitted_and_judged(batches, model, fits=fits)
    forms = Sources(model, example, batches, granularity, tuple(keep), form)
    subject = forms.first()
    statistics = None
    if compare or any(attribution_of(option) is not None for option in options):
        statistics = calibrate(model, fitted, rule, output, progress)
    damaging = any(SALIENCY in option.needs for option in options)
    divergence = Divergence(model, judged)
    order = ALLOCATIONS[allocation]
    repairing = (partial(repair, batches=fitted), fitted) if repair else ()

    def solve(subject: PruneTarget) -> tuple[Request, Found]:
        whole, graph = subject.network, subject.graph
        if statistics is not None:
            graph = without_unmeasured(graph, statistics)
        damages = None
        if damaging:
            damages, unknown = measure_saliency(whole, graph, fitted, progress, seed=seed)
            groups = [group for group in graph.groups if group.name in damages]
            graph = graph.only(groups, unknown)

        @cache
        def trials_in(values: Values) -> Trials:
            making = NetworkBuilder(whole, values, divergence, progress, *repairing)
            known = (graph, statistics, order, evaluate, multiple_of, damages)
            return Trials(making, *known, short_of(budgets, graph.pattern))

        dense = trials_in("float32" if values == "auto" else values).dense()
        request = Request(target, tuple(budgets), dense)
        return request, solved(trials_in, values, request, options)

    try:
        request, found = solve(subject)
    except BudgetError as error:
        subject = forms.next(subject, error)
        request, found = solve(subject)
    trials, chosen, plan, dense = found.trials, found.criterion, found.plan, request.dense
    if not subject.graph.pattern.zeros:  # zeros change no shape: there is nothing to compare
        subject.verify(plan)
    network, achieved, recovery = trials.finished(
        chosen,
        plan,
        partial(training, batches=fitted) if training else None,
        request.most_bytes,
    )
    rivals: tuple[Measurement, ...] = ()
    curves: tuple[Measurement, ...] = ()
    if compare:
        rivals = _rivals(trials, request, chosen)
        curves = _curves(trials, chosen, dense)
    return Result(
        model=network,
        program=program_bytes(subject.program, network) if subject.program else None,
        example=next(read_batches(batches[:1], model)),
        plan=plan,
        criterion=chosen,
        dense=dense,
        achieved=achieved,
        rivals=rivals,
        curves=curves,
        recovery=recovery,
        warnings=(str(unlike),) if unlike and unlike.warns else (),
        requested=request.limits(),
        samples=evaluate.samples if isinstance(evaluate, Accuracy) else None,
        options={
            "scored_by": repr(chosen),
            "chosen_from": [option.name for option in options],
            "keep": list(keep),
            "multiple_of": multiple_of,
            "rule": rule_of(rule).name,
            "output": statistics.output if statistics else None,
            "allocation": allocation,
            "recover": recover if isinstance(recover, str) else recover.name,
            "values": trials.making.values,
            "values_asked": values,
            "samples_a_call": subject.samples,
            "calibration_samples": sum(batch.samples for batch in read_batches(batches, model)),
        },
        seed=seed,
        versions=_versions(),
    )


def _example(model: nn.Module, batches: Sequence[RawBatch]) -> Batch:
    first = next(read_batches(batches[:1], model), None)
    if first is None:
        raise UsageError("the calibration set is empty; pass at least one batch")
    return first_samples(first, _EXAMPLE_SAMPLES)


def _rivals(trials: Trials, request: Request, chosen: Criterion) -> tuple[Measurement, ...]:
    """Measure magnitude and relevance alone for the same request.

    One that can't meet the target within the budgets is measured at the budgets.
    """
    rivals = []
    for criterion in (Magnitude(), Relevance()):
        if criterion.name == chosen.name:
            continue
        try:
            plan = plan_of(trials, request, criterion)
        except BudgetError:
            count = least_of(trials, request, criterion)
            plan = trials.removal(criterion).plan(count)
        rivals.append(trials.measure(criterion, plan)[1])
    return tuple(rivals)


def _curves(trials: Trials, chosen: Criterion, dense: Measurement) -> tuple[Measurement, ...]:
    """Measure magnitude, relevance and a blend at several shares of units removed."""
    blend = chosen if isinstance(chosen, FlexRel) else FlexRel()
    points: list[Measurement] = []
    for criterion in (Magnitude(), Relevance(), blend):
        points.append(replace(dense, criterion=criterion.name))
        removal = trials.removal(criterion)
        for share in _CURVE:
            plan = removal.plan(int(share * removal.removable))
            points.append(trials.measure(criterion, plan)[1])
            trials.making.progress("measuring curves", len(points), 3 * (len(_CURVE) + 1))
    return tuple(points)


def _versions() -> dict[str, str]:
    packages = ("flexrel", "flexrel-edge", "torch", "numpy", "pcodec")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
