"""On an accelerator: what relevance costs there, and what the pattern 2:4 gains.

    python benchmarks/accelerator.py                  measure, where torch finds one
    python benchmarks/accelerator.py --quick          digits on the processor; needs no data
    python benchmarks/accelerator.py --show           the page, from the JSON

Relevance: each rule in turn with a plain forward and backward pass over the same batches, with
gradients of the weights, as in training; in batches as on a processor, and all samples in one. 2:4:
the network cut to the pattern, in float16, its linear layers on the device's sparse cores, in turn
with the dense network, on a batch as it is calibrated with and on one that fills the device, called
as it is and as a CUDA graph, which leaves out what the calls cost; torch has no such convolutions.
Without an accelerator it says so and leaves the page as it is.
"""

import copy
import functools
import statistics
import sys
import time

import torch
from torch import nn
from torch.nn import functional

import common
import tasks
from flexrel import calibrate, prune

NETWORKS = ("vgg16", "minilm")
RULES = ("gradient-input", "epsilon", "gamma")
ROUNDS = 15
ROWS = 64  # what the sparse cores take inputs and outputs by
LARGE = 2048  # samples that fill the device


def in_turn(plain, other, device, rounds):
    """Return the medians, in seconds, and that of the ratio of neighbours."""
    times = ([], [])
    for turn in range(-2, rounds):  # two to warm up
        for kept, work in zip(times, (plain, other), strict=True):
            wait(device)
            began = time.perf_counter()
            work()
            wait(device)
            if turn >= 0:
                kept.append(time.perf_counter() - began)
    ratio = statistics.median(b / a for a, b in zip(*times, strict=True))
    return *map(statistics.median, times), ratio


def wait(device):
    if device == "cuda":
        torch.cuda.synchronize()


def plain_pass(model, batches):
    for inputs in batches:
        model(inputs).square().sum().backward()
    model.zero_grad()


def relevance_rows(task, device, rounds):
    """Yield a row a size of batch and rule: times of a plain and a relevance pass, their ratio."""
    for batches in (task.inputs, [in_one(task.inputs)]):
        plain = functools.partial(plain_pass, task.model, batches)
        for rule in RULES:
            found = functools.partial(calibrate, task.model, batches, rule)
            what = f"relevance, {rule}, batch {len(batches[0])}"
            yield row(what, in_turn(plain, found, device, rounds), "cost")


def in_one(batches):
    """Return all batches as one; ids are padded by zeros to the longest sentence."""
    if batches[0].is_floating_point():
        return torch.cat(batches)
    longest = max(batch.shape[1] for batch in batches)
    return torch.cat([functional.pad(ids, (0, longest - ids.shape[1])) for ids in batches])


def pattern_rows(task, device, rounds):
    """Yield the rows of 2:4: milliseconds of the dense network, of the sparse one, the speed-up."""
    result = prune(task.model, calibration=task.inputs[:2], granularity="2:4", recover="none")
    dense, sparse = (copy.deepcopy(m).eval().half() for m in (task.model, result.model))
    layers = 0
    for layer in sparse.modules():
        if isinstance(layer, nn.Linear) and not any(n % ROWS for n in layer.weight.shape):
            found = torch.sparse.to_sparse_semi_structured(layer.weight.detach())
            layer.weight = nn.Parameter(found, requires_grad=False)
            layers += 1
    batch = max(task.inputs, key=len)
    batch = batch.half() if batch.is_floating_point() else batch
    for size in (len(batch), LARGE):
        inputs = batch.repeat(-(-size // len(batch)), *[1] * (batch.ndim - 1))[:size]
        works = [functools.partial(forward, network, inputs) for network in (dense, sparse)]
        what = f"2:4, {layers} layers, batch {size}"
        yield row(what, in_turn(*works, device, rounds), "speed-up")
        graphs = [captured(work).replay for work in works]
        yield row(f"{what}, CUDA graph", in_turn(*graphs, device, rounds), "speed-up")


def captured(work):
    """Return the work as a CUDA graph, which replays its kernels alone."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work()  # so that libraries have set up what they keep
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph


def forward(network, inputs):
    with torch.inference_mode():
        network(inputs)


def row(what, times, kind):
    plain, found, ratio = times
    shown = f"cost {ratio:.2f}" if kind == "cost" else f"speed-up {1 / ratio:.2f}"
    return [what, f"{1e3 * plain:.2f} ms", f"{1e3 * found:.2f} ms", shown]


def rows_of(task, device, rounds):
    rows = list(relevance_rows(task, device, rounds))
    try:
        rows += pattern_rows(task, device, rounds)
    except RuntimeError as error:
        rows.append(["2:4", "", "", f"fails: {error}".splitlines()[0][:120]])
    return rows


def blocks(args):
    """Yield a block for each network; none where torch finds no accelerator."""
    if args.quick:
        yield block("the processor", tasks.digits(), "cpu", 3)
        return
    if not torch.cuda.is_available():
        print("accelerator.py: torch finds no accelerator; nothing measured", file=sys.stderr)
        return
    for name in args.networks:
        task = tasks.task(name, tasks.DEPLOYMENTS[name][0], 0, device="cuda")
        yield block(torch.cuda.get_device_name(), task, "cuda", ROUNDS)


def block(named, task, device, rounds):
    rows = rows_of(task, device, rounds)
    versions = {"torch": torch.__version__}  # with that of CUDA
    return {"network": task.network, "device": named, "rows": rows, "versions": versions}


def page(found):
    """Yield the page's parts."""
    yield "# On an accelerator"
    if not found:
        yield (
            "Not measured: no machine with one was at hand. `python benchmarks/accelerator.py` "
            "runs there as it is and fills this page."
        )
        return
    yield (
        f"Made by `python benchmarks/accelerator.py` on {found[-1]['device']}: medians of 15 "
        "rounds in turn. *Relevance*: a plain forward and backward pass with gradients of the "
        "weights, as in training, then `calibrate`; its cost is the ratio. With batches of 50 the "
        "device waits for Python, which calls more operations for relevance; with all calibration "
        "samples in one batch it computes. *2:4*: the forward pass in float16, dense, then with "
        "the linear layers on sparse cores, as torch calls them; in a CUDA graph without what the "
        "calls cost. A speed-up below 1 is a loss."
    )
    header = ["network", "what", "plain or dense", "relevance or 2:4", "ratio"]
    yield common.table(header, ([b["network"], *row] for b in found for row in b["rows"]))
    yield common.measured_with(found[-1]["versions"])


def main():
    args = common.parser(__doc__, NETWORKS).parse_args()
    common.run(args, "accelerator", blocks(args), ("network",), page)


if __name__ == "__main__":
    main()
