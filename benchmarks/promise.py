"""How often the promise of a drop holds: networks pruned to a target, many times over.

    python benchmarks/promise.py                      measure all (over an hour)
    python benchmarks/promise.py --networks mixture
    python benchmarks/promise.py --quick              two seeds of one network; writes no page
    python benchmarks/promise.py --show               the page, from the JSON
    python benchmarks/promise.py --simulate           a line for each target and number of samples

A network is trained anew for each seed and pruned to lose at most 0.5, 1 or 2 points, on 10,000
evaluation samples drawn for that seed, of which `prune` sets half aside. What it really loses is
measured on 50,000 others from the same source: the eight-pixel digits of scikit-learn that no
network was trained on, moved and made noisy at random, or a mixture of normal distributions.

With --simulate no network is pruned. One at a level loses `drop` more samples than it wins, and as
many again as are won and lost without effect; levels are nested, so that a search is by bisection,
as in `prune(assured=True)`.
"""

import math
import time

import numpy as np
import torch
from scipy.stats import beta
from torch import nn
from torch.nn import functional

import combinations
import common
from flexrel import AccuracyDrop, PruneOptions, prune
from flexrel.cli import demo
from flexrel.core.paired import drop_bound
from flexrel.pruning.promise import CONFIDENCE, MARGIN

SEEDS, DROPS = range(20), (0.005, 0.01, 0.02)
EVALUATED, TRUE, CALIBRATED, TRAINED = 10_000, 50_000, 256, 4000  # samples
BATCH, STEP = 500, 64  # samples that are judged, and trained on, together
NOISE = 0.15  # standard deviation, of pixels in [0, 1]
CLASSES, FEATURES, SPREAD = 8, 20, 0.75  # of the mixture: standard deviation of its means
WAYS = {  # network -> whether a margin is kept
    "mixture": (False, True),
    "mlp": (False, True),
    "transformer": (False,),
    "digits": (False,),
}

RUNS, LEVELS = 60, 20  # of the simulation
WITHOUT_EFFECT = 0.006  # share of the samples that answers change of without a drop
ASKED = ((0.01, 5000), (0.005, 5000), (0.02, 5000), (0.01, 1500))  # drop, samples of each half


# --- networks pruned ------------------------------------------------------------------------


class Mixture:
    """Samples of normal distributions, one a class."""

    def __init__(self, seed):
        draw = torch.Generator().manual_seed(seed)
        self.means = SPREAD * torch.randn(CLASSES, FEATURES, generator=draw)

    def __call__(self, count, draw, *, train):  # noqa: ARG002 - there is one source of them
        labels = torch.randint(CLASSES, (count,), generator=draw)
        return self.means[labels] + torch.randn(count, FEATURES, generator=draw), labels

    @staticmethod
    def network():
        layers = nn.Linear(FEATURES, 96), nn.ReLU(), nn.Linear(96, 48), nn.ReLU()
        return nn.Sequential(*layers, nn.Linear(48, CLASSES))


class Digits:
    """Digits that are moved by up to a pixel, with noise."""

    def __init__(self, name):
        self.network, given = combinations.NETWORKS[name], demo.digits()
        x, y = (torch.cat(side) for side in zip(*given.evaluation, strict=True))
        self.known, self.others = (given.train_x, given.train_y), (x, y)

    def __call__(self, count, draw, *, train):
        images, labels = self.known if train else self.others
        rows = torch.randint(len(labels), (count,), generator=draw)
        moved = functional.pad(images[rows], (1, 1, 1, 1))
        place = torch.randint(3, (2, count, 1), generator=draw)
        down, right = place + torch.arange(8)
        at = torch.arange(count)[:, None, None]
        moved = moved[at, 0, down[:, :, None], right[:, None, :]].unsqueeze(1)
        return moved + NOISE * torch.randn(moved.shape, generator=draw), labels[rows]


class Case:
    """A network of one seed, trained, with the samples to prune it by and others to judge it by."""

    def __init__(self, network, seed):
        source = Mixture(seed) if network == "mixture" else Digits(network)
        draw = torch.Generator().manual_seed(seed)
        self.network, self.seed, self.model = network, seed, trained(source, draw, seed)
        samples = (side.split(BATCH) for side in source(EVALUATED, draw, train=False))
        self.evaluation = list(zip(*samples, strict=True))
        inputs, _ = source(CALIBRATED, draw, train=True)
        self.calibration = list(inputs.split(64))
        self.others = source(TRUE, draw, train=False)
        self.before = right(self.model, *self.others)

    def block(self, drop, *, assured):
        """Return what is promised of the network pruned to a target, and what it really loses."""
        began = time.monotonic()
        result = prune(
            self.model,
            calibration=self.calibration,
            evaluate=self.evaluation,
            target=AccuracyDrop(drop),
            seed=self.seed,
            options=PruneOptions(effort="fast", outputs="classes", assured=assured),
        )
        seconds = time.monotonic() - began
        promise, lost = (
            result.promise,
            self.before.float() - right(result.model, *self.others).float(),
        )
        return {
            "network": self.network,
            "asked": drop,
            "assured": assured,
            "seed": self.seed,
            "bound": promise.drop,
            "kept": promise.kept,
            "aside": promise.samples,
            "true": float(lost.mean()),
            "error": float(lost.std()) / math.sqrt(TRUE),
            "dense": float(self.before.float().mean()),
            "bytes": result.achieved.bytes / result.dense.bytes,
            "seconds": seconds,
            "with": common.versions("torch"),
        }


