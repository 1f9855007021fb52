"""Whether OBS beside the criteria that are tried for weights makes better networks, and its time.

    python benchmarks/weight_criteria.py digits 4 sparsity=95% sparsity=90%
    python benchmarks/weight_criteria.py resnet20 2 sparsity=90% sparsity=95%
    python benchmarks/weight_criteria.py minilm 1 sparsity=70%
    python benchmarks/weight_criteria.py vgg16 1 sparsity=95%

Arguments are a network, a number of seeds, and budgets; a line comes for each call.
"""

import sys
import time

import torch

import common
import in_use
import tasks
from flexrel import FlexRel, Magnitude, PruneOptions, prune

BEFORE = (Magnitude(), FlexRel(1 / 3, blend="product"), FlexRel(0.1))


def made(network, seed):
    """Return a network, calibration inputs, and what its accuracy is by data that report."""
    if network in ("digits", "resnet20"):
        data = in_use._digits(seed) if network == "digits" else in_use._resnet20(seed)  # noqa: SLF001
        model, known, *judged = data
        return model, list(known.split(64)), lambda cut: in_use.accuracy(cut, judged)
    use = tasks.DEPLOYMENTS[network][-1 if network == "minilm" else 0]
    task = tasks.task(network, use, seed)
    return task.model, task.inputs, lambda cut: task.test.score(task.test(cut))


def main():
    common.declare_operators()
    torch.set_num_threads(1)
    network, seeds, *budgets = sys.argv[1:]
    for seed in range(int(seeds)):
        model, inputs, judge = made(network, seed)
        for budget in budgets:
            for name, criteria in (("before", BEFORE), ("with OBS", (*BEFORE, "obs"))):
                began = time.process_time()
                result = prune(
                    model,
                    calibration=inputs,
                    budgets=[budget],
                    granularity="element",
                    criterion=criteria,
                    options=PruneOptions(progress=lambda *_: None),
                )
                took, right = time.process_time() - began, 100 * judge(result.model)
                told = f"{result.criterion.name} {right:.1f} % {took:.1f} s"
                print(network, seed, budget, name, told, flush=True)


if __name__ == "__main__":
    main()
