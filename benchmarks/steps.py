"""Cuts in steps: does it help to score again what a first cut and its repair left?

    python benchmarks/steps.py          measure (about half an hour on two cores)
    python benchmarks/steps.py --show   the table from the JSON alone

The multiply-adds fall by the same factor in each step. After each the network is repaired, and
damage, or relevance, is measured anew on it; at the end the dense network is cut by all the steps'
plans together, and repaired once. Calibrated on `train`, reported on `test_a`; cases are those of
`recover.py`.
"""

import argparse
import statistics
import time

import torch

import common
from flexrel import OBS, Relevance
from flexrel.core import cost
from flexrel.core.batches import first_samples, fitted_and_judged
from flexrel.core.evaluate import Divergence
from flexrel.core.plan import Plan
from flexrel.criteria import UnitRanking, measure_saliency, scores_of
from flexrel.pruning.search import least_removal
from flexrel.relevance import calibrate
from flexrel.repair import ClosedForm
from flexrel.structure import analyse, apply, named_tensors
from recover import CASES, Data, accuracy, spread

NETWORK = "resnet20"
STEPS = (1, 2, 4)
DRAWS = (0, 1, 2)


def masks_after(network, images, criterion, limit):
    """Return which units of each group stay when the network is cut to so many multiply-adds."""
    graph = analyse(network, first_samples(images[0], 2), "channel")
    stats = damages = None
    if criterion.needs_relevance:
        stats = calibrate(network, images)
    else:
        damages, unknown = measure_saliency(network, graph, images)
        known = [group for group in graph.groups if group.name in damages]
        graph = graph.only(known, unknown)
    scores = scores_of(criterion, graph, named_tensors(network), stats, damages)
    removal = UnitRanking(graph, scores)
    count = least_removal(
        lambda k: cost.macs(graph, removal.plan(k).masks), limit, removal.removable
    )
    return removal.plan(removal.removable if count is None else count).masks


def measure(case, draw):
    """Return a block of results: one row a criterion and number of steps."""
    packs = common.data_packs()
    model = packs.network(case.network).to(memory_format=torch.channels_last)
    data = Data(packs, case, draw)
    images, judged = fitted_and_judged(data.calibrate, model)
    graph = analyse(model, first_samples(images[0], 2), "channel")
    whole, divergence = cost.macs(graph), Divergence(model, judged)
    rows = []
    for criterion in (OBS(), Relevance()):
        for steps in STEPS:
            began = time.monotonic()
            masks = {s.name: torch.ones(s.units, dtype=torch.bool) for s in graph.groups}
            network = model
            for step in range(1, steps + 1):
                limit = whole * case.level ** (step / steps)
                for name, stay in masks_after(network, images, criterion, limit).items():
                    masks[name][masks[name].nonzero()[:, 0][~stay]] = False
                plan = Plan(graph, {name: mask.clone() for name, mask in masks.items()})
                network = ClosedForm()(apply(model, plan), model, plan, images).model
            row = {
                "score": criterion.name,
                "steps": steps,
                "accuracy": accuracy(network, data.test),
                "divergence": divergence(network),
                "macs": cost.macs(graph, plan.masks) / whole,
                "seconds": time.monotonic() - began,
            }
            print(case.name, draw, row, flush=True)
            rows.append(row)
    return {"case": case.name, "draw": draw, "rows": rows}


def table(blocks):
    """Return the accuracy for each number of steps: mean and error over draws."""
    rows = []
    for name in dict.fromkeys(block["case"] for block in blocks):
        found = [row for block in blocks if block["case"] == name for row in block["rows"]]
        for score in dict.fromkeys(row["score"] for row in found):
            mine = [[r for r in found if (r["score"], r["steps"]) == (score, n)] for n in STEPS]
            seconds = (f"{statistics.mean(r['seconds'] for r in each):.0f} s" for each in mine)
            accuracies = (spread([row["accuracy"] for row in each]) for each in mine)
            rows.append([name, score, *accuracies, " / ".join(seconds)])
    steps = [f"{n} step{'s' * (n > 1)}" for n in STEPS]
    return common.table(["cut", "score", *steps, "time"], rows)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--draws", type=int, nargs="+", default=DRAWS)
    args = parser.parse_args()
    cases = [c for c in CASES if c.network == NETWORK and c.granularity == "channel"]
    for case in () if args.show else cases[::-1]:
        for draw in args.draws:
            block = measure(case, draw)
            common.keep("steps", block, "case", "draw", torch=torch.__version__)
    common.replace_section("steps", table(common.blocks("steps")))


if __name__ == "__main__":
    main()
