"""Whether channels that go before zeros bring a file further down: accuracy at one size.

    python benchmarks/stages.py                       measure all (three quarters of an hour)
    python benchmarks/stages.py --networks resnet20
    python benchmarks/stages.py --quick               digits alone, in seconds; needs no data
    python benchmarks/stages.py --show                the page, from the JSON

For each case zeros alone at a share of the dense network's bytes; then channels to a share of its
multiply-adds, and zeros on what is left, to the same bytes. Criteria are those of effort "fast".
"""

import math

import numpy as np
import torch

import common
import tasks
from flexrel import Bytes, PruneOptions, prune

CASES = {  # network -> use, share of bytes, shares of multiply-adds
    "resnet20": (("as trained", 0.5, (0.85, 0.7, 0.5)), ("3 classes", 0.25, (0.7, 0.4))),
    "resnet56": (("as trained", 0.4, (0.8, 0.6)),),
}
QUICK = {"digits": (("as trained", 0.5, (0.7,)),)}
VALUES = "int8"
TOLD = (
    "Made by `python benchmarks/stages.py`. Accuracy in percent on images that nothing was chosen "
    f"on, of packed files of one size, values in {VALUES}: zeros alone, and zeros after channels "
    "to a share of the multiply-adds. ± is one standard error of an accuracy."
)


def task_of(network, use):
    return tasks.digits() if network == "digits" else tasks.task(network, use, 0)


def measure(network, use, size, shares):
    """Return one case: the accuracy of each way."""
    task = task_of(network, use)
    options = PruneOptions(outputs=task.choose.outputs, effort="fast")
    asked = {"calibration": task.inputs, "options": options}
    zeros = {**asked, "granularity": "element", "values": VALUES}
    alone = prune(task.model, budgets=[Bytes(size)], **zeros)
    limit = int(alone.requested["bytes"])
    hits = task.test(alone.model)
    block = {"network": network, "use": use, "bytes": limit, "tested": len(hits)}
    block["dense"], block["zeros"] = float(np.mean(task.test(task.model))), float(np.mean(hits))
    block["after"] = {}
    for share in shares:
        cut = prune(task.model, budgets=[f"macs={100 * share:g}%"], **asked).model
        both = prune(cut, budgets=[Bytes(limit)], **zeros).model
        block["after"][str(share)] = float(np.mean(task.test(both)))
    return block | {"with": common.versions("torch")}


def blocks(args):
    cases = QUICK if args.quick else {name: CASES[name] for name in args.networks}
    torch.manual_seed(0)
    for network, uses in cases.items():
        for use, size, shares in uses:
            yield measure(network, use, size, shares)


def page(found):
    if not found:
        return []
    rows = []
    for block in found:
        error = math.sqrt(block["zeros"] * (1 - block["zeros"]) / block["tested"])
        after = [f"{100 * one:.1f} ({float(s):.0%})" for s, one in block["after"].items()]
        shares = [f"{100 * block[name]:.1f}" for name in ("dense", "zeros")]
        case = f"{block['network']}, {block['use']}"
        rows.append([case, f"{block['bytes']:,}", *shares, ", ".join(after), f"{100 * error:.1f}"])
    head = ("case", "bytes", "dense", "zeros alone", "after channels (of multiply-adds)", "±")
    return [
        "# Channels before zeros",
        TOLD,
        common.table(head, rows),
        common.measured_with(found[0]["with"]),
    ]


def main():
    args = common.parser(__doc__, CASES).parse_args()
    common.run(args, "stages", blocks(args), ("network", "use"), page)


if __name__ == "__main__":
    main()
