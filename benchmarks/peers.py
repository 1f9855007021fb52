"""Other libraries on the same work: one network, one set of data, one budget, one evaluation.

    python benchmarks/peers.py                       measure all (hours on two cores)
    python benchmarks/peers.py --only "resnet56 channels 1/3" --methods FlexRel "Torch-Pruning L2"
    python benchmarks/peers.py --quick               digits alone, in a minute; needs no data
    python benchmarks/peers.py --show                the page from the JSON alone

Channels are cut to the same multiply-adds, counted by one ruler; weights to the same bytes of one
encoder. Each method runs in a process of its own, which says how long it took and by how much its
memory rose; what it can't do is a row with its message. Then all are trained alike, for a short
time. At last FlexRel goes down to the accuracy of the best of the others, before training and after
it: what it needs there.
"""

import argparse
import io
import json
import lzma
import math
import platform
import subprocess
import sys
import tempfile
import time
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace

import torch

import aims
import cases
import common
import methods
import page
import rivals
import sizes
from flexrel import OBS, FlexRel, Magnitude, Relevance
from flexrel.io import encode
from training import best_trained

TRAINED = "FlexRel, trained, at the best's trained accuracy"  # of `aims.ROLES`
WALK = 7200  # seconds for FlexRel's walk down to an accuracy
MEBI = 2**20


# --- one method, in its own process ---------------------------------------------------------


def measure(case, method):
    """Return the row of a method."""
    common.declare_operators()  # some libraries load torchvision
    torch.manual_seed(0)
    task = case.task()
    ruler = cases.Ruler(case, task)
    with common.Peak() as peak:
        network, seconds = methods.made_by(method, case, task, ruler)
    network = network.eval()
    row = {
        "score": task.test.score(task.test(network)),
        "macs": ruler.multiply_adds(network) / ruler.multiply_adds(task.model),
        "parameters": sum(int(p.count_nonzero()) for p in network.parameters()),
        "packed": len(encode(network, sizes.VALUES)),
        "call_s": seconds,
        "peak_mib": peak.bytes / MEBI,
        **files(method, network),
    }
    if task.calibration[0][1] is not None:
        row["trained"] = task.test.score(task.test(best_trained(task, network)))
    return row


def files(method, network):
    """Return the bytes of the file that is left on disk, raw and after xz."""
    if method.startswith(methods.OURS):
        data = encode(network)
    else:
        buffer = io.BytesIO()
        torch.save(network.state_dict(), buffer)
        data = buffer.getvalue()
    return {"file": len(data), "xz": len(lzma.compress(data, preset=9))}


def at_best(case, role, score):
    """Return the bytes that FlexRel needs for an accuracy, and what its network there is.

    Weights that are trained afterwards are repaired first or not: what is better by labelled data
    that nothing is reported on.
    """
    task = case.task()
    if case.granularity == "channel":
        own = (OBS(), FlexRel(), Magnitude(), Relevance())
    else:
        own = (FlexRel(1 / 3, "product"), FlexRel(0.1))
    finish, ways = None, {"": True}
    if role == TRAINED:
        own, finish = own[:1], partial(best_trained, task)
        if case.granularity == "element":
            ways[", not repaired"] = False
    workshops = []
    for note, repair in ways.items():
        forms = {form.name + note: form for form in own}
        made = sizes.Workshop(task, case.granularity, forms, repair=repair, finish=finish)
        workshops.append(made)

    def at(step):
        closest = (w.best_at(tuple(w.forms), lambda p: p.divergence, step) for w in workshops)
        return max((p for p in closest if p), key=lambda p: p.choose, default=None)

    drop = workshops[0].dense.test - score
    like = SimpleNamespace(reached=lambda _: round(math.log(case.level, workshops[0].step)))
    curve = sizes.Curve(workshops[0], at, [like], drops=(drop,))
    smallest = curve.smallest(drop)
    found = {"packed": round(curve.needed(drop)), "macs": smallest.macs, "form": smallest.form}
    return {"score": score, **found}


# --- all methods ----------------------------------------------------------------------------


def in_process(case, method, extra=()):
    """Return the row of a method, run by itself: its failure and its end in time are rows too."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "row.json"
        one = ["--case", case.name, "--methods", method, "--out", str(out), *extra]
        began, limit = time.monotonic(), WALK if method in aims.ROLES else methods.LIMIT
        try:
            done = subprocess.run(
                [sys.executable, __file__, *one],
                timeout=limit,
                check=False,
                capture_output=True,
                text=True,
            )
        except subprocess.TimeoutExpired:
            return {"failure": f"took longer than {limit} s"}
        if out.is_file():
            return json.loads(out.read_text()) | {"all_s": time.monotonic() - began}
        last = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
        return {"failure": last[:300]}


def run(chosen, wanted, file):
    for case in chosen:
        dense, rows = _known(file, case) or (_dense(case), {})
        for method in methods.names(case.network, case.granularity):
            if wanted and method not in wanted:
                continue
            rows[method] = in_process(case, method)
            print(case.name, method, rows[method], flush=True)
            _keep(file, case, dense, rows)
        others = [row for name, row in rows.items() if not name.startswith(methods.OURS)]
        for role, (key, _) in aims.ROLES.items():
            scores = [row[key] for row in others if key in row]
            if scores and (not wanted or role in wanted):
                rows[role] = in_process(case, role, ["--score", str(max(scores))])
                print(case.name, role, rows[role], flush=True)
                _keep(file, case, dense, rows)


def _dense(case):
    """Return what the dense network does and costs."""
    task = case.task()
    outcomes = task.test(task.model)
    return {
        "score": task.test.score(outcomes),
        "constant": task.test.constant(),
        "packed": len(encode(task.model, sizes.VALUES)),
        "samples": len(outcomes),
        "unit": task.test.unit,
        "files": files("dense", task.model),
    }


def _known(file, case):
    """Return the dense network and the rows that were measured, if any were."""
    found = (block for block in common.blocks(file) if block["case"] == case.name)
    return next(((block["dense"], block["rows"]) for block in found), None)


def _keep(file, case, dense, rows):
    block = {"case": case.name, "network": case.network, "granularity": case.granularity}
    block |= {"dense": dense, "rows": rows, "versions": _versions()}
    block |= {"threads": torch.get_num_threads()}
    common.keep(file, block, "case")


def _versions():
    found = {"python": platform.python_version()}
    for name in rivals.PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def child(args):
    """Measure one method and write its row; an error ends the process, its last line says why."""
    case = next(case for case in (*cases.CASES, *cases.QUICK) if case.name == args.case)
    (method,) = args.methods
    row = measure(case, method) if args.score is None else at_best(case, method, args.score)
    if not all(math.isfinite(v) for v in row.values() if isinstance(v, float)):
        raise RuntimeError("a value that is not finite")
    Path(args.out).write_text(json.dumps(row))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", default="", help="part of a case's name")
    parser.add_argument("--methods", nargs="+", help="of these alone; other rows stay")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--show", action="store_true", help="the page, from the JSON")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    parser.add_argument("--score", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        child(args)
        return
    known = cases.QUICK if args.quick else cases.CASES
    chosen = [case for case in known if args.only in case.name]
    if args.quick:
        run(chosen, args.methods, "peers-quick")
        return
    if not args.show:
        run(chosen, args.methods, "peers")
    page.write()


if __name__ == "__main__":
    main()
