"""What relevance costs: each rule against a plain forward and backward pass over the same data.

    python benchmarks/relevance.py          measure (half an hour)
    python benchmarks/relevance.py --quick  the network trained on digits, one round
    python benchmarks/relevance.py --show   the page, from the JSON

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
import tasks
from flexrel import calibrate

RULES = ("gradient-input", "epsilon", "gamma", "zplus", "attnlrp")
IN_MEMORY = ("gradient-input", "epsilon", "gamma", "zplus")
NETWORKS = {  # samples, samples a batch
    "resnet56": (128, 64),
    "vgg16": (128, 64),
    "efficientnet_lite0": (16, 8),
    "minilm": (64, 32),
}


def loaded(name):
    """Return the network and its batches."""
    if name == "digits":
        task = tasks.digits()
        return task.model, task.inputs[:2]
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


def times(name, threads, runs):
    """Return the medians of the ratios over the plain pass, and what fails."""
    torch.set_num_threads(threads)
    model, batches = loaded(name)
    reference = partial(plain, model, batches, name)
    seconds, ratios, failures = [], {}, {}
    common.timed(reference)
    for run in range(runs + 1):  # the first is a warm-up
        for what, work in works(model, batches, name).items():
            if what in failures:
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


def memory(name, rules):
    """Return by how many bytes the peak rises in the plain pass, and under each rule."""
    found = {}
    for what in ("plain", *rules):
        command = [sys.executable, __file__, "--memory-of", name, what]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found[what] = json.loads(output)["bytes"]
    return found


def blocks(args):
    """Yield a block for each network."""
    common.declare_operators()  # zennit imports torchvision
    for name in ("digits",) if args.quick else args.networks:
        rules = IN_MEMORY[: 1 if args.quick else None]
        yield {
            "network": name,
            "times": [times(name, threads, args.runs) for threads in args.threads],
            "memory": memory(name, rules),
            "versions": common.versions("torch", "captum", "zennit"),
        }


def page(found):
    """Yield the page's parts."""
    if not found:
        return
    yield "# What relevance costs"
    yield (
        "Made by `python benchmarks/relevance.py`: calibration under each rule, over a plain "
        "forward and backward pass (with gradients of the weights, as in training) of the same "
        "data, timed in turn; medians of 3 (of 2 where measured again). captum and zennit do less: "
        "captum's *gradient* and *LRP* give relevance of every layer's output, not summed for "
        "weights; zennit's rules leave it in hooks. Times were taken on 2 cores that other work "
        "shared, so read them as ratios."
    )
    columns = [*RULES, *PEERS]
    rows = []
    for block in found:
        for row in block["times"]:
            cells = [_cell(row, column) for column in columns]
            rows.append([block["network"], row["threads"], f"{row['plain_s']:.2f}", *cells])
    yield common.table(["network", "threads", "plain pass, s", *columns], rows)
    failed = {
        f"{what} on {block['network']}: {common.quoted(why)}"
        for block in found
        for row in block["times"]
        for what, why in row["failures"].items()
    }
    if failed:
        yield "Failures:\n\n" + common.listed(sorted(failed))
    yield (
        "Memory: what the peak rises by above the loaded network and data, in a process of its "
        "own, over that of the plain pass."
    )
    header = ["peak memory", "plain pass, MiB", *IN_MEMORY]
    yield common.table(header, (_peak(block["network"], block["memory"]) for block in found))
    yield common.measured_with(found[-1]["versions"])


def _cell(row, column):
    if column in row["ratios"]:
        return f"{row['ratios'][column]:.2f}"
    return "fails" if column in row["failures"] else ""


def _peak(name, peaks):
    base = peaks["plain"]
    shares = (f"{peaks[rule] / base:.2f}" if rule in peaks else "" for rule in IN_MEMORY)
    return [name, f"{base / common.MIB:.0f}", *shares]


def main():
    parser = common.parser(__doc__, tuple(NETWORKS))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", nargs="+", type=int, default=(1, 2))
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        measure_memory(*args.memory_of)
        return
    if args.quick:
        args.runs, args.threads = 1, (1,)
    common.run(args, "relevance", blocks(args), ("network",), page)


if __name__ == "__main__":
    main()
