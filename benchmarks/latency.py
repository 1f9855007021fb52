"""How much faster cut networks are in real runtimes, beside what their multiply-adds promise.

    python benchmarks/latency.py                      measure all (half an hour)
    python benchmarks/latency.py --networks resnet56
    python benchmarks/latency.py --cuts DIR --cut-only   make the networks alone; timing them, with
                                                      --cuts DIR, wants an idle machine
    python benchmarks/latency.py --promise            networks pruned to a latency, beside what
                                                      they then take (ten minutes)
    python benchmarks/latency.py --quick              digits alone, in seconds; needs no data
    python benchmarks/latency.py --show               the page, from the JSON

Each network is cut to a half and a quarter of its multiply-adds, to any widths and to multiples of
8, repaired, exported, and timed in turn with the dense one, in torch, onnxruntime and OpenVINO, all
in float32. A runtime that answers otherwise than torch is a failure, and so is one that isn't
installed, and a cut that can't be made.
"""

import contextlib
import copy
import functools
import importlib
import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import common
import tasks
from flexrel import OBS, BudgetError, Latency, MACs, PruneOptions, export, load, prune

NETWORKS = ("resnet56", "vgg16", "efficientnet_lite0", "minilm")
LEVELS = (1 / 2, 1 / 4)
MULTIPLES = (1, 8)  # of which the widths that are left are
THREADS, BATCHES = (1, 2), (1, 32)
ROUNDS, SHORTEST = 15, 0.02  # of timings; seconds that each takes at least
PACKAGES = ("torch", "onnxruntime", "openvino")
HEADER = ("runtime", "threads", "batch", "dense, ms", "pruned, ms", "speed-up", "of the ideal")
PROMISED = "latency-promise"  # their JSON
PROMISES = (  # network, runtime, batch, share of the dense network's time
    ("resnet20", "onnxruntime", 1, 0.5),
    ("resnet20", "torch", 32, 0.5),
    ("resnet20", "onnxruntime", 1, 0.7),
    ("resnet56", "onnxruntime", 1, 0.5),
    ("resnet20", "openvino", 1, 0.5),
    ("minilm", "openvino", 1, 0.6),
)
CLOSE = 1e-3  # of the largest output: what a runtime may differ by


# --- runtimes: each returns a function of a batch -------------------------------------------


def in_torch(network, _path, threads):
    torch.set_num_threads(threads)
    network = network.eval().to(memory_format=torch.channels_last)

    def call(inputs):
        with torch.inference_mode():
            return network(inputs)

    return call


def in_onnxruntime(_network, path, threads):
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    # Else the threads of the other network's session go on spinning, and take its cores.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (wanted,) = session.get_inputs()
    return lambda inputs: session.run(None, {wanted.name: inputs})[0]


def in_openvino(_network, path, threads):
    openvino = importlib.import_module("openvino")
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    request = compiled.create_infer_request()
    return lambda inputs: request.infer([inputs])[compiled.output(0)]


RUNTIMES = {"torch": in_torch, "onnxruntime": in_onnxruntime, "OpenVINO": in_openvino}
OF_BUDGETS = {name.lower(): make for name, make in RUNTIMES.items()}


# --- timing ---------------------------------------------------------------------------------


def in_turn(dense, pruned, rounds):
    """Return the seconds a call of each, `[rounds]`; who goes first changes every round."""
    calls = []
    for work in (dense, pruned):
        work()
        calls.append(max(1, round(SHORTEST / common.timed(work))))
    found = ([], [])
    for turn in range(rounds):
        for which in (0, 1) if turn % 2 == 0 else (1, 0):
            work = (dense, pruned)[which]
            began = time.perf_counter()
            for _ in range(calls[which]):
                work()
            found[which].append((time.perf_counter() - began) / calls[which])
    return found


