"""Accuracy against what a network takes: one call of `prune` for each of several sizes."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import torch
from torch import nn

from flexrel.core.batches import RawBatches, collect
from flexrel.core.evaluate import ACCURACY, Evaluate, evaluate_of
from flexrel.core.precision import RequestedPrecision
from flexrel.core.progress import shown
from flexrel.criteria import Criterion
from flexrel.errors import BudgetError, FlexrelError, UsageError
from flexrel.pruning.frontier import SweepResult
from flexrel.pruning.options import PruneOptions
from flexrel.pruning.request import requested
from flexrel.pruning.spread import SweptResource, check_points, spread_budgets
from flexrel.pruning.stages import AUTO, kind_for
from flexrel.pruning.study import opened_study, optuna_library
from flexrel.pruning.sweeper import Sweeper, folder_of
from flexrel.repair import Recovery

_DEFAULTS: Final = PruneOptions()
_POINTS: Final = 6
_STAGES: Final = ("preparing the sweep", "sweeping")  # what `prune` tells are steps within


@torch.inference_mode(mode=False)
def sweep(
    model: nn.Module,
    *,
    calibration: RawBatches,
    evaluate: Evaluate | RawBatches,
    resource: str = "bytes",
    points: int | Sequence[float | str] = _POINTS,
    trials: int = 0,
    metric: str = ACCURACY,
    lower_is_better: bool = False,
    folder: str | Path | None = None,
    files: bool = False,
    criterion: Criterion | str | Sequence[Criterion | str] | None = None,
    granularity: str = "channel",
    recover: str | Recovery = "closed-form",
    values: RequestedPrecision = "float32",
    keep: Sequence[str] = (),
    seed: int = 0,
    options: PruneOptions = _DEFAULTS,
) -> SweepResult:
    """Return how well networks of several sizes do, and which of them no other beats.

    Each is what `prune` makes of the model for one budget; relevance and saliency are measured
    once. Where the sweep is stopped, the next call with the same folder goes on: what is made is
    not made again, also if more points or trials are asked for. One process at a time.

    Args:
        model: as in `prune`, and never changed; the others likewise.
        calibration: batches, in the same order at each call.
        evaluate: on all of whose samples every network is measured. The best of many networks on
            some samples is a little worse on others: the more trials, the more.
        resource: that budgets are put on: "bytes", "macs", "parameters", "memory", "link@1Mbit/s",
            "latency@onnxruntime,threads=2", or "sparsity", of which more is less left.
        points: how many budgets, evenly in the logarithm between what the dense network takes and
            the least possible, both ends left out; or the amounts: shares as floats or "50%",
            counts, "500kB", "5ms".
        trials: how many networks more to try, which Optuna's sampler chooses for a better front: of
            any size, and by any criterion unless one is given; where that brings the resource down
            also at granularity "channel" or "element", with values in "int8" or "int4".
        metric: that networks are compared by, one of those that `evaluate` tells.
        lower_is_better: of the metric.
        folder: keeps the study (`study.db`) and what was measured (`cache/`); None: nothing is.
        files: whether what `Result.save` writes is written for each point too, into `points/`.
        criterion: as in `prune`.
        granularity: likewise.
        recover: likewise.
        values: likewise.
        keep: likewise.
        seed: likewise, and of the sampler.
        options: likewise; a limit on time is one on each network.

    Raises:
        UsageError: the request, the data or the evaluation is wrong; Optuna is not installed (extra
            "sweep"); or the folder has a sweep of another network, other data or other options.
        ModelError: the network can't be analysed.
    """
    optuna_library()
    check_points(points, trials)
    swept = SweptResource.of(resource)
    granularity = kind_for(swept.resource) if granularity == AUTO else granularity
    given = () if isinstance(points, int) else tuple(map(swept.budget, points))
    measure = evaluate_of(evaluate, options.outputs)
    if measure is None:
        raise UsageError("a sweep needs evaluate=, a function model -> [0, 1], or labelled data")
    if files and folder is None:
        raise UsageError("files=True needs folder=, where they are written")
    request = requested(
        evaluate=measure,
        target=None,
        budgets=given or (swept.whole,),
        criterion=criterion,
        granularity=granularity,
        recover=recover,
        values=values,
        keep=keep,
        seed=seed,
        options=options,
    )
    with _place(folder) as place, shown(options.progress, _STAGES) as progress:
        progress(_STAGES[0], 0, None)
        sweeper = Sweeper(
            model=model,
            calibration=collect(calibration),
            evaluate=measure,
            swept=swept,
            criterion=criterion,
            recover=recover,
            request=request,
            progress=progress,
            place=place,
        )
        return _swept(sweeper, points, trials, metric, lower_is_better=lower_is_better, files=files)


def _swept(
    sweeper: Sweeper,
    points: int | Sequence[float | str],
    trials: int,
    metric: str,
    *,
    lower_is_better: bool,
    files: bool,
) -> SweepResult:
    """Return the frontier; raises as `sweep` does."""
    request, swept, place = sweeper.request, sweeper.swept, sweeper.place
    dense = sweeper.dense(metric)
    extent = sweeper.extent(request.granularity, request.values)
    if not extent.falls:
        raise UsageError(
            f"granularity {request.granularity!r} does not bring {swept.resource.name} below what "
            f"the dense network takes, {swept.resource.told(extent.dense)}"
        )
    space = sweeper.space(searched=trials > 0)
    subject = sweeper.subject(metric, dense, lower_is_better=lower_is_better)
    budgets = spread_budgets(points, swept, extent)
    total = len(budgets) + trials
    seed = request.seed
    with opened_study(place, subject, space, seed, lower_is_better=lower_is_better) as study:
        known = {point.budget for point in study.points if point.searched is None}
        for done, budget in enumerate(budgets):
            sweeper.progress(_STAGES[1], done, total)
            if budget not in known:
                proposal = space.asked(extent.position(budget))
                point = sweeper.made(budget, proposal, BudgetError, files=files)
                study.add(point, proposal, sweeper.learnt(point, metric))
        tried = sum(point.searched is not None for point in study.points)
        for done in range(tried, trials):
            sweeper.progress(_STAGES[1], len(budgets) + done, total)
            trial = study.proposed()
            budget = sweeper.budget(trial.proposal)
            point = sweeper.made(budget, trial.proposal, FlexrelError, trial.number, files=files)
            trial.tell(point, sweeper.learnt(point, metric))
        found = study.points
    if files:
        sweeper.write_missing(found)
    with_files = tuple(folder_of(point, place) for point in found)
    at_least = swept.resource.at_least
    return SweepResult(swept.resource.key, metric, lower_is_better, dense, with_files, at_least)


@contextmanager
def _place(folder: str | Path | None) -> Iterator[Path]:
    """Yield the folder, or one that is gone afterwards.

    Raises:
        UsageError: it is a file.
    """
    if folder is None:
        with tempfile.TemporaryDirectory() as place:
            yield Path(place)
        return
    if Path(folder).exists() and not Path(folder).is_dir():
        raise UsageError(f"folder={str(folder)!r} is a file; name a folder")
    yield Path(folder)
