"""Weights cut while a network is trained, against those cut of the trained one, at equal sparsity.

    python benchmarks/gradual.py                  five seeds; ten minutes on one core
    python benchmarks/gradual.py --quick          one seed, one size
    python benchmarks/gradual.py --show           the page, from the JSON

Digits that ship with scikit-learn train a small network, each for as many steps. What calibrates
are training images, what reports was seen by nobody. Nothing is chosen by the results.
"""

import torch
from torch.nn import functional

import common
import flexrel
import tasks
from flexrel.cli import demo
from flexrel.training import GradualPruner

SEEDS = range(5)
EPOCHS, BATCH, RATE = 12, 64, 0.01  # as the demo trains
BEGIN, END, EVERY = 0.25, 0.75, 8  # shares of the steps; steps between two updates
SPARSITIES = (0.9, 0.95, 0.98)
DURING = {  # way -> schedule, regrowth
    "one-shot": ("one-shot", 0.0),
    "cubic": ("cubic", 0.0),
    "cubic, regrown": ("cubic", 0.3),
}
AFTER = {"after training": "none", "after, repaired": "closed-form"}


def trained(data, seed, sparsity, schedule, regrow):
    """Return the network of a seed, cut on the way if a schedule is given."""
    torch.manual_seed(seed)
    model = demo.DigitsNetwork()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    draw = torch.Generator().manual_seed(seed)
    rounds = [torch.randperm(len(data.train_x), generator=draw).split(BATCH) for _ in range(EPOCHS)]
    steps = [picked for order in rounds for picked in order]
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=RATE, total_steps=len(steps))
    begin, end = (round(share * len(steps)) for share in (BEGIN, END))
    pruner = schedule and GradualPruner(
        model, sparsity, begin=begin, end=end, every=EVERY, schedule=schedule, regrow=regrow
    )
    for picked in steps:
        loss = functional.cross_entropy(model(data.train_x[picked]), data.train_y[picked])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
        if pruner:
            pruner.step()
    return model.eval()


def blocks(args):
    """Yield a block for each seed and sparsity."""
    torch.set_num_threads(1)
    data = demo.digits()
    judge = tasks.Hits(data.evaluation)
    for seed in SEEDS[: 1 if args.quick else None]:
        dense = trained(data, seed, 0.0, None, 0.0)
        for sparsity in SPARSITIES[: 1 if args.quick else None]:
            scores = {
                way: judge.score(judge(cut(dense, data, sparsity, recover)))
                for way, recover in AFTER.items()
            }
            for way, asked in DURING.items():
                scores[way] = judge.score(judge(trained(data, seed, sparsity, *asked)))
            yield {
                "seed": seed,
                "sparsity": sparsity,
                "dense": judge.score(judge(dense)),
                "samples": sum(len(labels) for _, labels in data.evaluation),
                "scores": scores,
                "versions": common.versions("torch"),
            }


def cut(model, data, sparsity, recover):
    return flexrel.prune(
        model,
        calibration=data.calibration,
        budgets=[flexrel.Sparsity(sparsity)],
        criterion="magnitude",
        granularity="element",
        recover=recover,
    ).model


def page(found):
    """Yield the page's parts."""
    if not found:
        return
    yield "# Cut while training"
    seeds = len({block["seed"] for block in found})
    yield (
        "Made by `python benchmarks/gradual.py`. Accuracy on images that nobody saw, in percent, "
        "of networks with as many zeros and trained for as many steps, in the mean over "
        f"{seeds} seeds, ± the standard error of that mean. *After*: `prune` by magnitude, without "
        "and with its repair. The others: `GradualPruner`, from a quarter of the steps on, *cubic* "
        "until three quarters, *regrown* with `regrow=0.3`."
    )
    dense = common.mean([(100 * block["dense"], 0.0) for block in found])
    yield f"Dense: {dense[0]:.1f} ± {dense[1]:.1f} %, on {found[0]['samples']} images."
    ways = (*AFTER, *DURING)
    rows = []
    for sparsity in SPARSITIES:
        mine = [block for block in found if block["sparsity"] == sparsity]
        cells = (common.mean([(100 * b["scores"][way], 0.0) for b in mine]) for way in ways)
        rows += (
            [[f"{100 * sparsity:g} %", *(f"{m:.1f} ± {e:.1f}" for m, e in cells)]] if mine else []
        )
    yield common.table(["zeros", *ways], rows)
    yield common.measured_with(found[0]["versions"])


def main():
    args = common.parser(__doc__).parse_args()
    common.run(args, "gradual", blocks(args), ("seed", "sparsity"), page)


if __name__ == "__main__":
    main()
