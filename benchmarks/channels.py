"""Accuracy of networks with fewer channels: FlexRel against Torch-Pruning, nothing trained.

    python benchmarks/channels.py                          measure all (an hour on a core)
    python benchmarks/channels.py --networks resnet20 --draws 0
    python benchmarks/channels.py --show                   tables from the JSON alone

Needs torch-pruning. All networks have at most the target's multiply-adds, counted by one ruler, and
nothing is trained or repaired. Relevance is calibrated on 512 `train` images without labels; Taylor
gets the same images with labels. Every method may choose its form or settings by accuracy on 1,000
other `train` images; accuracy is reported on all of `test_a`, on which nothing is chosen.
"""

import argparse
import base64
import copy
import itertools
import math
import statistics
import time
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

import common
import torch_pruned
from flexrel.core import cost
from flexrel.core.batches import read_batches
from flexrel.criteria import ALLOCATIONS, FlexRel, Magnitude, Relevance, UnitRanking, scores_of
from flexrel.pruning.search import least_removal
from flexrel.relevance import calibrate
from flexrel.structure import analyse, apply

TARGETS = {"resnet20": 59.3 / 81.2, "resnet56": 1 / 2.12}  # multiply-adds over dense
OURS = "FlexRel"
CALIBRATE, CHOOSE, BATCH = 512, 1000, 250  # images
FINALISTS = 3  # of a role: best on the first batch of CHOOSE, and looked at on all of it
DRAWS = (0, 1, 2)  # of calibration images
DELTAS = {"sum": (0.1, 0.3, 0.5, 0.7, 0.9), "product": (1 / 3, 1 / 2, 2 / 3)}
PARTS = {"sum": ("sample", "positive"), "product": ("sample", "positive")}


# --- images, and the ruler ------------------------------------------------------------------


class Bench:
    """One network, with the images that all methods share."""

    def __init__(self, packs, name, device):
        self.name, self.device = name, device
        self.model = packs.network(name).to(device)
        self._normalise = lambda x: packs.normalise(name, x).to(device)
        self._images, self._labels = packs.cifar10("train")
        order = np.random.default_rng(0).permutation(len(self._labels))
        self._chosen, self._rest = order[:CHOOSE], order[CHOOSE:]
        self.choose = self._batches(self._images[self._chosen], self._labels[self._chosen])
        self.test = self._batches(*packs.cifar10("test_a"))
        self._positions = _positions(self.model, self.choose[0][0][:1])
        self.limit = TARGETS[name] * self.multiply_adds(self.model)

    def draw(self, seed):
        """Return the calibration batches of a draw, with labels."""
        picked = np.random.default_rng(seed).permutation(self._rest)[:CALIBRATE]
        return self._batches(self._images[picked], self._labels[picked], 64)

    def _batches(self, images, labels, size=BATCH):
        inputs = self._normalise(images).contiguous(memory_format=torch.channels_last)
        labels = torch.from_numpy(labels).to(self.device)
        return list(zip(inputs.split(size), labels.split(size), strict=True))

    def multiply_adds(self, network):
        """Count what the dense network's layers do in the pruned one, for one sample."""
        modules = dict(network.named_modules())
        return sum(modules[n].weight.numel() * times for n, times in self._positions.items())


def _positions(model, example):
    """Return how many output positions each layer has: multiply-adds of each of its weights."""
    found, handles = {}, []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):

            def note(_, __, out, name=name):
                found[name] = out[0, 0].numel() if out.ndim == 4 else 1

            handles.append(module.register_forward_hook(note))
    with torch.no_grad():
        model(example)
    for handle in handles:
        handle.remove()
    return found


def hits(network, batches):
    """Return for each image whether the network is right."""
    network = copy.deepcopy(network).to(memory_format=torch.channels_last).eval()
    with torch.inference_mode():
        right = [network(inputs).argmax(1) == labels for inputs, labels in batches]
    return torch.cat(right).cpu().numpy()


# --- FlexRel --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Form:
    """One way to use FlexRel."""

    role: str  # in the table
    criterion: object
    allocation: str
    groups: str  # "inner" or "all"

    @property
    def name(self):
        part = getattr(self.criterion, "part", "")
        words = (self.criterion.name, part, self.allocation, f"{self.groups} channels")
        return ", ".join(word for word in words if word)


