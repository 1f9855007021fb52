"""What a limit on time comes to: how long calls take, and what they return.

    python benchmarks/time_limit.py                   measure all (a quarter of an hour, idle)
    python benchmarks/time_limit.py --networks resnet20
    python benchmarks/time_limit.py --quick           digits alone, in seconds; needs no data
    python benchmarks/time_limit.py --show            the page, from the JSON

Each network is pruned by a default call, and by calls with limits that are shares of the time which
that took, on one thread. Accuracy is on data that nothing was chosen on. Other work on the machine
makes times longer, not shares of them wrong: the default call is timed beside.
"""

import math
import time

import numpy as np
import torch

import common
import tasks
from flexrel import PruneOptions, prune

CASES = {"resnet20": "macs=50%", "resnet56": "macs=47%"}
QUICK = {"digits": "macs=50%"}
SHARES = (None, 0.5, 0.25, 0.1)  # of the default call's time


def measure(network, budget, task, share, whole):
    """Return a call: with a limit of that share of `whole` seconds, None without one."""
    limit = None if share is None else share * whole
    options = PruneOptions(outputs=task.choose.outputs, time_limit=limit)
    began = time.monotonic()
    result = prune(task.model, calibration=task.inputs, budgets=[budget], options=options)
    took = time.monotonic() - began
    hits = task.test(result.model)
    return {
        "network": network,
        "budget": budget,
        "share": share,
        "limit_s": limit,
        "took_s": took,
        "criterion": result.criterion.name,
        "macs": result.achieved.macs / result.dense.macs,
        "score": float(np.mean(hits)),
        "of": len(hits),
        "undone": [line for line in result.warnings if "time" in line],
        "with": common.versions("torch"),
    }


def blocks(args):
    torch.set_num_threads(1)
    cases = QUICK if args.quick else {name: CASES[name] for name in args.networks}
    for network, budget in cases.items():
        task = tasks.digits() if network == "digits" else tasks.task(network, "as trained", 0)
        prune(task.model, calibration=task.inputs[:1], budgets=["macs=90%"], recover="none")  # warm
        whole = None
        for share in SHARES:
            block = measure(network, budget, task, share, whole)
            whole = whole or block["took_s"]
            yield block


def page(found):
    """Yield the page's parts."""
    if not found:
        return
    yield "# A limit on time"
    yield (
        "Made by `python benchmarks/time_limit.py`. Default calls without a limit, and with limits "
        "that are shares of the time which they took; accuracy in percent on images that nothing "
        "was chosen on, ± one standard error. *Used*: the time that the call took, of its limit."
    )
    rows = []
    for block in found:
        limit = "none" if block["limit_s"] is None else f"{block['limit_s']:.1f}"
        used = (
            "" if block["limit_s"] is None else f"{100 * block['took_s'] / block['limit_s']:.0f} %"
        )
        error = math.sqrt(block["score"] * (1 - block["score"]) / block["of"])
        right = f"{100 * block['score']:.1f} ± {100 * error:.1f}"
        case = f"{block['network']}, {block['budget']}"
        rows.append([case, limit, f"{block['took_s']:.1f}", used, block["criterion"], right])
    header = ["network, budget", "limit, s", "took, s", "used", "criterion", "accuracy, %"]
    yield common.table(header, rows)
    yield common.measured_with(found[0]["with"])


def main():
    args = common.parser(__doc__, CASES).parse_args()
    common.run(args, "time_limit", blocks(args), ("network", "share"), page)


if __name__ == "__main__":
    main()
