"""What the default call takes: CPU time of one thread, in passes over the data and factorisations.

    python benchmarks/speed.py                        measure all (an hour on one core)
    python benchmarks/speed.py --networks resnet18
    python benchmarks/speed.py --before DIR           the same by the flexrel in DIR/src, as before
    python benchmarks/speed.py --quick                digits alone, in seconds; needs no data
    python benchmarks/speed.py --show                 the page, from the JSON

P is one pass forward and backward, to weights, over the calibration data; C one Cholesky
factorisation and solve of the Gram matrix of every layer's inputs, in double precision. Each
network has a process of its own, with one thread. Networks of the data packs are trained, and
judged on data that nothing was chosen on; the others are as their class makes them: for those the
table has the divergence alone.
"""

import importlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

import common
import tasks
from flexrel import PruneOptions, prune

REPEATS = 3  # of what P and C are the median of, where a pass is short
SHORT = 5.0  # seconds
GOALS = {"resnet56": (2.5, 4), "resnet20, 1 point": (12, 4), "minilm, 1 point": (12, 4)}  # P, C
GOAL = (4, 6)  # of the others
MEMORY = 4 * 2**30


@dataclass(frozen=True)
class Job:
    """One call."""

    network: str
    samples: int
    granularity: str
    budget: str | None
    target: str | None = None


JOBS = {
    "resnet56": Job("resnet56", 512, "channel", "macs=47%"),
    "resnet18": Job("resnet18", 64, "channel", "macs=50%"),
    "resnet50": Job("resnet50", 128, "channel", "macs=50%"),
    "vit-b": Job("vit_b_16", 64, "channel", "macs=50%"),
    "bert-base": Job("bert", 64, "channel", "macs=50%"),
    "efficientnet_lite0": Job("efficientnet_lite0", 350, "channel", "macs=67%"),
    "mobilenetv2": Job("mobilenetv2", 350, "channel", "macs=67%"),
    "minilm": Job("minilm", 512, "channel", "macs=67%"),
    "vgg16": Job("vgg16", 512, "channel", "macs=33%"),
    "vgg16, weights": Job("vgg16", 512, "element", "parameters=5%"),
    "resnet20, 1 point": Job("resnet20", 512, "channel", None, "accuracy-drop=1%"),
    "minilm, 1 point": Job("minilm", 512, "channel", None, "accuracy-drop=1%"),
}
QUICK = {"digits": Job("digits", 360, "channel", "macs=50%")}


# --- networks and their data: model, batches of inputs, what is judged by ---------------------


def made(job):
    """Return the job's network, calibration inputs, and what choose and test accuracy by."""
    if job.network == "digits":
        task = tasks.digits()
    elif job.network in tasks.TEST:
        use = tasks.DEPLOYMENTS[job.network][-1 if job.network == "minilm" else 0]
        task = tasks.task(job.network, use, 0)
    else:
        return *_untrained(job), None, None
    return task.model, task.inputs, task.choose, task.test


def _untrained(job):
    torch.manual_seed(0)
    if job.network == "bert":
        common.declare_operators()  # that its image side asks for
        library = importlib.import_module("transformers")
        model = library.BertForSequenceClassification(library.BertConfig(num_labels=10))
        ids = torch.randint(3, 30_000, (job.samples, 128)).split(8)
        return model.eval(), [{"input_ids": x, "attention_mask": torch.ones_like(x)} for x in ids]
    model = tasks.network_of("torchvision", job.network, trained=False)
    side, size = (64, 32) if job.network == "resnet18" else (224, 8)
    return model, list(torch.randn(job.samples, 3, side, side).split(size))


# --- P and C ----------------------------------------------------------------------------------


