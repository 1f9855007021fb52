"""The paper's experiment: the bytes that an accuracy costs, by magnitude, by relevance, by both.

    python benchmarks/paper.py                        measure all (half a day on two cores); a run
                                                      that was stopped goes on where it was
    python benchmarks/paper.py --networks resnet56 --granularities channel --repairs none
    python benchmarks/paper.py --model torchvision:vgg16 --data imagenet/val
                                                      the paper's own network and data, if at hand
    python benchmarks/paper.py --quick                digits alone, few forms, one target, in a
                                                      minute; needs no data
    python benchmarks/paper.py --show                 the page from the JSON alone

For every network, deployment and granularity, with and without the same repair, networks of falling
size are made until accuracy is 5 points below the dense network's. The targets are the dense
network's accuracy less 0.5, 1, 2 and 5 points; what counts is the packed file at each, all files by
one encoder, float16. At each size FlexRel is one of its forms: the one that diverges least from the
dense network on calibration data, without labels, as `prune` chooses, of all or of those that are
not OBS; or the most accurate on labelled data that nothing is reported on.
"""

import argparse
import itertools
import math
import platform
from functools import partial
from importlib.metadata import version

import numpy as np
import torch

import aims
import common
import page
import sizes
import tasks
from flexrel import OBS, FlexRel, Magnitude, Relevance
from unfinished import Unfinished

SINGLE = ("magnitude", "relevance")
EXPERIMENT = ("network", "deployment", "granularity", "repair", "draw")
QUICK = {"channel": (Magnitude(), Relevance(), FlexRel(), OBS())}
QUICK["element"] = QUICK["channel"][:-1]


def forms(granularity, repair):
    """Return the forms of the score, by name: the single signals, the paper's sum, and ours.

    A repair takes minutes where a cut takes seconds, so that fewer forms are repaired.
    """
    if repair == "none":
        blends = [FlexRel(delta) for delta in (0.1, 0.5, 0.9)]
        blends += [FlexRel(delta, "product") for delta in (1 / 3, 2 / 3)]
        blends += [OBS()] if granularity == "channel" else []
    elif granularity == "channel":
        blends = [OBS(), FlexRel()]
    else:
        blends = [FlexRel(0.1), FlexRel(1 / 3, "product")]
    return {one.name: one for one in (Magnitude(), Relevance(), *blends)}


def choices(forms):
    """Return, by name, how FlexRel's form is chosen: of which, and what it has least of."""
    blends = tuple(name for name in forms if name != OBS().name)
    found = {aims.FOUND: (tuple(forms), lambda point: point.divergence)}
    if len(blends) < len(forms):
        found[aims.BLEND] = blends, lambda point: point.divergence
    return found | {aims.LABELS: (tuple(forms), lambda point: -point.choose)}


def measure(task, granularity, repair, wanted, drops=sizes.DROPS):
    """Return a block of results: networks, bytes at every target, and what FlexRel saves.

    Return also its unfinished form, which is on disk until it is told that the block is saved.
    """
    unfinished = Unfinished(task.network, task.deployment, granularity, repair, task.draw)
    how = {"repair": repair != "none", "unfinished": unfinished}
    workshop = sizes.Workshop(task, granularity, wanted, **how)
    curves = {}

    def walk(name, at):
        curves[name] = sizes.Curve(workshop, at, list(curves.values()), drops)
        print(f"  {name}: {unfinished.seconds:.0f} s", flush=True)

    for name in SINGLE:
        walk(name, partial(workshop.at, name))
    ways = choices(wanted)
    for name, (among, key) in ways.items():
        walk(name, partial(workshop.best_at, among, key))
    block = {
        "network": task.network,
        "deployment": task.deployment,
        "granularity": granularity,
        "repair": repair,
        "draw": task.draw,
        "unit": task.test.unit,
        "samples": len(workshop.dense.outcomes),
        "calibration": sum(len(inputs) for inputs in task.inputs),
        "judged": workshop.judged,  # of these
        "dense": workshop.dense.row() | {"parameters": workshop.parameters},
        "step": workshop.step,
        "drops": drops,
        "needed": {n: [round(c.needed(d)) for d in drops] for n, c in curves.items()},
        "forms": {n: [c.smallest(d).form for d in drops] for n, c in curves.items()},
        "log_ratio": {name: _ratios(curves, name, drops) for name in ways},
        "points": [point.row() for point in workshop.made],
        "seconds": round(unfinished.seconds),
        "versions": versions(),
    }
    return block, unfinished


