"""How to tell without labels which of several cuts is the best.

    python benchmarks/choice.py                        measure all (half an hour on a core)
    python benchmarks/choice.py --networks resnet56
    python benchmarks/choice.py --show                 the table, from the JSON

Settles what `Divergence` is and on how many samples it judges. At some sizes the network of every
form of `paper.py` is made, not repaired. Each measure takes the one whose outputs on calibration
images it finds closest to the dense network's, without labels; what counts is by how much the
accuracy of that one, on the labelled images of `tasks.py` to choose by, is below the best one's.
Errors: over draws of the images that measure and of those that count, with replacement.
"""

import argparse
from dataclasses import dataclass

import numpy as np
import torch

import common
import paper
import sizes
import tasks
from flexrel.core.batches import fitted_and_judged, read_batches
from flexrel.core.distance import apart, apart_but_for_scale
from flexrel.core.running import call


@dataclass(frozen=True)
class Case:
    """One task, one kind of cut, and the steps of the grid of sizes."""

    network: str
    deployment: str
    granularity: str
    steps: tuple[int, ...]

    @property
    def name(self):
        return f"{self.network} {self.granularity}s, {self.deployment}"


CASES = (
    Case("resnet56", "3 classes", "channel", (3, 5)),
    Case("resnet56", "as trained", "channel", (2, 3)),
    Case("resnet56", "as trained", "element", (4, 6)),
    Case("resnet56", "corrupted", "element", (4, 6)),
    Case("vgg16", "corrupted", "element", (6, 7)),
    Case("vgg16", "3 classes", "element", (8, 9)),
)
DRAWS = 100


def as_it_is(goal, found):
    error, size = apart([goal], [found])
    return float(error / size)


def disagreement(goal, found):
    return float((goal.argmax(1) != found.argmax(1)).double().mean())


MEASURES = {
    "divergence": as_it_is,
    "divergence but for scale": apart_but_for_scale,
    "other predictions": disagreement,
}
SAMPLES = {"128 held out": False, "all 512": True}


def outputs(network, batches):
    """Return the class scores of all samples."""
    with torch.no_grad():
        return torch.cat([call(network, batch) for batch in read_batches(batches, network)])


def measure(case):
    """Return a block: for each measure and number of samples, what is lost, and its error."""
    task = tasks.task(common.data_packs(), case.network, case.deployment, 0)
    forms = paper.forms(case.granularity, "none")
    workshop = sizes.Workshop(task, case.granularity, forms, repair=False)
    parts = fitted_and_judged(task.inputs, task.model)
    held = sum(batch.samples for batch in read_batches(parts[1], task.model))

    def seen(network):  # those held out last
        return torch.cat([outputs(network, part) for part in parts])

    goal = seen(task.model)
    made = []
    for step in case.steps:
        networks = [workshop.network(form, step) for form in forms]
        right = np.stack([task.choose(network) for network in networks])
        made.append(([seen(network) for network in networks], right))
        accuracies = right.mean(1).round(3).tolist()
        print(case.name, step, dict(zip(forms, accuracies, strict=True)), flush=True)
    losses = {}
    for name, far in MEASURES.items():
        for samples, every in SAMPLES.items():
            own = slice(None) if every else slice(len(goal) - held, None)
            found = [_lost(far, goal[own], made, own, draw) for draw in (None, *range(DRAWS))]
            losses[f"{name}, {samples}"] = [found[0], float(np.std(found[1:], ddof=1))]
    return {"case": case.name, "losses": losses, "versions": paper.versions()}


def _lost(far, goal, made, own, draw):
    """Return how many points of accuracy the choice loses, the mean over sizes."""
    rng = np.random.default_rng(draw)
    total = 0.0
    for found, right in made:
        rows, counted = np.arange(len(goal)), np.arange(right.shape[1])
        if draw is not None:
            rows, counted = (rng.integers(len(each), size=len(each)) for each in (rows, counted))
        scores = [far(goal[rows], each[own][rows]) for each in found]
        accuracies = right[:, counted].mean(1)
        total += 100 * float(accuracies.max() - accuracies[int(np.argmin(scores))])
    return total / len(made)


def show():
    blocks = common.load("choice")["blocks"]
    rows = []
    for name in blocks[0]["losses"]:
        found = np.array([block["losses"][name] for block in blocks])
        mean = (found[:, 0].mean(), np.sqrt(np.square(found[:, 1]).sum()) / len(found))
        rows.append([name, *(f"{value:.1f} ± {error:.1f}" for value, error in (*found, mean))])
    header = ["measure", *(block["case"] for block in blocks), "mean"]
    common.replace_section("choice", common.table(header, rows))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    networks = tuple(dict.fromkeys(case.network for case in CASES))
    parser.add_argument("--networks", nargs="+", default=networks, choices=networks)
    parser.add_argument("--show", action="store_true", help="the table, from the JSON")
    args = parser.parse_args()
    for case in () if args.show else CASES:
        if case.network in args.networks:
            common.keep("choice", measure(case), "case")
    show()


if __name__ == "__main__":
    main()
