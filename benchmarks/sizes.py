"""How small a network can be at an accuracy: its curve over sizes, walked where it matters."""

import math
import re
import time
from bisect import bisect_left
from dataclasses import asdict, dataclass

import numpy as np

import common
from flexrel.core import cost
from flexrel.core.batches import first_samples, read_batches
from flexrel.core.distance import Divergence
from flexrel.core.division import fitted_and_judged
from flexrel.criteria import SALIENCY, UnitRanking, measure_saliency, scores_of, without_unmeasured
from flexrel.io import encode
from flexrel.relevance import calibrate
from flexrel.repair import ClosedForm, round_
from flexrel.structure import analyse, apply, named_tensors

DROPS = (0.005, 0.01, 0.02, 0.05)  # of accuracy: the targets
STEP = 0.85  # of the parameters that stay, from one size of the grid to the next
STEPS = {"efficientnet_lite0": 0.95}  # a finer grid for a network that can lose little
LEAST = 0.0005  # of the parameters: the last size
VALUES = "float16"  # of all packed files
RESAMPLES = 200
_EVEN = 1e-9


@dataclass(frozen=True, eq=False)
class Point:
    """A network of a curve."""

    form: str
    step: int  # of the grid; 0 is the dense network
    kept: float  # share of parameters
    macs: float  # share of multiply-adds
    bytes: int  # of the packed file
    divergence: float  # from the dense network's outputs, on calibration data held out
    choose: float  # score on the data to choose by
    test: float  # score on the data that report
    outcomes: np.ndarray  # of each of these

    def row(self):
        """Return it as the JSON has it."""
        names = ("form", "kept", "macs", "bytes", "divergence", "choose", "test")
        values = {name: getattr(self, name) for name in names}
        return {n: round(v, 5) if isinstance(v, float) else v for n, v in values.items()}


class Workshop:
    """Makes networks of one task at one granularity, each with or without its repair.

    A network is made once, however many curves it is on. `finish` is what is done to each, the
    dense one too, before it is judged: network -> network. `unfinished` has what an earlier run
    made, and keeps what this one makes.
    """

    def __init__(self, task, granularity, forms, *, repair, finish=None, unfinished=None):
        self.task, self.repair, self.finish = task, repair, finish
        model = task.model
        fits = repair or finish is not None
        self.fitted, judged = fitted_and_judged(task.inputs, model, fits=fits)
        self.judged = sum(batch.samples for batch in read_batches(judged, model))
        self.divergence = Divergence(model, judged, task.choose.outputs)
        example = first_samples(next(read_batches(task.inputs[:1], model)), 2)
        graph = analyse(model, example, granularity)
        stats = calibrate(model, self.fitted)
        graph = without_unmeasured(graph, stats)
        saliency = None
        if any(SALIENCY in form.needs for form in forms.values()):
            saliency, unknown = measure_saliency(model, graph, self.fitted)
            known = [group for group in graph.groups if group.name in saliency]
            graph = graph.only(known, unknown)
        self.graph, self.forms = graph, forms
        self.step = STEPS.get(task.network, STEP)
        self._signals = (named_tensors(model), stats, saliency)
        self.parameters, self.macs = cost.parameters(graph), cost.macs(graph)
        self.dense = self._point("dense", 0, model, 1.0, 1.0)
        self._rankings, self._unfinished = {}, unfinished
        self._made = unfinished.made_of(self.dense) if unfinished else {}

    def _point(self, form, step, network, kept, macs):
        network = self.finish(network) if self.finish else network
        task, outcomes = self.task, self.task.test(network)
        scores = (task.choose.score(task.choose(network)), task.test.score(outcomes))
        size, divergence = len(encode(network, VALUES)), self.divergence(network)
        return Point(form, step, kept, macs, size, divergence, *scores, outcomes)

    @property
    def made(self):
        """All networks made, form by form, the largest first."""
        found = [point for point in self._made.values() if point is not None]
        order = list(self.forms)
        return sorted(found, key=lambda point: (order.index(point.form), point.step))

    def at(self, form, step):
        """Return the form's network of that size; None where no layer can lose more."""
        if (form, step) not in self._made:
            point = self._made[form, step] = self._at(form, step)
            if self._unfinished:
                self._unfinished.keep(form, step, point)
        return self._made[form, step]

    def _at(self, form, step):
        plan = self._plan(form, self.step**step * self.parameters)
        if plan is None:
            return None
        kept = cost.parameters(self.graph, plan.masks) / self.parameters
        macs = cost.macs(self.graph, plan.masks) / self.macs
        return self._point(form, step, self._network(plan), kept, macs)

    def _plan(self, form, limit):
        """Return the plan that removes least of those with so many parameters at most, or None."""
        if form not in self._rankings:
            scores = scores_of(self.forms[form], self.graph, *self._signals)
            self._rankings[form] = UnitRanking(self.graph, scores)
        ranking = self._rankings[form]

        def saved(count):
            return -cost.parameters(self.graph, ranking.plan(count).masks)

        if self.graph.pattern.zeros:
            count = math.ceil(self.parameters - limit)
        else:
            count = bisect_left(range(ranking.removable + 1), -limit, key=saved)
        return ranking.plan(count) if count <= ranking.removable else None

    def _network(self, plan):
        """Return the plan's network as its file holds it, repaired if that brings it closer."""
        network = apply(self.task.model, plan)
        if self.repair:
            repaired = ClosedForm()(network, self.task.model, plan, self.fitted).model
            network = min(repaired, network, key=self.divergence)
        round_(network, VALUES)
        return network

    def best_at(self, forms, key, step):
        """Return, of the forms' networks of that size, the one with the least `key`."""
        found = [point for form in forms if (point := self.at(form, step)) is not None]
        return min(found, key=key, default=None)


