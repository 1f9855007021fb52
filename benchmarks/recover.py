"""Accuracy after a cut and its repair: what the score brings, and what the repair brings.

    python benchmarks/recover.py                     measure all (about two hours on two cores)
    python benchmarks/recover.py --only "resnet56 channels" --draws 0
    python benchmarks/recover.py --train             resnet56 also fine-tuned (half an hour more)
    python benchmarks/recover.py --only "resnet20 channels" --scores obs
                                                     one score; rows of others stay as they are
    python benchmarks/recover.py --show              tables from the JSON alone

Every network is cut to the same multiply-adds, or zeros, by each score, and repaired by the same
closed form on the same unlabelled images; `chosen` is what `prune` takes by itself: of the scores,
the one whose repaired network diverges least from the dense one on the 128 calibration images, or
the quarter, that nothing was fitted to.
CIFAR-10: calibrated on `train`, reported on `test_a`. ImageNet pack: even rows calibrate, odd rows
report. MiniLM: sentences of STS-B dev calibrate, rank correlation on its test pairs is reported.
Nothing is chosen on what is reported.
"""

import argparse
import copy
import resource
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from scipy.stats import spearmanr

import common
from flexrel import OBS, FlexRel, GroupSignals, Magnitude, Relevance
from flexrel.core import cost
from flexrel.core.batches import first_samples, fitted_and_judged
from flexrel.core.evaluate import Divergence
from flexrel.criteria import UnitRanking, measure_saliency, scores_of
from flexrel.pruning.bisection import least_removal
from flexrel.relevance import calibrate
from flexrel.repair import ClosedForm, FineTune
from flexrel.structure import analyse, named_tensors
from flexrel.structure.apply import apply

FEW = (0, 1, 2)  # airplane, automobile, bird
DRAWS = (0, 1, 2)  # of calibration images
EPOCHS = 14
SCORES = {  # as in the table
    "obs": "OBS",
    "flexrel:0.333333:product": "product",
    "flexrel:0.5": "blend",
    "magnitude": "magnitude",
    "relevance": "relevance",
    "taylor": "Taylor",
}


@dataclass(frozen=True)
class Case:
    """One network, one way to cut it, how far, and what was asked of it."""

    network: str
    granularity: str
    level: float  # of multiply-adds, or of weights, that stay
    goal: str
    few: bool = False
    calibrate: int = 1024
    batch: int = 128
    trained: str = ""  # what was asked of it after fine-tuning, if that is measured

    @property
    def name(self):
        unit = {"channel": "channels", "element": "weights"}[self.granularity]
        classes = ", 3 classes" if self.few else ""
        share = f"1/{1 / self.level:.3g}" if self.granularity == "channel" else f"{self.level:.0%}"
        return f"{self.network} {unit} {share}{classes}"


CASES = (
    Case("resnet56", "channel", 1 / 2.12, "90.0", trained="92.5"),
    Case("resnet20", "channel", 59.3 / 81.2, "88.0"),
    Case("resnet20", "channel", 1 / 3, "92.0", few=True),
    Case("resnet20", "channel", 1 / 4, "89.5", few=True),
    Case("vgg16", "channel", 1 / 6, "dense", few=True, calibrate=512),
    Case("vgg16", "channel", 1 / 3, "dense - 1", calibrate=512),
    Case("resnet20", "element", 0.2, "86"),
    Case("resnet20", "element", 0.1, "72"),
    Case("resnet56", "element", 0.2, "91"),
    Case("efficientnet_lite0", "channel", 1 / 1.5, "dense - 5", calibrate=500, batch=25),
    Case("mobilenetv2", "channel", 1 / 1.5, "dense - 5", calibrate=500, batch=25),
    Case("minilm", "channel", 1 / 1.5, "dense - 3", calibrate=512, batch=64),
)