def compared(runtime, threads, inputs, networks, paths, rounds):
    """Return the times of the dense and of the cut network in one runtime."""
    mine = inputs.numpy() if runtime != "torch" else inputs
    works = []
    for network, path in zip(networks, paths, strict=True):
        call = RUNTIMES[runtime](network, path, threads)
        with torch.inference_mode():
            wanted = network(inputs).numpy()
        off = np.abs(np.asarray(call(mine)) - wanted).max() / np.abs(wanted).max()
        if not off <= CLOSE:
            raise RuntimeError(f"differs from torch by {off:.2g} of the largest output")
        works.append(functools.partial(call, mine))
    dense, pruned = in_turn(*works, rounds)
    low, middle, high = statistics.quantiles(np.divide(dense, pruned), n=4)
    return {
        "runtime": runtime,
        "threads": threads,
        "batch": len(inputs),
        "dense_ms": 1e3 * statistics.median(dense),
        "pruned_ms": 1e3 * statistics.median(pruned),
        "speedup": middle,
        "low": low,
        "high": high,
    }


def cut(task, level, multiple_of, folder):
    """Return the cut network and its share of multiply-adds; what is in the folder is taken."""
    place = folder / f"{task.network}-{level:g}-{multiple_of}"
    if not place.is_dir():
        prune(
            task.model,
            calibration=task.inputs,
            budgets=[MACs(level)],
            criterion=OBS(),
            options=PruneOptions(multiple_of=multiple_of, form="module"),
        ).save(place)
    told = json.loads((place / "result.json").read_text())["achieved"]
    network = load(place / "model.flexrel", into=copy.deepcopy(task.model))
    return network, told["macs"] / told["macs_dense"]


def measure(task, level, multiple_of, folder, rounds):
    """Return a block: a network, how far it was cut, and the times of both."""
    block = {"network": task.network, "level": level, "multiple_of": multiple_of}
    try:
        network, macs = cut(task, level, multiple_of, folder)
    except BudgetError as error:
        return block | {
            "rows": [],
            "failures": {"prune": str(error)},
            "versions": common.versions(*PACKAGES),
        }
    inputs = torch.cat([_padded(batch, task.inputs) for batch in task.inputs])
    networks = [task.model.eval(), network.eval()]
    rows, failures = [], {}
    with tempfile.TemporaryDirectory() as exports:
        paths = [str(Path(exports) / f"{name}.onnx") for name in ("dense", "pruned")]
        for one, path in zip(networks, paths, strict=True):
            export(one, inputs[:2], path)
        for runtime in RUNTIMES:
            try:
                rows += [
                    compared(runtime, threads, inputs[:batch], networks, paths, rounds)
                    for threads in THREADS
                    for batch in BATCHES
                ]
            except (ImportError, RuntimeError) as error:
                failures[runtime] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    scores = [task.test.score(task.test(one)) for one in networks]
    block |= {"macs": macs, "scores": scores}
    return block | {"rows": rows, "failures": failures, "versions": common.versions(*PACKAGES)}


def _padded(batch, batches):
    """Return ids of sentences as long as the longest of all; images as they are."""
    longest = max(other.shape[-1] for other in batches)
    return torch.nn.functional.pad(batch, (0, longest - batch.shape[-1]))


def blocks(args, folder):
    """Yield a block for each network and cut."""
    if args.quick:
        yield measure(tasks.digits(), LEVELS[0], 8, folder, 3)
        return
    for task, level, multiple_of in wanted(args):
        yield measure(task, level, multiple_of, folder, ROUNDS)


def wanted(args):
    for network in args.networks:
        task = tasks.task(network, tasks.DEPLOYMENTS[network][0], 0)
        for level, multiple_of in itertools.product(LEVELS, MULTIPLES):
            yield task, level, multiple_of


