"""How often a promise holds, and how often an assured search is confirmed, by simulation.

    python benchmarks/promise.py     a line for each target and number of samples

A network at a level loses `drop` more samples than it wins, and as many again as are won and lost
without effect; levels are nested, so that a search is by bisection, as in `prune(assured=True)`.
"""

import numpy as np

from flexrel.core.paired import drop_bound
from flexrel.pruning.promise import CONFIDENCE, MARGIN

RUNS, LEVELS = 60, 20
WITHOUT_EFFECT = 0.006  # share of the samples that answers change of without a drop
ASKED = ((0.01, 5000), (0.005, 5000), (0.02, 5000), (0.01, 1500))  # drop, samples of each half


def bound(samples, drop, confidence):
    """Return the bound on the drop at a level, of samples that are uniform in [0, 1]."""
    lost = int((samples < drop + WITHOUT_EFFECT / 2).sum())
    won = int((samples > 1 - WITHOUT_EFFECT / 2).sum())
    return drop_bound(lost, won, len(samples), confidence)


def run(draw, asked, count):
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


def main():
    for asked, count in ASKED:
        draw = np.random.default_rng(0)
        drops, bounds = np.array([run(draw, asked, count) for _ in range(RUNS)]).T
        print(
            f"{100 * asked:.1f} points asked, {count:,} samples searched with and as many aside: "
            f"confirmed in {np.mean(bounds <= asked):.0%} of {RUNS} runs, holds in "
            f"{np.mean(bounds >= drops):.0%}, {100 * drops.mean():.2f} points lost on average"
        )


if __name__ == "__main__":
    main()
