"""What relevance costs: each rule against a plain forward and backward pass over the same data.

    python benchmarks/relevance.py          measure, then write the table into README.md

Time: every rule, captum and zennit take turns with the plain pass in one process; a ratio is of
two neighbours, and the table has medians. Memory: a process of its own for each, its peak above
what the loaded network and data take.
"""

import argparse
import json
import statistics
import subprocess
import sys
from functools import partial

import torch
from torch import nn

import common
from flexrel import calibrate

RULES = ("gradient-input", "epsilon", "gamma", "zplus", "attnlrp")
BOUNDS = {"gradient-input": 1.15, "epsilon": 1.3, "gamma": 2.2, "zplus": 2.2}
NETWORKS = {  # samples, samples a batch
    "resnet56": (128, 64),
    "vgg16": (128, 64),
    "efficientnet_lite0": (16, 8),
    "minilm": (64, 32),
}
MIB = 2**20


def loaded(name):
    """Return the network and its batches."""
    packs = common.data_packs()
    samples, size = NETWORKS[name]
    if name == "minilm":
        return packs.minilm(), list(common.sentences(packs)[:samples].split(size))
    x, _ = packs.imagenet1k() if name == "efficientnet_lite0" else packs.cifar10("train")
    return packs.network(name), list(packs.normalise(name, x[:samples]).split(size))


def start(outputs, name):
    if name == "minilm":
        return outputs.square().sum() / 2
    return outputs.max(dim=1).values.sum()


def plain(model, batches, name):
    """Forward and backward, with gradients of the weights, as in training."""
    for x in batches:
        start(model(x), name).backward()
    model.zero_grad()


def flexrel(model, batches, name, rule):
    calibrate(model, batches, rule, "norm" if name == "minilm" else "predicted")


def layers_of(model):
    return [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]


def captum_gradient(model, batches, name):
    """Gradient times activation of every layer, as captum does it in one call."""
    from captum.attr import LayerGradientXActivation  # noqa: PLC0415 - one of several peers

    method = LayerGradientXActivation(partial(scores, model, name), layers_of(model))
    for x in batches:
        method.attribute(x)


def scores(model, name, x):
    outputs = model(x)
    return outputs.square().sum(1) / 2 if name == "minilm" else outputs.max(dim=1).values


def captum_lrp(model, batches, _):
    """LRP-epsilon of every layer, as captum does it."""
    from captum.attr import LayerLRP  # noqa: PLC0415

    method = LayerLRP(model, layers_of(model))
    for x in batches:
        method.attribute(x, target=model(x).argmax(1))


def zennit_rule(rule, model, batches, name):
    """Relevance of every layer's input by zennit's rule, kept by its hooks."""
    import zennit.rules  # noqa: PLC0415
    from zennit.composites import LayerMapComposite  # noqa: PLC0415
    from zennit.types import Activation, AvgPool, BatchNorm, Convolution, Linear  # noqa: PLC0415

    made = [((Convolution, Linear), getattr(zennit.rules, rule)())]
    composite = LayerMapComposite(
        [
            *made,
            (Activation, zennit.rules.Pass()),
            (AvgPool, zennit.rules.Norm()),
            (BatchNorm, zennit.rules.Pass()),
        ]
    )
    with composite.context(model) as changed:
        for x in batches:
            given = x.clone().requires_grad_() if x.is_floating_point() else x
            start(changed(given), name).backward()
    model.zero_grad()


PEERS = {
    "captum gradient": captum_gradient,
    "captum LRP": captum_lrp,
    "zennit Epsilon": partial(zennit_rule, "Epsilon"),
    "zennit Gamma": partial(zennit_rule, "Gamma"),
    "zennit ZPlus": partial(zennit_rule, "ZPlus"),
}


def works(model, batches, name):
    """Return what is timed, by name: a function without arguments."""
    ours = {rule: partial(flexrel, model, batches, name, rule) for rule in RULES}
    peers = {peer: partial(work, model, batches, name) for peer, work in PEERS.items()}
    return {**ours, **peers}


