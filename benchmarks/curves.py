"""Accuracy against size for magnitude, relevance and FlexRel on real networks, nothing trained.

    python benchmarks/curves.py                    measure all (an hour or two on 2 cores)
    python benchmarks/curves.py --networks resnet20 --draws 1
    python benchmarks/curves.py --show             tables and figure from the JSON alone

Three disjoint sets: relevance is calibrated on 512 `train` images, without labels; the form of
FlexRel (delta, blend, part of relevance) is chosen on 400 other `train` images, for every
network, deployment, granularity and level; accuracy is reported on `test_a`, on which nothing
is chosen. Channels are compared at equal multiply-adds, elements at equal bytes of the packed
file. Two deployments: all ten classes, and three of them (airplane, automobile, bird).
"""

import argparse
import itertools
import math
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

import common
from flexrel import cost
from flexrel.allocate import Removal
from flexrel.apply import apply
from flexrel.batches import first_samples, read_batches
from flexrel.calibrate import calibrate
from flexrel.criteria import FlexRel, Magnitude, Relevance, scores_of
from flexrel.evaluate import Accuracy, Divergence, standard_error
from flexrel.pack import encode
from flexrel.search import least_removal
from flexrel.structure import analyse

NETWORKS = ("resnet20", "resnet56", "vgg16")
DEPLOYMENTS = {"10 classes": tuple(range(10)), "3 classes": (0, 1, 2)}
LEVELS = {
    "channel": (0.9, 0.8, 0.65, 0.5),  # multiply-adds over dense
    "element": (0.5, 0.35, 0.25, 0.15),  # bytes over dense
}
DELTAS = (0.1, 0.5, 0.9)
CALIBRATE, CHOOSE, BATCH = 512, 400, 250
DRAWS = {"resnet20": 2, "resnet56": 1, "vgg16": 1}  # of calibration images
TEST = {"resnet20": 2000, "resnet56": 1500, "vgg16": 1000}  # first images of test_a
BYTES_TOLERANCE = 0.005
ROLES = ("magnitude", "relevance", "FlexRel", "auto")  # columns of the table


def forms():
    """Return every form of FlexRel that is tried, by name; the paper's plain sum among them."""
    made = {f"sum {delta:g}": FlexRel(delta) for delta in DELTAS}
    made |= {f"sum {delta:g}, signed": FlexRel(delta, part="sum") for delta in (0.5,)}
    products = (1 / 3, 0.5, 2 / 3)
    return made | {f"product {d:.2g}": FlexRel(d, blend="product") for d in products}


def singles():
    """Return the single signals, by name."""
    return {"magnitude": Magnitude(), "relevance": Relevance()}


