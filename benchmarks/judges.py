"""By which distance from the dense network's scores the better of several cut networks is found.

    python benchmarks/judges.py                     measure all (a quarter of an hour)
    python benchmarks/judges.py --networks resnet20
    python benchmarks/judges.py --quick             digits alone; needs no data
    python benchmarks/judges.py --show              the page, from the JSON

Of each case four criteria make a network each, of the same multiply-adds, repaired, with two seeds.
Each distance judges all of them on 128 samples that nothing was fitted to, drawn 40 times of 300;
what it is worth is the accuracy of the network that it takes, on images that nothing was chosen on,
above the mean of all, and the correlation of its order with theirs. *divergence* is what `prune`
goes by; *softened* the same of both networks' scores at a temperature at which the dense network's
have a root mean square of 1; *squared* the squared error of centred scores. Each is but for scale.
"""

import tempfile

import numpy as np
import torch

import common
import tasks
from flexrel import PruneOptions, prune
from flexrel.core.outputs import apart_but_for_scale

SHARES = (0.7, 0.5, 0.35)  # of the multiply-adds
CASES = {"resnet20": ("as trained", "3 classes"), "resnet56": ("as trained", "3 classes")}
CRITERIA = ("magnitude", "relevance", "obs", "flexrel:0.5")
SEEDS = (0, 1)
DRAWS, JUDGED = 40, 128


def centred(scores):
    """Return the scores less their mean of each sample."""
    return scores - scores.mean(1, keepdim=True)


def softened(dense, found):
    """Return the divergence where the dense scores have a root mean square of 1."""
    size = centred(dense).square().mean().sqrt()
    return apart_but_for_scale(dense / size, found)


def squared(dense, found):
    """Return the squared error of centred scores over their squares, at the best factor."""
    dense, found = centred(dense), centred(found)
    share = (dense * found).sum() / found.square().sum().clamp_min(1e-30)
    return float((dense - share * found).square().sum() / dense.square().sum())


JUDGES = {"divergence": apart_but_for_scale, "softened": softened, "squared": squared}


def scores_on(network, batches):
    """Return what the network says of all inputs, float64."""
    with torch.inference_mode():
        return torch.cat([network(inputs) for inputs, _ in batches]).double()


def order(values):
    """Return the rank of each value."""
    return np.argsort(np.argsort(values))


def measure(network, use, share):
    task = tasks.digits() if network == "digits" else tasks.task(network, use, 0)
    dense = scores_on(task.model, task.choose.batches)
    found, right = [], []
    with tempfile.TemporaryDirectory() as cache:
        options = PruneOptions(outputs="classes", cache=cache)
        for criterion in CRITERIA:
            for seed in SEEDS:
                made = prune(
                    task.model,
                    calibration=task.inputs,
                    budgets=[f"macs={100 * share:g}%"],
                    criterion=criterion,
                    seed=seed,
                    options=options,
                ).model
                found.append(scores_on(made, task.choose.batches))
                right.append(100 * task.test.score(task.test(made)))
    rng, right = np.random.default_rng(0), np.array(right)
    draws = [torch.from_numpy(rng.permutation(len(dense))[:JUDGED]) for _ in range(DRAWS)]
    block = {"network": network, "use": use, "share": share, "mean": right.mean()}
    block["best"] = right.max() - right.mean()
    for name, judge in JUDGES.items():
        far = [np.array([judge(dense[some], one[some]) for one in found]) for some in draws]
        taken = [right[each.argmin()] - right.mean() for each in far]
        agree = [np.corrcoef(order(each), order(-right))[0, 1] for each in far]
        block[name] = [float(np.mean(taken)), float(np.mean(agree))]
    return block | {"with": common.versions("torch")}


def blocks(args):
    cases = {"digits": ("as trained",)} if args.quick else {n: CASES[n] for n in args.networks}
    for network, uses in cases.items():
        for use in uses:
            for share in SHARES[:1] if args.quick else SHARES:
                yield measure(network, use, share)


def page(found):
    if not found:
        return []
    rows = [
        [
            f"{block['network']}, {block['use']}, {100 * block['share']:g} %",
            f"{block['mean']:.1f}",
            f"{block['best']:+.2f}",
            *(f"{block[name][0]:+.2f}, {block[name][1]:.2f}" for name in JUDGES),
        ]
        for block in found
    ]
    every = np.array([[block[name] for name in JUDGES] for block in found]).mean(0)
    means = (f"{taken:+.2f}, {agree:.2f}" for taken, agree in every)
    best = np.mean([block["best"] for block in found])
    rows.append(["mean", "", f"{best:+.2f}", *means])
    return [
        "# Judges of cut networks",
        (
            "Made by `python benchmarks/judges.py`. Eight cut networks of the same multiply-adds: "
            "their mean accuracy in percent, how far the best is above it, and how far that which "
            "a distance takes on 128 held-out samples, mean of 40 draws; then the correlation of "
            "the distance's order with that of accuracy. *divergence* is what `prune` goes by."
        ),
        common.table(("case", "accuracy, %", "best", *JUDGES), rows),
        common.measured_with(found[0]["with"]),
    ]


def main():
    args = common.parser(__doc__, CASES).parse_args()
    common.run(args, "judges", blocks(args), ("network", "use", "share"), page)


if __name__ == "__main__":
    main()
