"""How much faster cut networks are in real runtimes, beside what their multiply-adds promise.

    python benchmarks/latency.py                      measure all (half an hour)
    python benchmarks/latency.py --networks resnet56
    python benchmarks/latency.py --cuts DIR --cut-only   make the networks alone; timing them, with
                                                      --cuts DIR, wants an idle machine
    python benchmarks/latency.py --quick              digits alone, in seconds; needs no data
    python benchmarks/latency.py --show               the page, from the JSON

Each network is cut to a half and a quarter of its multiply-adds, to any widths and to multiples of
8, repaired, exported, and timed in turn with the dense one, in torch, onnxruntime and OpenVINO, all
in float32. A runtime that answers otherwise than torch is a failure, and so is one that isn't
installed, and a cut that can't be made.
"""

import argparse
import contextlib
import copy
import functools
import importlib
import importlib.util
import itertools
import json
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

import common
import page
import tasks
from flexrel import OBS, BudgetError, MACs, export, load, prune

NETWORKS = ("resnet56", "vgg16", "efficientnet_lite0", "minilm")
LEVELS = (1 / 2, 1 / 4)
MULTIPLES = (1, 8)  # of which the widths that are left are
THREADS, BATCHES = (1, 2), (1, 32)
ROUNDS, SHORTEST = 15, 0.02  # of timings; seconds that each takes at least
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
            multiple_of=multiple_of,
            form="module",
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
        return block | {"rows": [], "failures": {"prune": str(error)}, "versions": versions()}
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
    return block | {"rows": rows, "failures": failures, "versions": versions()}


def _padded(batch, batches):
    """Return ids of sentences as long as the longest of all; images as they are."""
    longest = max(other.shape[-1] for other in batches)
    return torch.nn.functional.pad(batch, (0, longest - batch.shape[-1]))


def versions():
    return {name: version(name) for name in ("torch", "onnxruntime", "openvino") if _is_there(name)}


def _is_there(name):
    return importlib.util.find_spec(name) is not None


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=NETWORKS, choices=tuple(tasks.DEPLOYMENTS))
    parser.add_argument("--cuts", type=Path, help="folder that keeps the cut networks")
    parser.add_argument("--cut-only", action="store_true", help="time nothing")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--show", action="store_true", help="the page, from the JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as passing:
        folder = args.cuts or Path(passing)
        if args.quick:
            block = measure(tasks.digits(), LEVELS[0], 8, folder, 3)
            common.save("latency-quick", {"blocks": [block]})
            return
        for network in () if args.show else args.networks:
            task = tasks.task(common.data_packs(), network, tasks.DEPLOYMENTS[network][0], 0)
            for level, multiple_of in itertools.product(LEVELS, MULTIPLES):
                if args.cut_only:
                    with contextlib.suppress(BudgetError):  # a failure of the timed run
                        cut(task, level, multiple_of, folder)
                    continue
                block = measure(task, level, multiple_of, folder, ROUNDS)
                print(block, flush=True)
                common.keep("latency", block, "network", "level", "multiple_of")
    if not args.cut_only:
        page.write()


if __name__ == "__main__":
    main()
