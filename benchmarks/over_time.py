"""Importance tracked while training, against that of the trained network, at equal size.

    python benchmarks/over_time.py                  five seeds; ten minutes on one core
    python benchmarks/over_time.py --quick          one seed, one size
    python benchmarks/over_time.py --show           the page, from the JSON

Digits that ship with scikit-learn train a small network; nothing is repaired after a cut. What
calibrates are training images, what reports was seen by nobody. Nothing is chosen by the results.
"""

import torch
from torch.nn import functional

import common
import flexrel
import tasks
from flexrel.cli import demo
from flexrel.training import Tracker

SEEDS = range(5)
EPOCHS, BATCH, RATE, EVERY = 12, 64, 0.01, 4  # as the demo trains; every so many steps a look
CUTS = {"channel": ("macs=50%", "macs=25%"), "element": ("sparsity=80%", "sparsity=90%")}
HALF_LIVES = {"mean": None, "half-life of an epoch": 16}
CRITERIA = {
    "channel": ("magnitude", "relevance", "flexrel:0.5"),
    "element": ("magnitude", "flexrel:0.1", "flexrel:0.33:product"),
}
FINAL = "trained network"


def trained(seed):
    """Return the network of a seed, and its trackers by name."""
    data = demo.digits()
    torch.manual_seed(seed)
    model = demo.DigitsNetwork()
    trackers = {name: Tracker(model, EVERY, half) for name, half in HALF_LIVES.items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    draw = torch.Generator().manual_seed(seed)
    rounds = [torch.randperm(len(data.train_x), generator=draw).split(BATCH) for _ in range(EPOCHS)]
    steps = [picked for order in rounds for picked in order]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=RATE, total_steps=len(steps))
    for picked in steps:
        loss = functional.cross_entropy(model(data.train_x[picked]), data.train_y[picked])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        for tracker in trackers.values():
            tracker.step((data.train_x[picked], data.train_y[picked]))
    return model.eval(), {name: tracker.history() for name, tracker in trackers.items()}


def blocks(args):
    """Yield a block for each seed and cut."""
    torch.set_num_threads(1)
    data = demo.digits()
    judge = tasks.Hits(data.evaluation)
    for seed in SEEDS[: 1 if args.quick else None]:
        model, histories = trained(seed)
        sources = {FINAL: None, **histories}
        for granularity, cuts in CUTS.items():
            for cut in cuts[: 1 if args.quick else None]:
                scores = {
                    f"{criterion}, {name}": judge.score(
                        judge(pruned(model, data, granularity, cut, criterion, history))
                    )
                    for criterion in CRITERIA[granularity]
                    for name, history in sources.items()
                }
                yield {
                    "seed": seed,
                    "granularity": granularity,
                    "cut": cut,
                    "dense": judge.score(judge(model)),
                    "samples": sum(len(labels) for _, labels in data.evaluation),
                    "scores": scores,
                    "versions": common.versions("torch"),
                }


def pruned(model, data, granularity, cut, criterion, history):
    return flexrel.prune(
        model,
        calibration=data.calibration,
        budgets=[cut],
        criterion=criterion,
        granularity=granularity,
        recover="none",
        options=flexrel.PruneOptions(history=history),
    ).model


def page(found):
    """Yield the page's parts."""
    if not found:
        return
    yield "# Importance over training"
    seeds = len({block["seed"] for block in found})
    yield (
        "Made by `python benchmarks/over_time.py`. Accuracy on images that nobody saw, in percent, "
        "of networks cut to the same size and not repaired, in the mean over networks trained from "
        f"{seeds} seeds, ± the standard error of that mean. *Trained network*: magnitude is that "
        "of the last weights, relevance is measured on them. *Mean*, *half-life of an epoch*: both "
        f"are averages over training, looked at every {EVERY} steps. *Gain*: over the trained "
        "network's, seed by seed."
    )
    better = worse = 0
    lines = []
    for granularity, cuts in CUTS.items():
        for cut in cuts:
            mine = [b for b in found if (b["granularity"], b["cut"]) == (granularity, cut)]
            for criterion in CRITERIA[granularity] if mine else ():
                plain = [b["scores"][f"{criterion}, {FINAL}"] for b in mine]
                row = [f"{granularity}, {cut}, {criterion}", _points(plain)]
                for name in HALF_LIVES:
                    scores = [b["scores"][f"{criterion}, {name}"] for b in mine]
                    gains = [one - two for one, two in zip(scores, plain, strict=True)]
                    middle, error = common.mean([(gain, 0.0) for gain in gains])
                    better += middle > 2 * error
                    worse += middle < -2 * error
                    row += [_points(scores), _points(gains, sign="+")]
                lines.append(row)
    total = len(lines) * len(HALF_LIVES)
    said = "so the default stays: the trained network's" if better <= total / 2 else "so it pays"
    yield (
        f"Of {total} comparisons tracking is better by more than two standard errors in {better}, "
        f"worse in {worse}; {said}."
    )
    dense = _points([b["dense"] for b in found])
    yield f"Dense: {dense} %, on {found[0]['samples']} images."
    header = ["cut and criterion", FINAL]
    for name in HALF_LIVES:
        header += [name, "gain"]
    yield common.table(header, lines)
    yield common.measured_with(found[0]["versions"])


def _points(values, sign=""):
    middle, error = common.mean([(100 * value, 0.0) for value in values])
    return f"{middle:{sign}.1f} ± {error:.1f}"


def main():
    args = common.parser(__doc__).parse_args()
    common.run(args, "over_time", blocks(args), ("seed", "granularity", "cut"), page)


if __name__ == "__main__":
    main()