class Bench:
    """One network in one deployment, with one draw of calibration images."""

    def __init__(self, packs, name, deployment, draw, device, *, choose=CHOOSE, test=None):
        self.name, self.deployment, self.draw, self.device = name, deployment, draw, device
        self.model = packs.network(name).to(device)
        classes = DEPLOYMENTS[deployment]
        x, y = packs.cifar10("train")
        mine = np.flatnonzero(np.isin(y, classes))
        picked = np.random.default_rng(draw).permutation(mine)[: CALIBRATE + choose]
        inputs = packs.normalise(name, x[picked]).to(device)
        labels = torch.from_numpy(y[picked]).to(device)
        self.calibration = list(inputs[:CALIBRATE].split(64))
        self.choose = self._batches(inputs[CALIBRATE:], labels[CALIBRATE:])
        x, y = packs.cifar10("test_a")
        mine = np.flatnonzero(np.isin(y[:test], classes))
        inputs = packs.normalise(name, x[mine]).to(device)
        self.test = self._batches(inputs, torch.from_numpy(y[mine]).to(device))
        self.statistics = calibrate(self.model, self.calibration)
        self.divergence = Divergence(self.model, self.calibration[:4])  # 256 images
        self.tensors = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        self.dense_bytes = len(encode(self.model))

    def _batches(self, inputs, labels):
        return Accuracy(list(zip(inputs.split(BATCH), labels.split(BATCH), strict=True)))

    def removal(self, structure, criterion):
        return Removal(structure, scores_of(criterion, structure, self.tensors, self.statistics))

    def structure(self, granularity):
        example = first_samples(next(read_batches(self.calibration[:1], self.model)), 2)
        return analyse(self.model, example, granularity)

    def plans(self, structure, removal, levels, guesses):
        """Return the plan at each level, made in threads: packing leaves the interpreter free."""

        def at(level):
            return self.plan_at(structure, removal, level, guesses.get(level))

        with ThreadPoolExecutor(max(1, (os.cpu_count() or 2) // 2)) as pool:
            return list(pool.map(at, levels))

    def plan_at(self, structure, removal, level, guess=None):
        """Return the plan that costs at most `level` of the dense network, and removes least.

        Bytes are met to within BYTES_TOLERANCE; `guess` is a number of elements to start from.
        """
        if structure.granularity == "channel":
            limit = level * cost.macs(structure)
            count = least_removal(
                lambda k: cost.macs(structure, removal.plan(k)), limit, removal.removable
            )
        else:
            count = self._count_at(removal, level * self.dense_bytes, guess)
        return None if count is None else removal.plan(count)

    def _count_at(self, removal, limit, guess):
        """Return how many elements to remove for a file of at most `limit` bytes."""

        def size(count):
            return len(encode(apply(self.model, removal.plan(count))))

        if guess is None:
            return least_removal(size, limit, removal.removable, BYTES_TOLERANCE)
        for _ in range(8):  # bytes are about in proportion to what is kept
            found = size(guess)
            if limit * (1 - BYTES_TOLERANCE) <= found <= limit:
                return guess
            kept = (removal.removable - guess) * limit * (1 - BYTES_TOLERANCE / 2) / found
            guess = min(removal.removable - round(kept), removal.removable)
        return least_removal(size, limit, removal.removable, BYTES_TOLERANCE)


def counts_at(bench, structure):
    """Return level -> how many elements magnitude removes to meet the level's bytes."""
    removal = bench.removal(structure, Magnitude())
    levels = LEVELS[structure.granularity]
    plans = bench.plans(structure, removal, levels, {})
    return {level: plan.removed for level, plan in zip(levels, plans, strict=True) if plan}


def choose_forms(bench, granularity, structure, counts):
    """Return rows of accuracy on the choosing images, for every form at every level.

    Elements are compared at the sparsity at which magnitude meets the level's bytes: packing
    each form many times would cost hours and the bytes differ by a few percent.
    """
    rows = []
    for name, criterion in {**singles(), **forms()}.items():
        removal = bench.removal(structure, criterion)
        for level in LEVELS[granularity]:
            if granularity == "channel":
                plan = bench.plan_at(structure, removal, level)
            else:
                plan = removal.plan(counts[level])
            if plan is None:
                continue
            network = apply(bench.model, plan)
            row = {"form": name, "level": level, "accuracy": bench.choose(network)}
            rows.append(row | {"divergence": min(bench.divergence(network), 1e9)})
    return rows


def best_form(rows, level, measure, names):
    """Return the form with the best accuracy or divergence at the level; the first of equals."""
    at = [row for row in rows if row["level"] == level and row["form"] in names]
    sign = 1 if measure == "divergence" else -1
    return min(at, key=lambda row: sign * row[measure])["form"] if at else None


def report(bench, granularity, structure, chosen_rows, counts):
    """Return rows of accuracy on `test_a`: single signals, the plain deltas, the chosen forms."""
    every = {**singles(), **forms()}
    fixed = ["magnitude", "relevance", *(f"sum {d:g}" for d in DELTAS)]
    blends = set(forms())
    wanted = {}  # form -> level -> what it stands for there
    for level in LEVELS[granularity]:
        picks = {
            "flexrel": best_form(chosen_rows, level, "accuracy", blends),
            "auto": best_form(chosen_rows, level, "divergence", set(every)),
        }
        for name in fixed:
            wanted.setdefault(name, {}).setdefault(level, []).append(name)
        for role, name in picks.items():
            if name is not None:
                wanted.setdefault(name, {}).setdefault(level, []).append(role)
    rows = []
    for name, levels in wanted.items():
        removal = bench.removal(structure, every[name])
        plans = bench.plans(structure, removal, levels, counts)
        for (level, roles), plan in zip(levels.items(), plans, strict=True):
            if plan is None:
                continue
            network = apply(bench.model, plan)
            accuracy = bench.test(network)
            common_part = {
                "form": name,
                "level": level,
                "accuracy": accuracy,
                "removed": plan.removed / structure.units,
                "macs": cost.macs(structure, plan),
                "bytes": len(encode(network)),
            }
            rows += [{"role": role, **common_part} for role in dict.fromkeys(roles)]
    return rows


def measure(args):
    torch.backends.cudnn.allow_tf32 = False
    packs = common.data_packs()
    blocks = itertools.product(args.networks, args.deployments, args.granularities)
    for name, deployment, granularity in blocks:
        for draw in range(args.draws or DRAWS[name]):
            measure_block(packs, name, deployment, granularity, draw, args)


def measure_block(packs, name, deployment, granularity, draw, args):
    """Measure one network in one deployment, and put it in place of its last measurement."""
    began = time.monotonic()
    bench = Bench(packs, name, deployment, draw, args.device, test=args.test.get(name))
    structure = bench.structure(granularity)
    counts = counts_at(bench, structure)
    chosen = choose_forms(bench, granularity, structure, counts)
    block = {
        "network": name,
        "deployment": deployment,
        "granularity": granularity,
        "draw": draw,
        "samples": bench.test.samples,
        "dense": {
            "accuracy": bench.test(bench.model),
            "macs": cost.macs(structure),
            "bytes": bench.dense_bytes,
            "parameters": cost.parameters(structure),
        },
        "choose": chosen,
        "test_a": report(bench, granularity, structure, chosen, counts),
    }
    key = ("deployment", "granularity", "draw")
    file = f"curves-{name}"
    known = common.load(file)["blocks"] if (common.RESULTS / f"{file}.json").is_file() else []
    rest = [old for old in known if any(old[k] != block[k] for k in key)]
    common.save(file, {"torch": torch.__version__, "blocks": [*rest, block]})
    seconds = time.monotonic() - began
    print(f"{name}, {deployment}, {granularity}, draw {draw}: {seconds:.0f} s", flush=True)


def show():
    measured = [name for name in NETWORKS if (common.RESULTS / f"curves-{name}.json").is_file()]
    blocks = [block for name in measured for block in common.load(f"curves-{name}")["blocks"]]
    text = []
    for granularity, unit in (("channel", "MACs"), ("element", "bytes")):
        header = ["network, in use", unit, *ROLES, "best form"]
        rows, gains = [], []
        for (name, deployment), group in _grouped(blocks, granularity):
            dense, samples = group[0]["dense"]["accuracy"], group[0]["samples"]
            rows.append([f"**{name}, {deployment}** (n = {samples:,})", "1"])
            rows[-1] += [_points(dense, _error([dense], samples)), *[""] * len(ROLES)]
            for level in LEVELS[granularity]:
                cells = {role: _at(group, role, level) for role in ROLES}
                if not all(cells.values()):
                    continue
                means = {role: statistics.fmean(found) for role, (found, _) in cells.items()}
                errors = {role: _error(found, samples) for role, (found, _) in cells.items()}
                best = max(means.values())
                shown = [_points(means[r], errors[r], bold=means[r] == best) for r in ROLES]
                rows.append(["", f"{level:g}", *shown, statistics.mode(cells["FlexRel"][1])])
                gains.append((deployment, means, errors))
        title = f"**{granularity.capitalize()}s, at equal {unit}**"
        text += [title, common.table(header, rows)]
        summaries = [
            f"- {granularity}s, {deployment}, {role} over the better single signal: "
            + _summary([(m, e) for where, m, e in gains if where == deployment], role)
            for deployment in DEPLOYMENTS
            for role in ("FlexRel", "auto")
        ]
        text += ["\n".join(summaries), _deltas(blocks, granularity)]
    common.replace_section("curves", "\n\n".join(text))
    figure(blocks)


def _at(group, role, level):
    """Return the accuracies of a role at a level, one a draw, and the forms they are of."""
    key = {"FlexRel": "flexrel"}.get(role, role)
    rows = [r for b in group for r in b["test_a"] if (r["role"], r["level"]) == (key, level)]
    return ([row["accuracy"] for row in rows], [row["form"] for row in rows]) if rows else ()


def _summary(rows, role):
    """Say in how many rows the role is above and below the better single signal, by how much."""
    gains, above, below = [], 0, 0
    for means, errors in rows:
        other = max(("magnitude", "relevance"), key=means.get)
        gain = means[role] - means[other]
        error = math.hypot(errors[role], errors[other])
        gains.append(gain)
        above += gain > error
        below += gain < -error
    return (
        f"{100 * statistics.fmean(gains):+.1f} points on average (from {100 * min(gains):+.1f} to "
        f"{100 * max(gains):+.1f}); above by more than a standard error in {above} of {len(rows)} "
        f"rows, below in {below}"
    )


def _grouped(blocks, granularity):
    own = [block for block in blocks if block["granularity"] == granularity]
    keys = dict.fromkeys((block["network"], block["deployment"]) for block in own)
    return [(key, [b for b in own if (b["network"], b["deployment"]) == key]) for key in keys]


def _deltas(blocks, granularity):
    """Return the table of the paper's sum at each delta: the mean over levels, on `test_a`."""
    roles = ["magnitude", *(f"sum {delta:g}" for delta in DELTAS), "relevance"]
    rows = []
    for place, group in _grouped(blocks, granularity):
        means = [
            statistics.fmean(r["accuracy"] for b in group for r in b["test_a"] if r["role"] == role)
            for role in roles
        ]
        rows.append([", ".join(place), *(_bold(100 * m, m == max(means)) for m in means)])
    header = [f"{granularity}s, mean of the levels", "δ = 0", *(f"{d:g}" for d in DELTAS), "1"]
    return common.table(header, rows)


def _bold(value, best):
    return f"**{value:.1f}**" if best else f"{value:.1f}"


def _error(accuracies, samples):
    """Return the standard error of the mean: of the images and of the draws together."""
    draws = len(accuracies)
    between = statistics.variance(accuracies) / draws if draws > 1 else 0.0
    return math.hypot(standard_error(statistics.fmean(accuracies), samples), math.sqrt(between))


def _points(accuracy, error, *, bold=False):
    text = f"{100 * accuracy:.1f} ± {100 * error:.1f}"
    return f"**{text}**" if bold else text


def figure(blocks):
    import matplotlib as mpl  # noqa: PLC0415 - only drawing needs it

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    columns = list(itertools.product(("channel", "element"), DEPLOYMENTS))
    networks = list(dict.fromkeys(block["network"] for block in blocks))
    shape = (len(networks), len(columns))
    fig, axes = plt.subplots(*shape, figsize=(3.3 * shape[1], 2.5 * shape[0]), squeeze=False)
    colors = {"magnitude": "#8a6d3b", "relevance": "#b4446c", "flexrel": "#1667c9"}
    for (i, network), (j, (granularity, deployment)) in itertools.product(
        enumerate(networks), enumerate(columns)
    ):
        ax = axes[i][j]
        for key, group in _grouped(blocks, granularity):
            if key != (network, deployment):
                continue
            ax.axhline(100 * group[0]["dense"]["accuracy"], color="#999999", lw=0.8, ls=":")
            for role, color in colors.items():
                points = {}
                for row in (r for b in group for r in b["test_a"] if r["role"] == role):
                    points.setdefault(row["level"], []).append(100 * row["accuracy"])
                levels = sorted(points)
                means = [statistics.fmean(points[level]) for level in levels]
                spread = [statistics.pstdev(points[level]) for level in levels]
                ax.errorbar(
                    levels, means, spread, color=color, marker="o", ms=3, lw=1.4, label=role
                )
        ax.set_title(f"{network}, {deployment}", fontsize=9)
        ax.set_xlabel("MACs of dense" if granularity == "channel" else "bytes of dense", fontsize=8)
        ax.set_ylim(0, 100)
        ax.tick_params(labelsize=7)
        ax.invert_xaxis()
    axes[0][0].set_ylabel("top-1 on test_a, %", fontsize=8)
    axes[0][0].legend(fontsize=7, loc="lower left")
    fig.tight_layout()
    fig.savefig(common.RESULTS / "curves.png", dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=NETWORKS, choices=NETWORKS)
    parser.add_argument("--deployments", nargs="+", default=tuple(DEPLOYMENTS), choices=DEPLOYMENTS)
    parser.add_argument("--granularities", nargs="+", default=tuple(LEVELS), choices=LEVELS)
    parser.add_argument("--draws", type=int, help="of calibration images; by default as in DRAWS")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--show", action="store_true", help="tables and figure, from the JSON")
    parser.add_argument("--all", action="store_true", help="report on all 5,000 images of test_a")
    args = parser.parse_args()
    args.test = {} if args.all else TEST
    if not args.show:
        measure(args)
    show()


if __name__ == "__main__":
    main()
