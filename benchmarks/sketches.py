"""Whether quick sketches tell criteria apart as full repairs do, and what fewer rows cost.

    python benchmarks/sketches.py                     measure all (a quarter of an hour)
    python benchmarks/sketches.py --networks resnet20
    python benchmarks/sketches.py --quick             digits alone, in seconds; needs no data
    python benchmarks/sketches.py --show              the page, from the JSON

For each case the divergence of each criterion's network from the dense one, repaired in full and as
a sketch; then the accuracy of one criterion's network, repaired with more rows and fewer, on data
that nothing was chosen on.
"""

import math

import numpy as np
import torch

import common
import tasks
from flexrel import ClosedForm, PruneOptions, prune
from flexrel.core.distance import Divergence
from flexrel.core.division import fitted_and_judged, spread
from flexrel.structure import apply

CASES = {  # network -> use, budget
    "resnet20": (("as trained", "macs=50%"), ("3 classes", "macs=30%")),
    "resnet56": (("as trained", "macs=47%"),),
}
QUICK = {"digits": (("as trained", "macs=50%"),)}
NAMES = ("obs", "flexrel:0.5", "magnitude", "relevance")
FEW, SKETCHED = 64, 4000  # samples and rows of a sketch
ROWS = (30_000, 12_000, 6_000)
COMPARED = (
    "Made by `python benchmarks/sketches.py`. Divergence from the dense network of what each "
    "criterion's plan becomes, repaired with all calibration data, and as a sketch: with "
    f"{FEW} samples and {SKETCHED:,} rows. Lower is better; the last column has the least."
)
FEWER = (
    "Accuracy in percent on images that nothing was chosen on, by how many rows of a layer are "
    "fitted; the last column is one standard error."
)


def task_of(network, use):
    return tasks.digits() if network == "digits" else tasks.task(network, use, 0)


def measure(network, use, budget):
    """Return one case: each criterion's divergence, in full and sketched; accuracy by rows."""
    task = task_of(network, use)
    options = PruneOptions(outputs=task.choose.outputs)
    fitted, judged = fitted_and_judged(task.inputs, task.model)
    divergence = Divergence(task.model, judged, task.choose.outputs)
    few = spread(fitted, task.model, FEW)
    block = {"network": network, "use": use, "budget": budget, "full": {}, "sketch": {}}
    plans = {}
    for name in NAMES:
        asked = {"budgets": [budget], "criterion": name, "options": options}
        plans[name] = prune(task.model, calibration=task.inputs, recover="none", **asked).plan
        cut = apply(task.model, plans[name])
        for kind, repair, data in (
            ("full", ClosedForm(), fitted),
            ("sketch", ClosedForm(rows=SKETCHED), few),
        ):
            made = repair(cut, task.model, plans[name], data).model
            block[kind][name] = divergence(made)
    best = min(block["full"], key=block["full"].get)
    block["rows"], cut = {}, apply(task.model, plans[best])
    for rows in ROWS:
        made = ClosedForm(rows=rows)(cut, task.model, plans[best], fitted).model
        hits = task.test(made)
        block["rows"][str(rows)], block["tested"] = float(np.mean(hits)), len(hits)
    return block | {"with": common.versions("torch")}


def blocks(args):
    cases = QUICK if args.quick else {name: CASES[name] for name in args.networks}
    torch.manual_seed(0)
    for network, uses in cases.items():
        for use, budget in uses:
            yield measure(network, use, budget)


def order(divergences):
    return sorted(divergences, key=divergences.get)


def page(found):
    if not found:
        return []
    compared, fewer = [], []
    for block in found:
        case = f"{block['network']}, {block['use']}, {block['budget']}"
        for kind in ("full", "sketch"):
            numbers = [f"{block[kind][name]:.3g}" for name in NAMES]
            compared.append([f"{case}, {kind}", *numbers, order(block[kind])[0]])
        share = block["rows"][str(ROWS[0])]
        error = 100 * math.sqrt(share * (1 - share) / block["tested"])
        numbers = [f"{100 * block['rows'][str(rows)]:.1f}" for rows in ROWS]
        fewer.append([f"{case}, {order(block['full'])[0]}", *numbers, f"{error:.1f}"])
    return [
        "# Sketches, and fewer rows",
        COMPARED,
        common.table(("case", *NAMES, "best"), compared),
        FEWER,
        common.table(("case, criterion", *(f"{rows:,}" for rows in ROWS), "±"), fewer),
        common.measured_with(found[0]["with"]),
    ]


def main():
    args = common.parser(__doc__, CASES).parse_args()
    common.run(args, "sketches", blocks(args), ("network", "use", "budget"), page)


if __name__ == "__main__":
    main()