@dataclass(frozen=True)
class Taylor:
    """Squared sum of gradient times weight over a unit (Molchanov et al. 2019), with labels."""

    gradients: dict
    name: str = "taylor"
    needs: ClassVar = frozenset()

    def scores(self, evidence: list[GroupSignals]):
        for group in evidence:
            if not group.group.members:
                name = f"{group.group.name}.weight"
                yield (group.tensors[name] * self.gradients[name]).square()
                continue
            total = torch.zeros(group.group.units)
            for part in group.group.members:
                if part.makes and part.tensor in self.gradients:
                    product = group.tensors[part.tensor] * self.gradients[part.tensor]
                    rows = product.movedim(part.axis, 0).flatten(1).sum(1)
                    total += rows[part.index].sum(1)
            yield total.square()


def criteria_of(case, gradients):
    """Return the scores compared."""
    own = [OBS()] if case.granularity == "channel" else [FlexRel(1 / 3, "product")]
    others = [] if gradients is None else [Taylor(gradients)]
    return [*own, FlexRel(), Magnitude(), Relevance(), *others]


class Data:
    """Images of one case: to calibrate, and to report on."""

    def __init__(self, packs, case, draw):
        if case.network == "minilm":
            self.calibrate, self.test = _sentences(packs, case, draw)
            return
        if case.network in ("efficientnet_lite0", "mobilenetv2"):
            images, labels = packs.imagenet1k()
            even = np.random.default_rng(draw).permutation(len(labels) // 2)[: case.calibrate] * 2
            known, (seen, right) = (images[even], labels[even]), (images[1::2], labels[1::2])
        else:
            images, labels = self._wanted(case, *packs.cifar10("train"))
            picked = np.random.default_rng(draw).permutation(len(labels))[: case.calibrate]
            known = images[picked], labels[picked]
            seen, right = self._wanted(case, *packs.cifar10("test_a"))
        self.calibrate = self._batches(packs, case, *known)
        self.test = self._batches(packs, case, seen, right)

    def _wanted(self, case, images, labels):
        keep = np.isin(labels, FEW) if case.few else np.ones(len(labels), bool)
        return images[keep], labels[keep]

    def _batches(self, packs, case, images, labels):
        inputs = packs.normalise(case.network, images).contiguous(memory_format=torch.channels_last)
        pairs = zip(
            inputs.split(case.batch), torch.from_numpy(labels).split(case.batch), strict=True
        )
        return list(pairs)


def _sentences(packs, case, draw):
    """Return sentences of STS-B dev, and pairs of its test set with how alike they are."""
    pack = np.load(Path(packs.__file__).parent / "minilm" / "data.npz")

    def ids(name):
        return torch.from_numpy(pack[name].astype(np.int64))

    dev = torch.cat([ids("stsb_dev_a"), ids("stsb_dev_b")])
    picked = np.random.default_rng(draw).permutation(len(dev))[: case.calibrate]
    calibrate = [(x, None) for x in dev[picked].split(case.batch)]
    alike = torch.from_numpy(pack["stsb_test_y"].astype(np.float64))
    pairs = zip(ids("stsb_test_a").split(256), ids("stsb_test_b").split(256), strict=True)
    return calibrate, [(pair, y) for pair, y in zip(pairs, alike.split(256), strict=True)]


def spearman(network, batches):
    """Return 100 times the rank correlation of cosine similarities with what people said."""
    with torch.inference_mode():
        said = torch.cat([(network(a) * network(b)).sum(1) for (a, b), _ in batches])
    return 100 * float(spearmanr(said.numpy(), torch.cat([y for _, y in batches]).numpy())[0])


def accuracy(network, batches):
    if isinstance(batches[0][0], tuple):
        return spearman(network, batches)
    network = copy.deepcopy(network).to(memory_format=torch.channels_last).eval()
    with torch.inference_mode():
        right = [(network(x).argmax(1) == y).float() for x, y in batches]
    return 100 * float(torch.cat(right).mean())


def gradients_of(model, batches):
    """Return the gradients of the loss on the labelled images, by parameter: Taylor's need."""
    model = copy.deepcopy(model)
    if batches[0].labels is None:
        return None
    for batch in batches:
        scores = model(*batch.args)
        torch.nn.functional.cross_entropy(scores, batch.labels, reduction="sum").backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def measure(case, draw, wanted, *, train):
    """Return a block of results: one row a score, of those wanted."""
    packs = common.data_packs()
    model = packs.minilm() if case.network == "minilm" else packs.network(case.network)
    model = model.to(memory_format=torch.channels_last)
    data = Data(packs, case, draw)
    images, judged = fitted_and_judged(data.calibrate, model)
    graph = analyse(model, first_samples(images[0], 2), case.granularity)
    tensors = named_tensors(model)
    divergence = Divergence(model, judged)
    began = time.monotonic()
    stats = calibrate(model, images)
    took_relevance = time.monotonic() - began
    gradients = gradients_of(model, images) if not wanted or "taylor" in wanted else None
    criteria = criteria_of(case, gradients)
    criteria = [one for one in criteria if not wanted or one.name in wanted]
    began = time.monotonic()
    damages = None
    if any(isinstance(criterion, OBS) for criterion in criteria):
        damages, unknown = measure_saliency(model, graph, images)
        known = [group for group in graph.groups if group.name in damages]
        graph = graph.only(known, unknown)
    took_damage = time.monotonic() - began
    rows = []
    for criterion in criteria:
        began = time.monotonic()
        scores = scores_of(criterion, graph, tensors, stats, damages)
        plan = plan_at(graph, scores, case)
        pruned = apply(model, plan)
        cut = time.monotonic() - began
        cut += took_damage if isinstance(criterion, OBS) else 0
        cut += took_relevance if criterion.needs else 0
        began = time.monotonic()
        repaired = ClosedForm()(pruned, model, plan, images).model
        repair = time.monotonic() - began
        row = {
            "score": criterion.name,
            "none": accuracy(pruned, data.test),
            "repaired": accuracy(repaired, data.test),
            "divergence": divergence(repaired),
            "cut_s": cut,
            "repair_s": repair,
            "macs": cost.macs(graph, plan.masks) / cost.macs(graph),
            "parameters": cost.parameters(graph, plan.masks) / cost.parameters(graph),
        }
        shown = {key: v if isinstance(v, str) else round(v, 3) for key, v in row.items()}
        print(case.name, draw, shown, flush=True)
        rows.append(row)
        if train and case.trained and criterion.name == "obs":
            rows[-1] |= trained(packs, case, repaired, model, plan, data)
    return {
        "case": case.name,
        "goal": case.goal,
        "draw": draw,
        "dense": accuracy(model, data.test),
        "samples": sum(len(y) for _, y in data.test),
        "rows": rows,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


def plan_at(graph, scores, case):
    removal = UnitRanking(graph, scores)
    if case.granularity == "element":
        return removal.plan(int((1 - case.level) * graph.units))
    limit = case.level * cost.macs(graph)
    count = least_removal(
        lambda k: cost.macs(graph, removal.plan(k).masks), limit, removal.removable
    )
    if count is None:
        raise SystemExit(f"{case.name}: can't be cut so far")
    return removal.plan(count)


def flipped(inputs, generator):
    """Shift by up to 4 pixels and mirror half of the images, as when the networks were trained."""
    padded = torch.nn.functional.pad(inputs, (4, 4, 4, 4))
    down, right = (int(torch.randint(0, 9, (), generator=generator)) for _ in range(2))
    moved = padded[:, :, down : down + inputs.shape[2], right : right + inputs.shape[3]]
    mirror = torch.rand(len(inputs), generator=generator) < 0.5
    return torch.where(mirror[:, None, None, None], moved.flip(3), moved)


def trained(packs, case, repaired, model, plan, data):
    """Return the accuracy after fine-tuning on the 10,000 labelled `train` images."""
    images, labels = packs.cifar10("train")
    inputs = packs.normalise(case.network, images).contiguous(memory_format=torch.channels_last)
    batches = list(zip(inputs.split(128), torch.from_numpy(labels).split(128), strict=True))
    began = time.monotonic()
    tune = FineTune(EPOCHS, batches, augment=flipped, distillation=1.0, temperature=4.0)
    found = tune(repaired, model, plan, batches)
    return {
        "trained": accuracy(found.model, data.test),
        "train_s": time.monotonic() - began,
        "notes": list(found.notes),
    }


def table(blocks):
    """Return the accuracy of each score, before and after the repair: mean and error over draws."""
    rows = []
    for name in dict.fromkeys(block["case"] for block in blocks):
        mine = [block for block in blocks if block["case"] == name]
        best = [min(b["rows"], key=lambda row: row["divergence"])["repaired"] for b in mine]
        dense = statistics.mean(b["dense"] for b in mine)
        scores = {}
        for block in mine:
            for row in block["rows"]:
                scores.setdefault(row["score"], []).append(row)
        cells = []
        for score in SCORES:
            found = scores.get(score)
            if found is None:
                cells.append("")
                continue
            none = statistics.mean(row["none"] for row in found)
            cells.append(f"{none:.1f} → {spread([row['repaired'] for row in found])}")
        own = scores.get("obs") or scores["flexrel:0.333333:product"]
        seconds = min(row["cut_s"] + row["repair_s"] for row in own)
        row = [name, mine[0]["goal"], f"{dense:.1f}", f"**{spread(best)}**", *cells]
        rows.append([*row, f"{seconds:.0f} s"])
    table = common.table(["cut", "goal", "dense", "chosen", *SCORES.values(), "time"], rows)
    return "\n".join([table, *trainings(blocks)])


def trainings(blocks):
    """Return what fine-tuning brought, a paragraph a network."""
    for case in CASES:
        mine = [b for b in blocks if b["case"] == case.name]
        found = [row for b in mine for row in b["rows"] if "trained" in row]
        if found:
            before, after = (spread([row[key] for row in found]) for key in ("repaired", "trained"))
            seconds = statistics.mean(row["train_s"] for row in found)
            yield (
                f"\n{case.name}, cut by OBS, then {EPOCHS} epochs on the 10,000 `train` images: "
                f"{before} → {after} (goal {case.trained}), {seconds / 60:.0f} minutes."
            )


def spread(values):
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    return f"{statistics.mean(values):.1f}" + (f" ± {error:.1f}" if error is not None else "")


def _taken(blocks, name, draw):
    """Return the blocks without that of a case and draw, and its rows."""
    mine = [b for b in blocks if (b["case"], b["draw"]) == (name, draw)]
    return [b for b in blocks if b not in mine], [row for b in mine for row in b["rows"]]


def _merged(old, new):
    """Return the rows in the order of the table, new ones in the place of old ones."""
    rows = {row["score"]: row for row in (*old, *new)}
    return sorted(rows.values(), key=lambda row: list(SCORES).index(row["score"]))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", default="", help="part of a case's name")
    parser.add_argument("--draws", type=int, nargs="+", default=DRAWS)
    parser.add_argument("--scores", nargs="+", help="their names; the others' rows stay")
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--show", action="store_true")
    args = parser.parse_args()
    file = "recover"
    known = common.blocks(file)
    for case in () if args.show else CASES:
        for draw in args.draws if args.only in case.name else ():
            block = measure(case, draw, args.scores, train=args.train)
            known, old = _taken(known, case.name, draw)
            if args.scores:
                block["rows"] = _merged(old, block["rows"])
            known.append(block)
            order = [c.name for c in CASES]
            known.sort(key=lambda b: (order.index(b["case"]), b["draw"]))
            common.save(file, {"torch": torch.__version__, "blocks": known})
    common.replace_section("recover", table(known))


if __name__ == "__main__":
    main()
