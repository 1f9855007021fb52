"""Whether other allocations do better than OBS's own: damage at more levels, and local search.

    python benchmarks/allocation.py                     measure all (about an hour)
    python benchmarks/allocation.py --networks resnet20
    python benchmarks/allocation.py --quick             digits alone; needs no data
    python benchmarks/allocation.py --show              the page, from the JSON

Of each case the multiply-adds are the same. *half*: as `prune` has it, by how much a group's
saliency is larger than predicted is measured with half of its units gone. *levels*: with an
eighth, a quarter, half and three quarters gone, interpolated. *search*: from *half* on, the shares
of 2 to 4 groups are changed at random; the change stays if outputs on held-out samples come closer
to the dense network's, by sketches, 100 times. All are repaired in full, and tested on data that
nothing was chosen on.
"""

import math

import numpy as np
import torch

import common
import tasks
from flexrel import OBS, ClosedForm, MACs
from flexrel.core import cost
from flexrel.core.batches import first_samples, read_batches
from flexrel.core.distance import Divergence
from flexrel.core.division import divided, fitted_and_judged, joined, spread
from flexrel.core.graph import layer_of
from flexrel.core.running import call, tensors_of, undisturbed
from flexrel.criteria import measure_saliency, rank_units, scores_of
from flexrel.criteria.kfac import measure_factors
from flexrel.criteria.obs import predicted_saliency, refitted
from flexrel.pruning.bisection import least_removal
from flexrel.structure import analyse, apply, named_tensors

CASES = {  # network -> shares of the multiply-adds
    "resnet20": (0.5, 0.25),
    "resnet56": (0.47, 0.25),
}
QUICK = {"digits": (0.3,)}
DRAWS = 2
LEVELS = (1 / 8, 1 / 4, 1 / 2, 3 / 4)  # of a group's units gone
TRIES, STEP, MOST = 100, 0.4, 4  # of the search; size of a change; groups changed at once
FEW, SKETCHED, HELD = (
    64,
    4000,
    32,
)  # samples and rows of a sketch; samples that levels are measured on
METHODS = ("half", "levels", "search")


class Case:
    """One network, share of multiply-adds and draw of calibration data."""

    def __init__(self, task, share):
        self.task, self.share, self.model = task, share, task.model
        self.fitted, judged = fitted_and_judged(task.inputs, task.model)
        self.few = spread(self.fitted, task.model, FEW)
        self.divergence = Divergence(task.model, judged, task.choose.outputs)
        example = first_samples(next(read_batches(task.inputs, task.model)))
        self.graph = analyse(task.model, example, "channel", ())
        self.costs = MACs(share).resource.unit_costs(self.graph)
        self.tensors = named_tensors(task.model)
        whole = {
            group.name: torch.ones(group.shape, dtype=torch.bool) for group in self.graph.groups
        }
        self.limit = share * cost.macs(self.graph, whole)

    def scores(self, saliency):
        return scores_of(OBS(), self.graph, self.tensors, None, saliency, self.costs)

    def plan(self, scores):
        ranking = rank_units(self.graph, scores)

        def macs(count):
            return cost.macs(self.graph, ranking.plan(count).masks)

        return ranking.plan(least_removal(macs, self.limit, ranking.removable))

    def repaired(self, plan, data, **rows):
        cut = apply(self.model, plan)
        return ClosedForm(**rows)(cut, self.model, plan, data).model

    def sketched(self, plan):
        return self.divergence(self.repaired(plan, self.few, rows=SKETCHED))

    def measured(self, plan):
        made = self.repaired(plan, self.fitted)
        found = self.task.test(made)
        score = self.task.test.score(found)
        return {"divergence": self.divergence(made), "score": score, "of": len(found)}


def by_levels(case):
    """Return the saliency whose sums at each level are as large as measured."""
    model, graph = case.model, case.graph
    samples = sum(batch.samples for batch in read_batches(case.fitted, model))
    held = HELD / samples
    layers = {reader for group in graph.groups for reader in group.readers}
    factors = measure_factors(model, case.fitted, layers, held=held)
    checks = joined(check for _, check in divided(case.fitted, model, held) if check is not None)
    count = sum(batch.samples for batch in checks)
    with undisturbed(model), torch.no_grad():
        dense = [outputs(model, {}, batch) for batch in checks]
        return {
            group.name: levelled(case, group, factors, checks, dense, count)
            for group in graph.groups
        }


