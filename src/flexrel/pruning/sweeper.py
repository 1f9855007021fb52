"""What makes the points of a sweep, each by a call of `prune`."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Final

from torch import nn

from flexrel.core.batches import RawBatch
from flexrel.core.evaluate import ACCURACY, Accuracy, Evaluate, Evaluation, standard_error
from flexrel.core.measurement import Progress
from flexrel.core.network import plain_network
from flexrel.core.segmentation import Segmentation
from flexrel.criteria import Criterion
from flexrel.errors import FlexrelError, PrecisionError, UsageError
from flexrel.pruning.cache import data_digest, network_digest
from flexrel.pruning.calls import call_of, told_of, unusual
from flexrel.pruning.dry_run import Feasibility, dry_run
from flexrel.pruning.frontier import Reached, SweepPoint
from flexrel.pruning.options import PruneOptions
from flexrel.pruning.prune import prune
from flexrel.pruning.request import Request
from flexrel.pruning.result import Result
from flexrel.pruning.spread import Extent, SweptResource
from flexrel.pruning.study import Proposal, Space
from flexrel.repair import Recovery

Criteria = Criterion | str | Sequence[Criterion | str] | None
_AUTO: Final = "auto"
_CRITERIA: Final = (
    _AUTO,
    "magnitude",
    "relevance",
    "flexrel:0.5",
    "obs",
)  # searched, if none asked
_GRANULARITIES: Final = ("channel", "element")  # searched besides
_VALUES: Final = ("int8", "int4")  # likewise
_SHOWN: Final = 16  # hex digits


@dataclass(frozen=True, slots=True, eq=False)
class Sweeper:
    """Makes points, and says of what and how they are made.

    Attributes:
        model: the dense network.
        calibration: all batches.
        evaluate: measures networks.
        swept: the resource.
        criterion: that was asked for.
        recover: likewise.
        request: all that was asked of each network, checked.
        progress: told of each step.
        place: the sweep's folder.
        known: what is possible, by granularity and values: counting it takes seconds.
    """

    model: nn.Module
    calibration: Sequence[RawBatch]
    evaluate: Evaluate
    swept: SweptResource
    criterion: Criteria
    recover: str | Recovery
    request: Request
    progress: Progress
    place: Path
    known: dict[tuple[str, str], Feasibility] = field(default_factory=dict)

    def dense(self, metric: str) -> Reached:
        """Return what the dense network takes, and how well it does.

        Raises:
            UsageError: `evaluate` does not tell the metric.
        """
        network, error = plain_network(self.model).network, None
        if isinstance(self.evaluate, Accuracy):
            tally = self.evaluate.tally(network)
            metrics = {ACCURACY: tally.accuracy}
            error = standard_error(tally.accuracy, tally.samples)
        elif isinstance(self.evaluate, Segmentation):
            pixels = self.evaluate.tally(network)
            metrics = dict(pixels.metrics)
            error = standard_error(pixels.accuracy, len(pixels.right), pixels.deviation)
        else:
            metrics = dict(Evaluation(self.evaluate)(network))
        if metric not in metrics:
            raise UsageError(f"evaluate does not tell {metric!r}, but: {', '.join(metrics)}")
        found = self._possible(self.request.granularity, self.request.values)
        amounts = {one.resource.lower(): one.dense for one in found.amounts[1:]}
        return Reached({**amounts, self.swept.resource.key: found.amounts[0].dense}, metrics, error)

    def extent(self, granularity: str, values: str) -> Extent:
        """Return between which amounts networks can be had."""
        return self.swept.extent(self._possible(granularity, values))

    def space(self, *, searched: bool) -> Space:
        """Return what a search may choose from: all that there is, and what of it helps."""
        asked = self.request.granularity, self.request.values
        granularities = tuple(dict.fromkeys((asked[0], *_GRANULARITIES)))
        values = tuple(dict.fromkeys((asked[1], *_VALUES))) if asked[1] != _AUTO else (_AUTO,)
        fixed = set[str]()
        alike = not self.swept.resource.at_least  # a share of channels is none of weights
        if searched and not (alike and all(self._falls(g, asked[1]) for g in granularities)):
            fixed.add("granularity")
        if searched and not all(self._falls(asked[0], one) for one in values):
            fixed.add("values")
        if searched and self.extent(*asked).dense == self.extent(asked[0], values[-1]).dense:
            fixed.add("values")
        return Space(tuple(self._criteria), granularities, values, frozenset(fixed))

    def budget(self, proposal: Proposal) -> str:
        """Return the budget, as a text, of a proposal."""
        extent = self.extent(proposal.granularity, proposal.values)
        return self.swept.at(proposal.position, extent)

    def made(
        self,
        budget: str,
        proposal: Proposal,
        refuses: type[FlexrelError],
        searched: int | None = None,
        *,
        files: bool,
    ) -> SweepPoint:
        """Return a point, its network made, and written if `files`.

        Args:
            budget: as a text.
            proposal: what else to ask for.
            refuses: the error that says that there is no such network.
            searched: number of the trial.
            files: whether to write them.
        """
        point = SweepPoint(
            budget=budget,
            criterion=proposal.criterion,
            granularity=proposal.granularity,
            values=proposal.values,
            command=self._call(budget, proposal),
            searched=searched,
        )
        try:
            result = self._result(point)
        except refuses as error:
            return replace(point, refused=str(error))
        achieved, swept = result.achieved, self.swept.resource.key
        counted = {name: amount for name, (_, amount) in result.amounts.items()}
        amounts = {
            "parameters": achieved.parameters,
            "macs": achieved.macs,
            "bytes": achieved.bytes,
            swept: counted[swept],
        }
        if files:
            result.save(_files(point, self.place))
        reached = Reached(amounts, dict(achieved.metrics), result.standard_error)
        return replace(point, reached=reached, scored_by=result.criterion.name)

    def learnt(self, point: SweepPoint, metric: str) -> tuple[float, float] | None:
        """Return the amount, of which less is better, and the metric; None if there are none."""
        if point.reached is None or not math.isfinite(point.reached.metrics[metric]):
            return None
        sign = -1 if self.swept.resource.at_least else 1
        return sign * point.reached.amounts[self.swept.resource.key], point.reached.metrics[metric]

    def write_missing(self, points: Sequence[SweepPoint]) -> None:
        """Write the files of the points that have none: their networks are made again."""
        for point in points:
            if point.reached is not None and not _files(point, self.place).is_dir():
                self._result(point).save(_files(point, self.place))

    def subject(self, metric: str, dense: Reached, *, lower_is_better: bool) -> dict[str, str]:
        """Return what points are of, and how they are asked for, each part by its name."""
        network, request = plain_network(self.model).network, self.request
        evaluate = self.evaluate
        if isinstance(evaluate, Accuracy):
            evaluation = f"{data_digest(evaluate.batches, network)[:_SHOWN]}, {evaluate.threshold}"
        else:
            told = (f"{name} {value:.6g}" for name, value in dense.metrics.items())
            evaluation = f"{', '.join(told)} of the dense network"
        return {
            "version of FlexRel": version("flexrel"),
            "network": network_digest(network)[:_SHOWN],
            "calibration set": data_digest(self.calibration, network)[:_SHOWN],
            "evaluation": evaluation,
            "resource": f"{self.swept.name}{self.swept.rest}",
            "metric": f"{metric}, {'lower' if lower_is_better else 'higher'} is better",
            "criterion": next(iter(self._criteria)),
            "granularity": request.granularity,
            "recover": told_of(self.recover),
            "values": str(request.values),
            "keep": ", ".join(request.keep),
            "seed": str(request.seed),
            "options": json.dumps(unusual(request.options)),
        }

    @property
    def _criteria(self) -> Mapping[str, Criteria]:
        """The criteria that a search may choose from, by name; the first is what was asked for."""
        if self.criterion is None or self.criterion == _AUTO:
            return {name: self.criterion if name == _AUTO else name for name in _CRITERIA}
        several = self.criterion
        if isinstance(several, str | Criterion):
            several = (several,)
        names = [one if isinstance(one, str) else one.name for one in several]
        return {",".join(names): self.criterion}

    def _possible(self, granularity: str, values: str) -> Feasibility:
        at = granularity, values
        if at not in self.known:
            self.known[at] = dry_run(
                self.model,
                calibration=self.calibration,
                budgets=[self.swept.whole],
                granularity=granularity,
                values=values,  # type: ignore[arg-type]  # checked, as below
                keep=self.request.keep,
                options=self._options(granularity),
            )
        return self.known[at]

    def _call(self, budget: str, proposal: Proposal) -> str:
        criterion = self._criteria[proposal.criterion]
        return call_of(
            budget,
            criterion=_AUTO if criterion is None else criterion,
            granularity=proposal.granularity,
            recover=self.recover,
            values=proposal.values,
            keep=self.request.keep,
            seed=self.request.seed,
            options=self._options(proposal.granularity),
        )

    def _falls(self, granularity: str, values: str) -> bool:
        try:
            return self.extent(granularity, values).falls
        except PrecisionError:
            return False

    def _options(self, granularity: str) -> PruneOptions:
        """Return the options of a network: widths that are rounded are those of what was asked."""
        options = self.request.options
        cache = options.cache or self.place / "cache"
        asked = granularity == self.request.granularity
        width = options.multiple_of if asked else 1
        return replace(options, cache=cache, multiple_of=width, progress=self.progress)

    def _result(self, point: SweepPoint) -> Result:
        return prune(
            self.model,
            calibration=self.calibration,
            evaluate=self.evaluate,
            budgets=[point.budget],
            criterion=self._criteria[point.criterion],
            granularity=point.granularity,
            recover=self.recover,
            values=point.values,  # type: ignore[arg-type]
            keep=self.request.keep,
            seed=self.request.seed,
            options=self._options(point.granularity),
        )


def folder_of(point: SweepPoint, place: Path) -> SweepPoint:
    """Return the point with the folder of its files, from the sweep's own, if they are there."""
    files = _files(point, place)
    there = point.reached is not None and files.is_dir()
    return replace(point, files=files.relative_to(place).as_posix()) if there else point


def _files(point: SweepPoint, place: Path) -> Path:
    name = re.sub(r"[^\w.%]+", "-", point.budget)
    return place / "points" / (name if point.searched is None else f"trial-{point.searched}")
