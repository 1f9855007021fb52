"""Each method that meets the others as one call: a case and a ruler in, a network out."""

import copy
import math
import time
from functools import partial

import published
import rivals
import sizes
from flexrel import Bytes, MACs, prune
from flexrel.core import cost
from flexrel.core.batches import first_samples, read_batches
from flexrel.criteria import UnitRanking, scores_of
from flexrel.pruning.search import least_removal
from flexrel.relevance import calibrate
from flexrel.structure import analyse, apply, named_tensors

OURS = "FlexRel"
BARE = "FlexRel, not repaired"
LIMIT = 900  # seconds for one method
TRIES = 12  # calls of a library to meet a budget
MET = 0.01  # a budget is met from below to within this share; if no call did, by the closest
POWERS = (0.5, 4)  # of the knob that a cost may be taken for
CLOSE = 0.005  # knobs are not told apart below this ratio less one
SEARCH = LIMIT / 2  # seconds after which a library that has met the budget is not called again


def names(network, granularity):
    """Return the names of all methods for a case, ours last."""
    channels = granularity == "channel"
    theirs = list(rivals.CHANNELS if channels else rivals.WEIGHTS)
    if network != "resnet20":
        theirs = [name for name in theirs if name != "ModelOpt FastNAS"]
    return [*theirs, *(["PbX (paper)"] if channels else []), BARE, OURS]


def by_library(call, case, task, ruler):
    """Return the network of the largest knob found that keeps to the budget, and its seconds."""
    power = 2 if case.granularity == "channel" else 1
    search = Knob((1 - MET / 2) * ruler.limit, power)
    knob, best = case.level ** (1 / power), None
    first = time.monotonic()
    for _ in range(TRIES):
        began = time.monotonic()
        network = call(copy.deepcopy(task.model), task, knob)
        seconds, found = time.monotonic() - began, ruler(network)
        if found <= ruler.limit and (best is None or found > best[1]):
            best = network, found, seconds
            if found >= (1 - MET) * ruler.limit:
                break
        if best is not None and began + 2 * seconds > first + SEARCH:  # the next as long as this
            break
        knob = search.after(knob, found, within=found <= ruler.limit)
        if knob is None:
            break
    if best is None:
        raise RuntimeError("no call kept to the budget")
    return best[0], best[2]


class Knob:
    """Searches the knob at which a cost, that never falls with it, is what is aimed at.

    The cost is taken for a power of the knob, for the one that the last two knobs had; and, once
    the aim is between two, every second time for steps: the bracket is halved.
    """

    def __init__(self, aim, power):
        self.aim, self.power, self.halves = aim, power, False
        self.low, self.high = None, None  # (knob, cost): the closest within the budget, and above
        self.last = None

    def after(self, knob, cost, *, within):
        """Return the next knob; None where those within the budget and above it have met."""
        here, last = (knob, cost), self.last
        self.last = here
        if last and cost != last[1]:
            power = math.log(cost / last[1]) / math.log(knob / last[0])
            self.power = min(max(power, POWERS[0]), POWERS[1])
        if within:
            self.low = max(self.low or here, here)
        else:
            self.high = min(self.high or here, here)
        if self.low is None or self.high is None:
            factor = (self.aim / cost) ** (1 / self.power)
            if within:
                return None if knob == 1 else min(max(factor, 1 + CLOSE) * knob, 1.0)
            return min(factor, 1 - CLOSE) * knob
        (low, least), (high, most) = self.low, self.high
        if high < (1 + CLOSE) * low:
            return None
        way = 0.5 if self.halves else math.log(self.aim / least) / math.log(most / least)
        self.halves = not self.halves
        return low * (high / low) ** way


def by_pbx(case, task):
    """Return the network cut by relevance alone, by a composite of LRP rules, and its seconds."""
    model = task.model
    example = first_samples(next(read_batches(task.inputs[:1], model)), 2)
    graph = analyse(model, example, case.granularity)
    labelled = task.calibration[0][1] is not None
    began = time.monotonic()
    found = calibrate(
        model, task.calibration, rule="composite", output="label" if labelled else "auto"
    )
    scores = scores_of(published.Explained(), graph, named_tensors(model), found)
    removal = UnitRanking(graph, scores)
    of = partial(_macs, graph, removal)
    count = least_removal(of, case.level * cost.macs(graph), removal.removable)
    if count is None:
        raise RuntimeError("the budget can't be met")
    return apply(model, removal.plan(count)), time.monotonic() - began


def _macs(graph, removal, count):
    return cost.macs(graph, removal.plan(count).masks)


def by_flexrel(recover, case, task, ruler):
    """Return what the default call of `prune` makes, but for `recover`, and its seconds."""
    budget = MACs(case.level) if case.granularity == "channel" else Bytes(ruler.limit)
    values = "float32" if case.granularity == "channel" else sizes.VALUES
    began = time.monotonic()
    result = prune(
        task.model,
        calibration=task.inputs,
        budgets=[budget],
        granularity=case.granularity,
        recover=recover,
        values=values,
    )
    return result.model, time.monotonic() - began


def made_by(method, case, task, ruler):
    """Return the network that a method makes within the ruler's limit, and the seconds it took."""
    if method == OURS:
        return by_flexrel("closed-form", case, task, ruler)
    if method == BARE:
        return by_flexrel("none", case, task, ruler)
    if method == "PbX (paper)":
        return by_pbx(case, task)
    calls = rivals.CHANNELS if case.granularity == "channel" else rivals.WEIGHTS
    return by_library(calls[method], case, task, ruler)
