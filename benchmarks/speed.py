"""What calibrating, scoring and selecting cost, as ratios in one run and as peaks of memory.

    python benchmarks/speed.py          measure, then write the table into README.md

Calibration is timed against a plain forward and backward pass over the same images, in turn.
"""

import argparse
import statistics

import torch

import common
from flexrel.allocate import Removal
from flexrel.batches import first_samples, read_batches
from flexrel.calibrate import calibrate
from flexrel.criteria import FlexRel, Magnitude, scores_of
from flexrel.structure import analyse

IMAGES, BATCH = 512, 64
MIB = 2**20


def plain(model, batches):
    """Forward and backward of the predicted class's score, with gradients of the weights."""
    for x in batches:
        model(x).max(dim=1).values.sum().backward()
    model.zero_grad()


def calibration(packs, name, runs):
    model = packs.network(name)
    x, _ = packs.cifar10("train")
    batches = list(packs.normalise(name, x[:IMAGES]).split(BATCH))
    pairs = []
    for run in range(runs + 1):  # the first is a warm-up
        pair = (
            common.timed(lambda: calibrate(model, batches)),
            common.timed(lambda: plain(model, batches)),
        )
        if run:
            pairs.append(pair)
    ratios = [ours / theirs for ours, theirs in pairs]
    return {
        "network": name,
        "calibrate_s": statistics.median(ours for ours, _ in pairs),
        "plain_s": statistics.median(theirs for _, theirs in pairs),
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
    }


def selection(packs, criterion, runs):
    model = packs.network("vgg16")
    x, _ = packs.cifar10("train")
    batches = list(packs.normalise("vgg16", x[:BATCH]).split(BATCH))
    found = calibrate(model, batches)
    structure = analyse(model, first_samples(next(read_batches(batches, model)), 2), "element")
    tensors = dict(model.named_parameters())

    def work():
        scores = scores_of(criterion, structure, tensors, found)
        Removal(structure, scores).plan(int(0.8 * structure.units))

    with common.Peak() as peak:
        work()
    seconds = [common.timed(work) for _ in range(runs)]
    return {
        "criterion": criterion.name,
        "seconds": statistics.median(seconds),
        "mib": peak.bytes / MIB,
    }


def show():
    content = common.load("speed")
    rows = [
        [
            row["network"],
            f"{row['calibrate_s']:.2f}",
            f"{row['plain_s']:.2f}",
            f"**{row['ratio']:.2f}** ({row['ratio_range'][0]:.2f} to {row['ratio_range'][1]:.2f})",
        ]
        for row in content["calibration"]
    ]
    header = [
        f"calibrating {IMAGES} images, {content['threads']} threads",
        "s",
        "forward + backward, s",
        "ratio",
    ]
    text = common.table(header, rows)
    header = ["vgg16, 33.6 M parameters", "score and select, s", "peak above the model, MiB"]
    rows = [
        [r["criterion"], f"{r['seconds']:.2f}", f"{r['mib']:.0f}"] for r in content["selection"]
    ]
    common.replace_section("speed", text + "\n\n" + common.table(header, rows))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=("resnet20", "resnet56", "vgg16"))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--show", action="store_true", help="the table, from the JSON")
    args = parser.parse_args()
    if not args.show:
        packs = common.data_packs()
        criteria = (FlexRel(0.5), FlexRel(0.5, blend="product"), Magnitude())
        content = {
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "selection": [selection(packs, criterion, args.runs) for criterion in criteria],
            "calibration": [calibration(packs, name, args.runs) for name in args.networks],
        }
        common.save("speed", content)
    show()


if __name__ == "__main__":
    main()