def promise(task, runtime, batch, share):
    """Return a block: a network pruned to a share of its time, what that is, and what it takes."""
    budget = Latency(share, runtime, batch)
    block = {"network": task.network, "runtime": runtime, "batch": batch, "share": share}
    block["versions"] = common.versions(*PACKAGES)
    began = time.perf_counter()
    try:
        result = prune(task.model, calibration=task.inputs, budgets=[budget], criterion=OBS())
    except BudgetError as error:
        return block | {"failure": str(error), "seconds": time.perf_counter() - began}
    timing = result.timing
    return block | {
        "seconds": time.perf_counter() - began,
        "dense_ms": timing.dense,
        "pruned_ms": timing.milliseconds,
        "again": again(task, result, budget),
        "macs": result.achieved.macs / result.dense.macs,
        "multiple_of": result.options["multiple_of"],
        "scores": [task.test.score(task.test(one)) for one in (task.model, result.model)],
    }


def again(task, result, budget):
    """Return the share of the time that its ONNX, or its program of torch, takes at the best."""
    inputs = torch.cat([_padded(batch, task.inputs) for batch in task.inputs])[: budget.batch]
    works = []
    with tempfile.TemporaryDirectory() as exports, torch.inference_mode():
        for name, network in (("dense", task.model), ("pruned", result.model)):
            in_torch_itself = budget.runtime == "torch"
            path = str(Path(exports) / f"{name}.{'pt2' if in_torch_itself else 'onnx'}")
            export(network.eval(), inputs, path)
            if in_torch_itself:
                torch.set_num_threads(budget.threads)
                works.append(functools.partial(torch.export.load(path).module(), inputs))
            else:
                call = OF_BUDGETS[budget.runtime](network, path, budget.threads)
                works.append(functools.partial(call, inputs.numpy()))
        dense, pruned = map(min, in_turn(*works, ROUNDS))
    return pruned / dense


def promises(args):
    """Yield a block for each network that is pruned to a latency."""
    if args.quick:
        yield promise(tasks.digits(), "torch", 32, 0.8)
        return
    for network, runtime, batch, share in PROMISES:
        if args.runtime not in (None, runtime):
            continue
        task = tasks.task(network, tasks.DEPLOYMENTS[network][0], 0)
        yield promise(task, runtime, batch, share)


# --- page -----------------------------------------------------------------------------------


def page(found):
    """Yield the page's parts: a summary, and a table for each cut."""
    if not found:
        return
    yield "# Latency"
    yield (
        "Made by `python benchmarks/latency.py`: networks cut by `prune` to half and a quarter of "
        "their multiply-adds, with any widths and with multiples of 8, scored by OBS and repaired, "
        "exported, timed in turn with the dense one in the same process; medians of 15 rounds, "
        "with the quartiles of the ratio. *Of the ideal*: the speed-up over that of multiply-adds. "
        "Accuracy in percent, of the data of `benchmarks/tasks.py` that report, in use as trained."
    )
    yield from in_short(found)
    yield from kept(common.read(PROMISED))
    for block in found:
        yield from _cut(block)
    yield common.measured_with(found[-1]["versions"])


def in_short(found):
    """Yield a table of the speed-up in each runtime, a row for each kind of cut.

    Of the networks that were measured with every kind of widths, so that these can be compared.
    """
    measured = {(b["level"], b["multiple_of"], b["network"]): b for b in found if b["rows"]}
    multiples = sorted({multiple for _, multiple, _ in measured})
    runtimes = list(dict.fromkeys(r["runtime"] for b in measured.values() for r in b["rows"]))
    rows = []
    for level in sorted({level for level, *_ in measured}, reverse=True):
        networks = [network for at, _, network in measured if at == level]
        networks = [
            n for n in dict.fromkeys(networks) if all((level, m, n) in measured for m in multiples)
        ]
        for multiple in multiples if networks else ():
            blocks = [measured[level, multiple, network] for network in networks]
            lost = (before - after for before, after in (block["scores"] for block in blocks))
            lost = (f"{n} {100 * points:.1f}" for n, points in zip(networks, lost, strict=True))
            speedups = [_speedup(blocks, runtime) for runtime in runtimes]
            rows.append([f"{level:g}, {_widths(multiple)}", *speedups, ", ".join(lost)])
    if not rows:
        return
    yield (
        "How many times faster a network is in a real runtime, cut to a share of its "
        "multiply-adds: geometric mean and range over networks, 1 and 2 threads, batches of 1 "
        "and 32; and the points of accuracy that each network lost."
    )
    yield common.table(["multiply-adds", *runtimes, "accuracy lost"], rows)