def forms(groups):
    """Yield every form of FlexRel that is tried."""
    criteria = [("FlexRel magnitude", Magnitude())]
    criteria += [("FlexRel relevance", Relevance(part)) for part in PARTS["sum"]]
    for blend, deltas in DELTAS.items():
        pairs = itertools.product(deltas, PARTS[blend])
        criteria += [("FlexRel blend", FlexRel(delta, blend, part)) for delta, part in pairs]
    for (role, criterion), allocation, chosen in itertools.product(criteria, ALLOCATIONS, groups):
        yield Form(role, criterion, allocation, chosen)


def structures_of(bench):
    """Return the groups that forms choose among: all, and those inside a block alone.

    A space that joins a residual sum has more than one layer that makes it.
    """
    (example,) = read_batches([bench.choose[0][0][:2]], bench.model)
    whole = analyse(bench.model, example, "channel")
    made = {s.name: sum(part.role == "producer" for part in s.members) for s in whole.groups}
    inner = tuple(group for group in whole.groups if made[group.name] == 1)
    if len(inner) == len(whole.groups):
        return {"inner": whole}
    return {"inner": replace(whole, groups=inner), "all": whole}


def cut(bench, graph, scores, level):
    """Return the network without the channels that go first, at the level; None: can't be met."""
    removal = UnitRanking(graph, scores)
    limit = level * cost.macs(graph)
    count = least_removal(
        lambda k: cost.macs(graph, removal.plan(k).masks), limit, removal.removable
    )
    return None if count is None else apply(bench.model, removal.plan(count))


def flexrel_candidates(bench, structures, batches):
    """Yield role, name, whether the draw matters, and what makes the network, for every form."""
    tensors = {**dict(bench.model.named_parameters()), **dict(bench.model.named_buffers())}
    stats = calibrate(bench.model, [inputs for inputs, _ in batches])  # no labels
    for form in forms(structures):

        def make(form=form):
            graph = structures[form.groups]
            scores = scores_of(form.criterion, graph, tensors, stats)
            scores = ALLOCATIONS[form.allocation](scores)
            return cut(bench, graph, scores, TARGETS[bench.name])

        yield form.role, form.name, form.criterion.needs_relevance, make


# --- measuring ------------------------------------------------------------------------------


def measure(args):
    torch.backends.cudnn.allow_tf32 = False
    packs = common.data_packs()
    for name in args.networks:
        bench = Bench(packs, name, args.device)
        structures = structures_of(bench)
        known = {}  # what does not depend on the draw
        for draw in args.draws:
            began = time.monotonic()
            block = measure_draw(bench, structures, draw, known)
            common.keep(f"channels-{name}", block, "draw", torch=torch.__version__)
            print(f"{name}, draw {draw}: {time.monotonic() - began:.0f} s", flush=True)


def measure_draw(bench, structures, draw, known):
    """Try every form and setting on the choosing images; report each role's best on `test_a`."""
    batches = bench.draw(draw)
    candidates = itertools.chain(
        flexrel_candidates(bench, structures, batches),
        torch_pruned.candidates(bench, TARGETS[bench.name], batches),
    )
    tried = {}  # role -> rows
    for role, form, differs, make in candidates:
        if differs or (role, form) not in known:
            known[role, form] = _tried(bench, role, form, make)
        tried.setdefault(role, []).append(known[role, form])
    best = {role: _best(bench, rows) for role, rows in tried.items()}
    best = {role: row for role, row in best.items() if row is not None}
    ours = [row for role, row in best.items() if role.startswith(OURS)]
    best[OURS] = max(ours, key=lambda row: row["chosen at"])
    dense = hits(bench.model, bench.test)
    return {
        "draw": draw,
        "dense": {"macs": bench.multiply_adds(bench.model), **_result(dense)},
        "limit": bench.limit,
        "tried": [_written(row) for rows in tried.values() for row in rows],
        "test_a": [
            _written(row) | {"role": role} | _result(hits(row["network"], bench.test))
            for role, row in best.items()
        ],
    }