class Curve:
    """Networks of falling size; each is made when it is asked for."""

    def __init__(self, workshop, at, hints=(), drops=DROPS):
        """Walk down to every target.

        Args:
            workshop: has the dense network.
            at: step of the grid -> point, or None.
            hints: for each drop the search begins at the median of `hint.reached(drop)`, as where
                other curves of the same task ended.
            drops: of the score: the targets.
        """
        self._at, self._score = at, workshop.task.test.score
        self._points = {0: workshop.dense}
        self._most = math.floor(math.log(LEAST, workshop.step))
        for drop in reversed(drops):
            guesses = [hint.reached(drop) for hint in hints]
            self._bracket(drop, round(float(np.median(guesses))) if guesses else 8)

    @property
    def points(self):
        """Those made, the largest first."""
        return [self._points[step] for step in sorted(self._points)]

    def reached(self, drop):
        """Return the last step that was found to reach the dense score less `drop`, or 0."""
        floor = self._points[0].test - drop - _EVEN
        return max((s for s, point in self._points.items() if point.test >= floor), default=0)

    def smallest(self, drop):
        """Return the smallest network made that reaches the dense score less `drop`."""
        return self._points[self.reached(drop)]

    def _bracket(self, drop, guess):
        """Make the last size that reaches the target and the first that fails.

        From the guess in growing strides, to smaller networks while they reach it and to larger
        ones while none does; between the two by bisection.
        """
        floor = self._points[0].test - drop - _EVEN
        stride = 1
        while True:
            low = self.reached(drop)
            failed = [s for s, p in self._points.items() if s > low and p.test < floor]
            high = min(failed, default=self._most + 1)
            if high - low <= 1:
                return
            step = (low + high) // 2
            if guess is not None:
                step, guess = guess, None
            elif not failed or low == 0:
                step = high - stride if failed else low + stride
                stride *= 2
            step = min(max(step, low + 1), high - 1)
            point = self._at(step)
            if point is None:
                self._most = step - 1
            else:
                self._points[step] = point

    def needed(self, drop, rows=slice(None)):
        """Return the bytes at which the score is the dense network's less `drop`.

        The smallest network measured that reaches it; between it and the next smaller one
        measured, which does not, bytes fall with the score as on a straight line, in logarithms.

        Args:
            drop: of the score; below 0 it is a gain.
            rows: which of the samples count.

        Raises:
            ValueError: no network made reaches it.
        """
        scores = {step: self._score(p.outcomes[rows]) for step, p in self._points.items()}
        floor = scores[0] - drop
        reach = [step for step, found in scores.items() if found >= floor - _EVEN]
        if not reach:
            most = max(scores.values())
            raise ValueError(f"asked: {floor:.1%}; the best of {len(scores)} has {most:.1%}")
        last = max(reach)
        here, following = self._points[last], min((s for s in scores if s > last), default=None)
        if following is None or self._points[following].bytes >= here.bytes:
            return here.bytes
        way = (scores[last] - floor) / max(scores[last] - scores[following], _EVEN)
        return here.bytes * (self._points[following].bytes / here.bytes) ** min(max(way, 0.0), 1.0)


def resampled(count, seed=0):
    """Yield RESAMPLES draws of so many samples, with replacement: a bootstrap."""
    rng = np.random.default_rng(seed)
    for _ in range(RESAMPLES):
        yield rng.integers(count, size=count)


# --- runs that were stopped -------------------------------------------------------------------


class Unfinished:
    """The networks made so far, and how long that took, in results/unfinished-NAME.json.

    What was made of another dense network or judged on other data is not used; that the code has
    changed since is not noticed: after a change, delete the file.
    """

    def __init__(self, *name):
        self.file = "unfinished-" + re.sub(r"[^\w.]+", "-", "-".join(map(str, name)))
        self._began, self._dense, self._made = time.monotonic(), None, {}

    @property
    def seconds(self):
        """Return how long all runs took together."""
        return time.monotonic() - self._began

    def made_of(self, dense):
        """Return what earlier runs made of the dense network: (form, step) -> point or None."""
        self._dense = _row(dense)
        found = common.load(self.file, {"dense": None})
        if found["dense"] == self._dense:
            self._began -= found["seconds"]
            self._made = {(form, step): _point(row) for form, step, row in found["made"]}
            print(f"  goes on from {len(self._made)} networks of {self.file}.json", flush=True)
        return dict(self._made)

    def keep(self, form, step, point):
        """Add the form's network of a step, or that there is none."""
        self._made[form, step] = point
        rows = [[*key, _row(point)] for key, point in self._made.items()]
        common.save(self.file, {"dense": self._dense, "seconds": self.seconds, "made": rows})

    def finish(self):
        """Leave no file: the block is whole, and is saved."""
        (common.RESULTS / f"{self.file}.json").unlink(missing_ok=True)


def _row(point):
    return point and asdict(point) | {"outcomes": point.outcomes.tolist()}


def _point(row):
    return row and Point(**row | {"outcomes": np.array(row["outcomes"])})