def kept(found):
    """Yield a table of promises: what was asked for, and what was measured."""
    rows = []
    for one in found:
        row = [f"{one['network']}, {one['runtime']}, batch {one['batch']}", f"{one['share']:.0%}"]
        if "failure" in one:
            rows.append([*row, *[""] * 5, common.quoted(one["failure"])])
            continue
        share = one["pruned_ms"] / one["dense_ms"]
        before, after = (100 * score for score in one["scores"])
        times = f"{one['dense_ms']:.2f} → {one['pruned_ms']:.2f}"
        rest = [f"{one['macs']:.3f}", one["multiple_of"], f"{before:.1f} → {after:.1f}"]
        rows.append([*row, f"{share:.1%}", f"{one['again']:.1%}", times, *rest])
    if rows:
        yield (
            "Made by `python benchmarks/latency.py --promise`: networks pruned to a share of the "
            "dense network's time in a runtime, on one thread. *Measured*: as the result has it, "
            f"in a process of its own. *Again*: afterwards, the fastest of {ROUNDS} turns of each."
        )
        header = [
            "network",
            "asked",
            "measured",
            "again",
            "ms",
            "multiply-adds",
            "multiple of",
            "accuracy",
        ]
        yield common.table(header, rows)


def _speedup(blocks, runtime):
    """Return the geometric mean and the range in a runtime."""
    found = [r["speedup"] for b in blocks for r in b["rows"] if r["runtime"] == runtime]
    if not found:
        return ""
    return f"{statistics.geometric_mean(found):.2f} ({min(found):.2f} to {max(found):.2f})"


def _cut(block):
    if block["rows"]:
        before, after = (100 * score for score in block["scores"])
        lost = f" {before:.1f} → {after:.1f} %"
    else:
        lost = ""
    share = block.get("macs", block["level"])
    widths = _widths(block["multiple_of"])
    yield f"**{block['network']}**, {share:.3f} of its multiply-adds, {widths}:{lost}"
    if block["rows"]:
        yield common.table(HEADER, [_row(row, block["macs"]) for row in block["rows"]])
    yield common.listed(f"{name}: {why}" for name, why in block["failures"].items())


def _widths(multiple_of):
    return "any widths" if multiple_of == 1 else f"widths in multiples of {multiple_of}"


def _row(row, macs):
    return [
        row["runtime"],
        row["threads"],
        row["batch"],
        f"{row['dense_ms']:.2f}",
        f"{row['pruned_ms']:.2f}",
        f"{row['speedup']:.2f} ({row['low']:.2f}-{row['high']:.2f})",
        f"{row['speedup'] * macs:.2f}",
    ]


def main():
    parser = common.parser(__doc__, NETWORKS)
    parser.add_argument("--cuts", type=Path, help="folder that keeps the cut networks")
    parser.add_argument("--cut-only", action="store_true", help="time nothing")
    parser.add_argument("--promise", action="store_true", help="prune to latencies alone")
    parser.add_argument("--runtime", choices=OF_BUDGETS, help="of --promise, the others left as is")
    args = parser.parse_args()
    if args.promise:
        for block in promises(args):
            name = f"{PROMISED}-quick" if args.quick else PROMISED
            common.keep(name, block, "network", "runtime", "batch", "share")
            print(json.dumps(block), flush=True)
        if not args.quick:
            common.write("latency", page(common.read("latency")))
        return
    with tempfile.TemporaryDirectory() as passing:
        folder = args.cuts or Path(passing)
        if args.cut_only:
            for task, level, multiple_of in wanted(args):
                with contextlib.suppress(BudgetError):  # a failure of the timed run
                    cut(task, level, multiple_of, folder)
            return
        keys = ("network", "level", "multiple_of")
        common.run(args, "latency", blocks(args, folder), keys, page)


if __name__ == "__main__":
    main()
