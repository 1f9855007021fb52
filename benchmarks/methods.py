"""Each method that meets the others as one call: a case and a ruler in, a network out."""

import copy
import time
from functools import partial

import published
import rivals
import sizes
from flexrel import Bytes, MACs, cost, prune
from flexrel.allocate import Removal
from flexrel.apply import apply
from flexrel.batches import first_samples, read_batches
from flexrel.calibrate import calibrate
from flexrel.criteria import scores_of
from flexrel.search import least_removal
from flexrel.structure import analyse, named_tensors

OURS = "FlexRel"
BARE = "FlexRel, not repaired"
LIMIT = 900  # seconds for one method
TRIES = 6  # calls of a library to meet a budget
MET = 0.01  # a budget is met from below to within this share; if no call did, by the closest
SEARCH = LIMIT / 2  # seconds after which a library that has met the budget is not called again


def names(case):
    """Return the names of all methods for a case, ours last."""
    found = rivals.CHANNELS if case.granularity == "channel" else rivals.WEIGHTS
    theirs = [name for name in found if name != "ModelOpt FastNAS" or case.network == "resnet20"]
    return [*theirs, *(["PbX (paper)"] if case.granularity == "channel" else []), BARE, OURS]


def by_library(call, case, task, ruler):
    """Return the network of the largest knob found that keeps to the budget, and its seconds.

    The knob is searched as if the cost were a power of it.
    """
    low, high = 0.0, 1.0  # too small, perhaps; too large
    knob, best = case.level ** (0.5 if case.granularity == "channel" else 1), None
    first = time.monotonic()
    for _ in range(TRIES):
        began = time.monotonic()
        network = call(copy.deepcopy(task.model), task, knob)
        seconds, found = time.monotonic() - began, ruler(network)
        if found <= ruler.limit:
            if best is None or found > best[1]:
                best = network, found, seconds
            low = knob
            if found >= (1 - MET) * ruler.limit:
                break
        else:
            high = knob
        if best is not None and began + 2 * seconds > first + SEARCH:  # the next as long as this
            break
        power = 2 if case.granularity == "channel" else 1
        aim = knob * ((1 - MET / 2) * ruler.limit / found) ** (1 / power)
        inside = low + 0.02 * (high - low) < aim < high - 0.02 * (high - low)
        knob = aim if inside else (low + high) / 2
    if best is None:
        raise RuntimeError(f"none of {TRIES} calls kept to the budget")
    return best[0], best[2]


def by_pbx(case, task, ruler):
    """Return the network cut by relevance alone, of the rules that its paper recommends, timed."""
    model = task.model
    example = first_samples(next(read_batches(task.inputs[:1], model)), 2)
    structure = analyse(model, example, case.granularity)
    labelled = task.calibration[0][1] is not None
    began = time.monotonic()
    found = calibrate(
        model, task.calibration, rule="composite", output="label" if labelled else "auto"
    )
    scores = scores_of(published.Explained(), structure, named_tensors(model), found)
    removal = Removal(structure, scores)
    of = partial(_macs, structure, removal)
    count = least_removal(of, case.level * cost.macs(structure), removal.removable)
    if count is None:
        raise RuntimeError("the budget can't be met")
    network = apply(model, removal.plan(count))
    ruler(network)
    return network, time.monotonic() - began


def _macs(structure, removal, count):
    return cost.macs(structure, removal.plan(count))


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
        return by_pbx(case, task, ruler)
    calls = rivals.CHANNELS if case.granularity == "channel" else rivals.WEIGHTS
    return by_library(calls[method], case, task, ruler)
