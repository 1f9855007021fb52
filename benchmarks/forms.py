"""Which form of the score needs the fewest bytes: parts, reductions, scales, blends.

    python benchmarks/forms.py                        measure all (three hours on a core)
    python benchmarks/forms.py --networks resnet56 --granularities element
    python benchmarks/forms.py --show                 the tables, from the JSON

Settles the defaults of `Relevance`, `FlexRel` and `OBS`. Only `train` images are used: 512 to
calibrate, without labels, 300 others to judge by. Nothing is repaired. What counts is the packed
file at the dense network's accuracy less 0.5, 1, 2 and 5 points, as in `paper.py`.
"""

import argparse
import dataclasses
import math
import time
from functools import partial

import torch

import aims
import common
import scores
import sizes
import tasks

CASES = (
    ("resnet56", "3 classes", "channel"),
    ("resnet56", "as trained", "channel"),
    ("vgg16", "3 classes", "channel"),
    ("resnet56", "3 classes", "element"),
    ("resnet56", "as trained", "element"),
)
FORMS = {"channel": scores.of_channels, "element": scores.of_weights}
SECTIONS = {"channel": "forms", "element": "forms of weights"}
BASE = {"channel": "relevance", "element": "magnitude"}  # what all are compared with


def _name(form):
    scale, part = getattr(form, "scale", None), getattr(form, "part", None)
    return ", ".join(filter(None, (form.name, part, scale)))


def measure(task, granularity):
    """Return a block: the bytes that each form needs, and how they compare with BASE."""
    task = dataclasses.replace(task, test=task.choose)
    wanted = {_name(form): form for form in FORMS[granularity](task)}
    workshop = sizes.Workshop(task, granularity, wanted, repair=False)
    curves, began = {}, time.monotonic()
    for name in wanted:
        hints = list(curves.values())
        curves[name] = sizes.Curve(workshop, partial(workshop.at, name), hints)
        print(f"  {name}: {time.monotonic() - began:.0f} s", flush=True)
    dense = workshop.dense
    return {
        "network": task.network,
        "deployment": task.deployment,
        "granularity": granularity,
        "samples": len(dense.outcomes),
        "dense": dense.row(),
        "drops": sizes.DROPS,
        "needed": {n: [round(c.needed(d)) for d in sizes.DROPS] for n, c in curves.items()},
        "log_ratio": {n: ratio(c, curves[BASE[granularity]]) for n, c in curves.items()},
    }


def ratio(curve, base):
    """Return ln(bytes of one curve / those of another), the mean over targets, and its error."""

    def of(rows=slice(None)):
        pairs = ((curve.needed(d, rows), base.needed(d, rows)) for d in sizes.DROPS)
        return sum(math.log(a / b) for a, b in pairs) / len(sizes.DROPS)

    draws = torch.tensor([of(rows) for rows in sizes.resampled(len(base.points[0].outcomes))])
    return [round(of(), 5), round(float(draws.std()), 5)]


def show(granularity):
    blocks = [b for b in common.load("forms")["blocks"] if b["granularity"] == granularity]
    if not blocks:
        return
    header = ["form", *(f"{b['network']}, {b['deployment']}" for b in blocks), "mean"]
    rows = []
    for name in blocks[0]["needed"]:
        found = [block["log_ratio"][name] for block in blocks]
        mean = sum(value for value, _ in found) / len(found)
        error = math.sqrt(sum(e * e for _, e in found)) / len(found)
        shown = [f"{math.exp(v):.2f} ± {math.exp(v) * e:.2f}" for v, e in [*found, (mean, error)]]
        rows.append((mean, [name, *shown]))
    rows.sort(key=lambda row: row[0])
    common.replace_section(SECTIONS[granularity], common.table(header, [row for _, row in rows]))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    networks = tuple(dict.fromkeys(network for network, *_ in CASES))
    parser.add_argument("--networks", nargs="+", default=networks, choices=networks)
    parser.add_argument(
        "--granularities", nargs="+", default=aims.GRANULARITIES, choices=aims.GRANULARITIES
    )
    parser.add_argument("--show", action="store_true", help="the tables, from the JSON")
    args = parser.parse_args()
    for network, deployment, granularity in () if args.show else CASES:
        if network in args.networks and granularity in args.granularities:
            task = tasks.task(common.data_packs(), network, deployment, 0)
            block = measure(task, granularity)
            common.keep("forms", block, "network", "deployment", "granularity")
    for granularity in SECTIONS:
        show(granularity)


if __name__ == "__main__":
    main()