def _tried(bench, role, form, make):
    """Return what became of a form, with its network; why another library has none, if so."""
    row = {"role": role, "form": form}
    try:
        network = make()
        if network is None:
            return row | {"failure": "the target can't be met"}
        first = float(hits(network, bench.choose[:1]).mean())
    except (RuntimeError, ValueError, IndexError, KeyError, AttributeError) as error:
        if role.startswith(OURS):  # no result, but a mistake
            raise
        return row | {"failure": f"{type(error).__name__}: {str(error)[:120]}"}
    return row | {"first look": first, "macs": bench.multiply_adds(network), "network": network}


def _best(bench, rows):
    """Return the row that is best on all choosing images, of those best at first look."""
    ranked = sorted((r for r in rows if "network" in r), key=lambda row: -row["first look"])
    for row in ranked[:FINALISTS]:
        if "chosen at" not in row:
            row["chosen at"] = float(hits(row["network"], bench.choose).mean())
    return max(ranked[:FINALISTS], key=lambda row: row["chosen at"], default=None)


def _written(row):
    return {key: value for key, value in row.items() if key != "network"}


def _result(right):
    packed = base64.b64encode(np.packbits(right).tobytes()).decode()
    return {"samples": len(right), "accuracy": float(right.mean()), "hits": packed}


# --- tables ---------------------------------------------------------------------------------


def show():
    parts = []
    for name in TARGETS:
        if blocks := common.blocks(f"channels-{name}"):
            parts += _summary(name, blocks)
    common.replace_section("channels", "\n\n".join(parts))


def _summary(name, blocks):
    """Return the table of one network, and the margin under it."""
    dense = blocks[0]["dense"]
    roles = [row["role"] for row in blocks[0]["test_a"]]
    right = {role: np.stack([_hits_of(block, role) for block in blocks]) for role in roles}
    rows = []
    for role in sorted(roles, key=lambda role: -right[role].mean()):
        found = [_row(block, role) for block in blocks]
        mean, error = _estimate(right[role])
        each = ", ".join(f"{100 * row['accuracy']:.1f}" for row in found)
        macs = statistics.fmean(row["macs"] for row in found) / dense["macs"]
        form = statistics.mode(row["form"] for row in found)
        rows.append([role, f"{100 * mean:.1f} ± {100 * error:.1f}", each, f"{macs:.3f}", form])
    title = (
        f"**{name}** at {blocks[0]['limit'] / dense['macs']:.3f} of its multiply-adds: "
        f"{2 * blocks[0]['limit'] / 1e6:.1f} of {2 * dense['macs'] / 1e6:.1f} MFLOPs; dense "
        f"{100 * dense['accuracy']:.2f}, n = {dense['samples']:,}, {len(blocks)} draws"
    )
    header = ["method", "top-1, %", "each draw", "MACs over dense", "chosen most often"]
    other = max((r for r in roles if not r.startswith(OURS)), key=lambda role: right[role].mean())
    margin, error = _estimate(right[OURS].astype(float) - right[other])
    said = (
        f"{OURS} over {other}, the best on `test_a` itself: "
        f"{100 * margin:+.1f} ± {100 * error:.1f} points, paired over images and draws"
    )
    return [title, common.table(header, rows), said]


def _estimate(values):
    """Return the mean of `[draws, images]` and its standard error, of images and draws together."""
    draws, images = values.shape
    within = values.mean(0).var(ddof=1) / images
    between = values.mean(1).var(ddof=1) / draws if draws > 1 else 0.0
    return float(values.mean()), math.sqrt(within + between)


def _row(block, role):
    return next(row for row in block["test_a"] if row["role"] == role)


def _hits_of(block, role):
    row = _row(block, role)
    packed = np.frombuffer(base64.b64decode(row["hits"]), np.uint8)
    return np.unpackbits(packed, count=row["samples"]).astype(bool)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=tuple(TARGETS), choices=TARGETS)
    parser.add_argument("--draws", nargs="+", type=int, default=DRAWS, choices=DRAWS)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--show", action="store_true", help="the tables alone, from the JSON")
    args = parser.parse_args()
    if not args.show:
        measure(args)
    show()


if __name__ == "__main__":
    main()