def trained(source, draw, seed):
    """Return a network trained for seconds."""
    torch.manual_seed(seed)
    return combinations.fitted(source.network(), *source(TRAINED, draw, train=True), STEP, draw)


def right(model, images, labels):
    """Return of each sample whether it is answered right."""
    with torch.inference_mode():
        return torch.cat([model(x).argmax(1) for x in images.split(BATCH)]) == labels


def blocks(args):
    if args.quick:
        for seed in range(2):
            yield Case("mixture", seed).block(0.01, assured=False)
        return
    for network in args.networks:
        for seed in SEEDS:
            case = Case(network, seed)
            for assured in WAYS[network]:
                for drop in DROPS:
                    yield case.block(drop, assured=assured)


# --- page -----------------------------------------------------------------------------------


def interval(hits, count):
    """Return between which shares the probability is, with 95 % confidence: Clopper, Pearson."""
    low = beta.ppf(0.025, hits, count - hits + 1) if hits else 0.0
    high = beta.ppf(0.975, hits + 1, count - hits) if hits < count else 1.0
    return float(low), float(high)


def page(found):
    """Yield the page's parts: a row for each network and target, and one for all of them."""
    if not found:
        return
    groups = {}
    for one in found:
        groups.setdefault((one["network"], one["assured"], one["asked"]), []).append(one)
    yield "# How often the promise holds"
    yield (
        "Made by `python benchmarks/promise.py`: networks trained anew for each of up to "
        f"{max(map(len, groups.values()))} seeds and pruned to a target on {EVALUATED:,} "
        "evaluation samples, of which half are set aside. *Promised*: the bound on the drop, "
        f"{CONFIDENCE:.0%} sure, in points. *Lost*: the drop on {TRUE:,} other samples. *Holds*: "
        "no more is lost than promised. *Confirmed*: the bound is no more than what was asked "
        "for. Means over the runs. With a margin is `PruneOptions(assured=True)`."
    )
    head = ("network", "asked", "promised", "lost", "holds", "confirmed", "of the bytes")
    yield common.table(head, [_row(*key, runs) for key, runs in groups.items()])
    holds, count = sum(map(_holds, found)), len(found)
    low, high = interval(holds, count)
    widest = max(one["bound"] - one["asked"] for one in found)
    yield (
        f"The promise holds in {holds} of {count} runs, {holds / count:.1%}: the probability is "
        f"between {low:.1%} and {high:.1%} with 95 % confidence (Clopper and Pearson, exact). "
        f"None is vacuous: the bound is at most {100 * widest:.2f} points above what was asked "
        "for. One standard error of what is lost is "
        f"{100 * max(one['error'] for one in found):.3f} points at most."
    )
    yield common.measured_with(found[-1]["with"])


def _holds(one):
    return one["true"] <= one["bound"]


def _row(network, assured, asked, runs):
    count = len(runs)
    told = f"{100 * asked:.1f}{', with a margin' if assured else ''}"
    means = (np.mean([run[name] for run in runs]) for name in ("bound", "true", "bytes"))
    promised, true, size = means
    numbers = (f"{100 * promised:.2f}", f"{100 * true:.2f}")
    shares = (sum(map(_holds, runs)), sum(run["kept"] for run in runs))
    return [network, told, *numbers, *(f"{hits} of {count}" for hits in shares), f"{size:.0%}"]


# --- simulated ------------------------------------------------------------------------------


def bound(samples, drop, confidence):
    """Return the bound on the drop at a level, of samples that are uniform in [0, 1]."""
    lost = int((samples < drop + WITHOUT_EFFECT / 2).sum())
    won = int((samples > 1 - WITHOUT_EFFECT / 2).sum())
    return drop_bound(lost, won, len(samples), confidence)


def simulated(draw, asked, count):
    """Return the drop found by a search, and the bound on it by samples set aside."""
    searched, aside = draw.random((2, count))
    levels = np.linspace(0, asked, LEVELS + 1)
    good, bad = 0, len(levels)
    while bad - good > 1:
        middle = (good + bad) // 2
        if bound(searched, levels[middle], MARGIN) <= asked:
            good = middle
        else:
            bad = middle
    return levels[good], bound(aside, levels[good], CONFIDENCE)


def simulate():
    """Print a line for each target and number of samples."""
    for asked, count in ASKED:
        draw = np.random.default_rng(0)
        drops, bounds = np.array([simulated(draw, asked, count) for _ in range(RUNS)]).T
        print(
            f"{100 * asked:.1f} points asked, {count:,} samples searched with and as many aside: "
            f"confirmed in {np.mean(bounds <= asked):.0%} of {RUNS} runs, holds in "
            f"{np.mean(bounds >= drops):.0%}, {100 * drops.mean():.2f} points lost on average"
        )


def main():
    parser = common.parser(__doc__, WAYS)
    parser.add_argument("--simulate", action="store_true", help="prune no network")
    args = parser.parse_args()
    if args.simulate:
        simulate()
        return
    common.run(args, "promise", blocks(args), ("network", "asked", "assured", "seed"), page)


if __name__ == "__main__":
    main()