def times(name, threads, runs, only):
    torch.set_num_threads(threads)
    model, batches = loaded(name)
    reference = partial(plain, model, batches, name)
    seconds, ratios, failures = [], {}, {}
    common.timed(reference)
    for run in range(runs + 1):  # the first is a warm-up
        for what, work in works(model, batches, name).items():
            if what in failures or (only and what not in only):
                continue
            base = common.timed(reference)
            try:
                ratio = common.timed(work) / base
            except Exception as error:  # noqa: BLE001 - a peer's failure is a result
                failures[what] = f"{type(error).__name__}: {error}".splitlines()[0][:120]
                continue
            if run:
                seconds.append(base)
                ratios.setdefault(what, []).append(ratio)
    return {
        "network": name,
        "threads": threads,
        "plain_s": statistics.median(seconds),
        "ratios": {what: statistics.median(found) for what, found in ratios.items()},
        "ranges": {what: [min(found), max(found)] for what, found in ratios.items()},
        "failures": failures,
    }


def measure_memory(name, what):
    """Print by how much the peak rises; to be run in a process of its own."""
    torch.set_num_threads(1)
    model, batches = loaded(name)
    small = [x[:1] for x in batches[:1]]
    work = plain if what == "plain" else partial(flexrel, rule=what)
    work(model, small, name)  # loads what is loaded on first use
    model.zero_grad()
    with common.Peak() as peak:
        work(model, batches, name)
    print(json.dumps({"bytes": peak.bytes}))


def memory(name):
    found = {}
    for what in ("plain", *BOUNDS):
        command = [sys.executable, __file__, "--memory-of", name, what]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found[what] = json.loads(output)["bytes"]
    return {"network": name, "bytes": found}


def put(rows, row, *key):
    """Return the rows with one of the same key updated by `row`, or with `row` at the end."""
    for before in rows:
        if all(before[name] == row[name] for name in key):
            for name, value in row.items():
                before[name] = before[name] | value if isinstance(value, dict) else value
            return rows
    return [*rows, row]


def show():
    content = common.load("relevance")
    columns = [*RULES, *PEERS]
    rows = []
    for row in content["times"]:
        cells = [
            f"{row['ratios'][c]:.2f}"
            if c in row["ratios"]
            else "fails"
            if c in row["failures"]
            else ""
            for c in columns
        ]
        rows.append([row["network"], row["threads"], f"{row['plain_s']:.2f}", *cells])
    text = common.table(["network", "threads", "plain pass, s", *columns], rows)
    failures = sorted(
        {
            (what, row["network"], why)
            for row in content["times"]
            for what, why in row["failures"].items()
        }
    )
    told = "\n".join(f"- {what} on {network}: `{why}`" for what, network, why in failures)
    rows = [
        [
            row["network"],
            f"{row['bytes']['plain'] / MIB:.0f}",
            *(f"{row['bytes'][rule] / row['bytes']['plain']:.2f}" for rule in BOUNDS),
        ]
        for row in content["memory"]
    ]
    peaks = common.table(["peak memory", "plain pass, MiB", *BOUNDS], rows)
    common.replace_section("relevance", "\n\n".join((text, "Failures:\n\n" + told, peaks)))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=tuple(NETWORKS))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=(*RULES, *PEERS), help="of what is timed")
    parser.add_argument("--threads", nargs="+", type=int, default=(1, 2))
    parser.add_argument("--show", action="store_true", help="the table, from the JSON")
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        measure_memory(*args.memory_of)
        return
    if not args.show:
        common.declare_operators()  # zennit imports torchvision
        none = {"torch": torch.__version__, "times": [], "memory": []}
        content = common.load("relevance", none)  # of other networks, or timed before
        for name in args.networks:
            content["memory"] = put(content["memory"], memory(name), "network")
            for threads in args.threads:
                row = times(name, threads, args.runs, args.only)
                content["times"] = put(content["times"], row, "network", "threads")
                common.save("relevance", content)
    show()


if __name__ == "__main__":
    main()