def outputs(model, changed, batch):
    if not changed:
        return torch.cat([t.flatten(1) for t in tensors_of(call(model, batch))], 1)
    made = torch.func.functional_call(model, changed, batch.args, dict(batch.kwargs))
    return torch.cat([t.flatten(1) for t in tensors_of(made)], 1)


def levelled(case, group, factors, checks, dense, count):
    """Return the saliency of one group's units."""
    costs = predicted_saliency(group, case.tensors, factors) / max(factors.samples, 1)
    order = costs.argsort(stable=True)
    sums = costs[order].cumsum(0)
    at, gains = [], []
    for level in LEVELS:
        gone = max(round(level * group.units), 1)
        kept = torch.ones(group.units, dtype=torch.bool).index_fill_(0, order[:gone], 0)
        changed = {
            member.tensor: refitted(
                member, case.tensors[member.tensor], factors.layers[layer_of(member.tensor)], kept
            )
            for member in group.members
            if member.reads
        }
        pairs = zip(checks, dense, strict=True)
        error = sum(
            float((outputs(case.model, changed, batch) - then).double().square().sum())
            for batch, then in pairs
        )
        at.append(gone)
        gains.append(math.log(max(error / count, 1e-12) / float(sums[gone - 1] + 1e-30)))
    whole = np.exp(np.interp(np.arange(1, group.units + 1), at, gains))
    curve = (sums * torch.from_numpy(whole)).cummax(0).values
    steps = torch.diff(curve, prepend=curve.new_zeros(1)).clamp_min(0)
    steps = steps.cummax(0).values  # the order within the group stays
    return torch.empty_like(steps).index_copy_(0, order, steps)


def searched(case, scores, rng):
    """Return the plan that a local search ends with."""
    names = list(scores)
    shift = np.zeros(len(names))
    plan = case.plan(scores)
    least = case.sketched(plan)
    for _ in range(TRIES):
        some = rng.choice(
            len(names), min(int(rng.integers(2, MOST + 1)), len(names)), replace=False
        )
        other = shift.copy()
        other[some] += rng.normal(0, STEP, len(some))
        tried = case.plan(
            {n: scores[n] * float(np.exp(by)) for n, by in zip(names, other, strict=True)}
        )
        if all(torch.equal(tried.masks[name], plan.masks[name]) for name in names):
            continue
        found = case.sketched(tried)
        if found < least:
            least, shift, plan = found, other, tried
    return plan


def measure(network, share, draw):
    task = tasks.digits() if network == "digits" else tasks.task(network, "as trained", draw)
    case = Case(task, share)
    saliency, _ = measure_saliency(case.model, case.graph, case.fitted, seed=draw)
    half = case.scores(saliency)
    block = {"network": network, "share": share, "draw": draw}
    block["half"] = case.measured(case.plan(half))
    block["levels"] = case.measured(case.plan(case.scores(by_levels(case))))
    block["search"] = case.measured(searched(case, half, np.random.default_rng(draw)))
    return block | {"with": common.versions("torch")}


def blocks(args):
    cases = QUICK if args.quick else {name: CASES[name] for name in args.networks}
    for draw in range(1 if args.quick else DRAWS):
        for network, shares in cases.items():
            for share in shares:
                torch.manual_seed(draw)
                yield measure(network, share, draw)


def page(found):
    if not found:
        return []
    rows = []
    for block in found:
        case = (
            f"{block['network']}, {100 * block['share']:g} % of multiply-adds, draw {block['draw']}"
        )
        error = math.sqrt(
            block["half"]["score"] * (1 - block["half"]["score"]) / block["half"]["of"]
        )
        apart = [f"{block[name]['divergence']:.3g}" for name in METHODS]
        right = [f"{100 * block[name]['score']:.1f}" for name in METHODS]
        rows.append([case, *apart, *right, f"{100 * error:.1f}"])
    return [
        "# Other allocations",
        (
            "Made by `python benchmarks/allocation.py`. What OBS's plan, two others of as many "
            "multiply-adds, and a local search come to: divergence from the dense network on "
            "held-out calibration samples, which the search goes by, and accuracy in percent on "
            "images that nothing was chosen on, with one standard error. *half* is what `prune` "
            "does."
        ),
        common.table(
            (
                "case",
                *(f"{name}, divergence" for name in METHODS),
                *(f"{n}, %" for n in METHODS),
                "±",
            ),
            rows,
        ),
        common.measured_with(found[0]["with"]),
    ]


def main():
    args = common.parser(__doc__, CASES).parse_args()
    common.run(args, "allocation", blocks(args), ("network", "share", "draw"), page)


if __name__ == "__main__":
    main()