def cpu(work):
    """Return the seconds of the processor that the work takes, the median of some if short."""
    found = []
    while not found or (found[0] < SHORT and len(found) < REPEATS):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return sorted(found)[len(found) // 2]


def run(model, inputs):
    found = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    found = getattr(found, "logits", found)
    return found[0] if isinstance(found, tuple | list) else found


def passes(model, batches):
    """Go forward and backward over the data once."""
    for inputs in batches:
        run(model, inputs).square().sum().backward()
        model.zero_grad(set_to_none=True)


def widths(model, example):
    """Return (groups, inputs, outputs) of every layer that runs."""
    found = {}

    def note(layer, _, __):
        groups = getattr(layer, "groups", 1)
        found[layer] = (groups, layer.weight[0].numel(), len(layer.weight) // groups)

    kinds = nn.Linear | nn.modules.conv._ConvNd  # noqa: SLF001
    layers = [layer for layer in model.modules() if isinstance(layer, kinds)]
    handles = [layer.register_forward_hook(note) for layer in layers]
    with torch.no_grad():
        run(model, example)
    for handle in handles:
        handle.remove()
    return list(found.values())


def factorisations(sizes):
    """Return the seconds that factorising and solving every layer's Gram matrix takes."""
    total = 0.0
    for shape in set(sizes):
        groups, inputs, outputs = shape
        gram = torch.eye(inputs, dtype=torch.float64).expand(groups, inputs, inputs)
        gram = gram + 0.1 / inputs
        right = torch.ones(groups, inputs, outputs, dtype=torch.float64)
        once = cpu(lambda g=gram, r=right: torch.cholesky_solve(r, torch.linalg.cholesky(g)))
        total += once * sizes.count(shape)
    return total


# --- one job, in a process of its own ---------------------------------------------------------


def measure(name, job):
    """Return what the job's call takes and brings."""
    torch.set_num_threads(1)
    model, batches, choose, test = made(job)
    block = {"network": name, "samples": job.samples}
    block["P"] = cpu(lambda: passes(model, batches))
    block["C"] = factorisations(widths(model, batches[0]))
    counted = Counted(choose) if job.target else None
    given = {"budgets": [job.budget]} if job.budget else {"target": job.target}
    outputs = choose.outputs if choose else "auto"
    with common.Peak() as peak:
        wall, began = time.perf_counter(), time.process_time()
        result = prune(
            model,
            calibration=batches,
            evaluate=counted,
            granularity=job.granularity,
            options=PruneOptions(outputs=outputs),
            **given,
        )
        block["seconds"] = time.process_time() - began
        block["wall"] = time.perf_counter() - wall
    block |= {"peak": peak.bytes, "criterion": result.criterion.name}
    block |= {"divergence": result.achieved.divergence, "macs": result.achieved.macs}
    block |= {"of_dense": result.achieved.bytes / result.dense.bytes}
    block["weights"] = 4 * sum(p.numel() for p in model.parameters())
    if counted:
        block |= {"evaluations": counted.calls, "evaluating": counted.seconds}
    if test is not None:
        for when, network in (("dense", model), ("pruned", result.model)):
            block[when] = score(test, network)
        block["tested"] = len(test(model)) if isinstance(test, tasks.Hits) else 0
    return block


class Counted:
    """An evaluation that counts its calls and their time."""

    def __init__(self, judge):
        self.judge, self.calls, self.seconds = judge, 0, 0.0

    def __call__(self, network):
        began = time.process_time()
        found = score(self.judge, network)
        self.calls, self.seconds = self.calls + 1, self.seconds + time.process_time() - began
        return found


def score(judge, network):
    return float(np.mean(judge(network)))


def alone(name, source):
    """Return the job's block, measured in a new process by the flexrel of a source tree."""
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    if source:
        environment["PYTHONPATH"] = f"{source}/src:{source}/edge/src"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "block.json"
        done = subprocess.run(
            [sys.executable, __file__, "--job", name, str(out)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if out.is_file():
            return json.loads(out.read_text())
    last = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
    return {"network": name, "failed": last}


# --- the page ---------------------------------------------------------------------------------


def blocks(args):
    for name in QUICK if args.quick else args.networks:
        when = "before" if args.before else "now"
        yield alone(name, args.before) | {"when": when} | {"with": common.versions("torch")}


def row(block, before):
    p, c = GOALS.get(block["network"], GOAL)
    if "failed" in block:
        return [block["network"], common.quoted(block["failed"]), *[""] * 8]
    spent = block["seconds"] - block.get("evaluating", 0)
    unit = p * block["P"] + c * block["C"]
    accuracy = ""
    if "dense" in block:
        accuracy = f"{100 * block['dense']:.1f} → {100 * block['pruned']:.1f}"
        n = block["tested"]
        accuracy += (
            f" ± {100 * math.sqrt(block['pruned'] * (1 - block['pruned']) / n):.1f}" if n else ""
        )
    earlier = f"{before['seconds']:.0f}" if before and "seconds" in before else ""
    was = f"{100 * before['pruned']:.1f}" if before and "pruned" in before else ""
    return [
        f"{block['network']}, {block['samples']}",
        f"{block['P']:.1f}",
        f"{block['C']:.2f}",
        earlier,
        f"{block['seconds']:.0f}",
        f"{p} P + {c} C: {spent / unit:.2f}",
        f"{block['peak'] / common.MIB:.0f}",
        block["criterion"],
        f"{block['divergence']:.3g}",
        was,
        accuracy,
    ]


READ = (
    "Made by `python benchmarks/speed.py`. CPU time of one thread. P: forward and backward over "
    "the data once; C: one factorisation and solve of every layer's Gram matrix. A goal of 1 or "
    "less is met; evaluations of accuracy are the caller's and do not count. MiB: the most that "
    "the call takes beside the network and the data. Accuracy on data that nothing was chosen on."
)
HEADER = ("network, samples", "P, s", "C, s", "before, s", "now, s", "of the goal", "MiB")
HEADER += ("criterion", "divergence", "before, %", "dense → now, %")


def page(found):
    def of(when):
        return {b["network"]: b for b in found if b["when"] == when}

    now, before = of("now"), of("before")
    if not now:
        return []
    rows = [row(block, before.get(name)) for name, block in now.items()]
    return [
        "# What the default call takes",
        READ,
        common.table(HEADER, rows),
        common.measured_with(next(iter(now.values()))["with"]),
    ]


def main():
    parser = common.parser(__doc__, JOBS)
    parser.add_argument("--before", metavar="DIR", help="measure the flexrel in DIR/src instead")
    parser.add_argument("--job", nargs=2, metavar=("NAME", "FILE"), help="one, in this process")
    args = parser.parse_args()
    if args.job:
        name, out = args.job
        Path(out).write_text(json.dumps(measure(name, {**JOBS, **QUICK}[name])))
        return
    common.run(args, "speed", blocks(args), ("network", "when"), page)


if __name__ == "__main__":
    main()