def _ratios(curves, name, drops):
    """Return ln(bytes of FlexRel / those of the better single signal), with bootstrap errors.

    One a target, then their mean. Samples are drawn again, the same for all methods.
    """

    def ratios(rows):
        found = []
        for drop in drops:
            other = min(curves[single].needed(drop, rows) for single in SINGLE)
            found.append(math.log(curves[name].needed(drop, rows) / other))
        return [*found, float(np.mean(found))]

    samples = len(curves[name].points[0].outcomes)
    errors = np.std([ratios(rows) for rows in sizes.resampled(samples)], axis=0, ddof=1)
    values = ratios(slice(None))
    return [[round(v, 5), round(float(e), 5)] for v, e in zip(values, errors, strict=True)]


def versions():
    packages = ("flexrel", "torch", "numpy", "pcodec")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def all_tasks(args):
    """Yield each task, with the name of its file of results."""
    if args.model:
        import folders  # noqa: PLC0415 - needs torchvision or timm

        file = f"paper-{args.model.replace(':', '-')}"
        for draw in args.draws:
            own = (args.model, args.data, draw, args.images, args.device)
            for made in folders.all_tasks(*own, trained=not args.untrained):
                yield made, file
        return
    if args.quick:
        yield tasks.digits(), "paper-quick"
        return
    packs = common.data_packs()
    for name, draw in itertools.product(args.networks, args.draws):
        for deployment in tasks.DEPLOYMENTS[name]:
            if not args.deployments or deployment in args.deployments:
                made = tasks.task(packs, name, deployment, draw, device=args.device)
                yield made, f"paper-{name}"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--networks", nargs="+", default=tasks.NETWORKS, choices=tuple(tasks.DEPLOYMENTS)
    )
    parser.add_argument("--deployments", nargs="+", help="by default all that a network has")
    parser.add_argument(
        "--granularities", nargs="+", default=aims.GRANULARITIES, choices=aims.GRANULARITIES
    )
    parser.add_argument("--repairs", nargs="+", default=aims.REPAIRS, choices=aims.REPAIRS)
    parser.add_argument("--draws", nargs="+", type=int, default=(0,), help="of calibration data")
    parser.add_argument("--model", help="torchvision:NAME or timm:NAME, with --data")
    parser.add_argument("--data", help="a folder of images with one sub-folder a class")
    parser.add_argument("--images", type=int, default=5000, help="of --data, that report, at most")
    parser.add_argument("--untrained", action="store_true", help="--model with random weights")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--show", action="store_true", help="the page, from the JSON")
    args = parser.parse_args()
    if bool(args.model) != bool(args.data):
        parser.error("--model and --data go together")
    for task, file in () if args.show else all_tasks(args):
        for granularity, repair in itertools.product(args.granularities, args.repairs):
            print(f"{task.network}, {task.deployment}, {granularity}, {repair}", flush=True)
            few = ({form.name: form for form in QUICK[granularity]}, sizes.DROPS[-1:])
            how = few if args.quick else (forms(granularity, repair),)
            block, unfinished = measure(task, granularity, repair, *how)
            common.keep(file, block, *EXPERIMENT)
            unfinished.finish()
            print(page.targets([block]), flush=True)
    if not (args.quick or args.model):
        page.write()


if __name__ == "__main__":
    main()
