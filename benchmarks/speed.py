"""What scoring and selecting cost, and what repairing does, in seconds and as a peak of memory.

    python benchmarks/speed.py          measure, then write the table into README.md

What calibrating costs is in relevance.py.
"""

import argparse
import statistics

import torch

import common
from flexrel.core import cost
from flexrel.core.batches import first_samples, read_batches
from flexrel.criteria import FlexRel, Magnitude, UnitRanking, scores_of
from flexrel.pruning.search import least_removal
from flexrel.relevance import calibrate
from flexrel.repair import ClosedForm
from flexrel.structure import analyse, apply

BATCH = 64
REPAIRED = 512  # images
LEFT = 1 / 3  # of the multiply-adds
MIB = 2**20


def selection(packs, criterion, runs):
    model = packs.network("vgg16")
    x, _ = packs.cifar10("train")
    batches = list(packs.normalise("vgg16", x[:BATCH]).split(BATCH))
    found = calibrate(model, batches)
    graph = analyse(model, first_samples(next(read_batches(batches, model)), 2), "element")
    tensors = dict(model.named_parameters())

    def work():
        scores = scores_of(criterion, graph, tensors, found)
        UnitRanking(graph, scores).plan(int(0.8 * graph.units))

    with common.Peak() as peak:
        work()
    seconds = [common.timed(work) for _ in range(runs)]
    return {
        "criterion": criterion.name,
        "seconds": statistics.median(seconds),
        "mib": peak.bytes / MIB,
    }


def repair(packs):
    """Magnitude's cut, which leaves the wide layers wide: the most that there is to solve."""
    model = packs.network("vgg16")
    x, _ = packs.cifar10("train")
    batches = list(packs.normalise("vgg16", x[:REPAIRED]).split(BATCH))
    graph = analyse(model, first_samples(next(read_batches(batches, model)), 2), "channel")
    scores = scores_of(Magnitude(), graph, dict(model.named_parameters()), None)
    removal = UnitRanking(graph, scores)
    limit = LEFT * cost.macs(graph)
    count = least_removal(
        lambda k: cost.macs(graph, removal.plan(k).masks), limit, removal.removable
    )
    plan = removal.plan(count)
    pruned = apply(model, plan)
    with common.Peak() as peak:
        seconds = common.timed(lambda: ClosedForm()(pruned, model, plan, batches))
    return {"seconds": seconds, "mib": peak.bytes / MIB}


def show():
    content = common.load("speed")
    header = ["vgg16, 33.6 M parameters", "score and select, s", "peak above the model, MiB"]
    rows = [
        [r["criterion"], f"{r['seconds']:.2f}", f"{r['mib']:.0f}"] for r in content["selection"]
    ]
    repaired = content["repair"]
    took, mib = repaired["seconds"], repaired["mib"]
    said = (
        "\nClosed-form repair of vgg16, cut by magnitude to a third of its multiply-adds, on "
        f"{REPAIRED} images, {content['threads']} threads: {took:.0f} s, {mib:.0f} MiB above the "
        "two networks."
    )
    common.replace_section("speed", "\n".join([common.table(header, rows), said]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
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
            "repair": repair(packs),
        }
        common.save("speed", content)
    show()


if __name__ == "__main__":
    main()
