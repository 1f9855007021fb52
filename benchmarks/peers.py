"""Other libraries on the same work: one network, one set of data, one budget, one evaluation.

    python benchmarks/peers.py                       measure all (hours on two cores)
    python benchmarks/peers.py --cases "resnet56 channels 1/3" --methods FlexRel "Torch-Pruning L2"
    python benchmarks/peers.py --quick               digits alone, in a minute; needs no data
    python benchmarks/peers.py --show                the page, from the JSON

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
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import torch

import common
import figures
import rivals
import sizes
from cases import CASES, OURS, QUICK, UNITS, Ruler, best_trained, made_by, methods_of
from flexrel import OBS, FlexRel, Magnitude, Relevance
from flexrel.io import encode

SMALLER = 0.60  # times the best other's bytes, at its accuracy: what was set out to be shown
TRAINED = "FlexRel, trained, at the best's trained accuracy"
ROLES = {  # FlexRel at the accuracy of the best other method: at which one, and how
    "FlexRel at the best's accuracy": ("score", "none trained, FlexRel repaired"),
    TRAINED: ("trained", "all trained alike"),
    "FlexRel, untrained, at the best's trained accuracy": (
        "trained",
        "the others trained, FlexRel repaired alone",
    ),
}
WALK = 7200  # seconds for FlexRel's walk down to an accuracy


# --- one method, in its own process ----------------------------------------------------------


def measure(case, method):
    """Return the row of a method."""
    common.declare_operators()  # some libraries load torchvision
    torch.manual_seed(0)
    task = case.task()
    ruler = Ruler(case, task)
    with common.Peak() as peak:
        network, seconds = made_by(method, case, task, ruler)
    network = network.eval()
    row = {
        "score": task.test.score(task.test(network)),
        "macs": ruler.multiply_adds(network) / ruler.multiply_adds(task.model),
        "parameters": sum(int(p.count_nonzero()) for p in network.parameters()),
        "packed": len(encode(network, sizes.VALUES)),
        "call_s": seconds,
        "peak_mib": peak.bytes / common.MIB,
        **files(method, network),
    }
    if task.calibration[0][1] is not None:
        row["trained"] = task.test.score(task.test(best_trained(task, network)))
    return row


def files(method, network):
    """Return the bytes of the file that is left on disk, raw and after xz."""
    if method.startswith(OURS):
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
        began, limit = time.monotonic(), WALK if method in ROLES else rivals.LIMIT
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


def blocks(args):
    """Yield the block of a case whenever there is one more of its rows."""
    file = "peers-quick" if args.quick else "peers"
    for case in QUICK if args.quick else CASES:
        if args.cases in case.name:
            yield from rows_of(case, args.methods, file)


def rows_of(case, wanted, file):
    block = next((b for b in common.read(file) if b["case"] == case.name), None) or {
        "case": case.name,
        "network": case.network,
        "granularity": case.granularity,
        "dense": dense_of(case),
        "rows": {},
    }
    block |= {"versions": common.versions(*rivals.PACKAGES), "threads": torch.get_num_threads()}
    rows = block["rows"]
    for method in methods_of(case.network, case.granularity):
        if not wanted or method in wanted:
            rows[method] = in_process(case, method)
            print(method, rows[method])
            yield block
    others = [row for name, row in rows.items() if not name.startswith(OURS)]
    for role, (key, _) in ROLES.items():
        scores = [row[key] for row in others if key in row]
        if scores and (not wanted or role in wanted):
            rows[role] = in_process(case, role, ["--score", str(max(scores))])
            print(role, rows[role])
            yield block


def dense_of(case):
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


def child(args):
    """Measure one method and write its row; an error ends the process, its last line says why."""
    case = next(case for case in (*CASES, *QUICK) if case.name == args.case)
    (method,) = args.methods
    row = measure(case, method) if args.score is None else at_best(case, method, args.score)
    if not all(math.isfinite(v) for v in row.values() if isinstance(v, float)):
        raise RuntimeError("a value that is not finite")
    Path(args.out).write_text(json.dumps(row))


# --- page ------------------------------------------------------------------------------------


ABOUT = f"""
Made by `python benchmarks/peers.py`. Channels: the same multiply-adds at most; weights: the same
bytes at most, through one encoder, which is *packed*, float16. The best of a column is bold. ± is
one standard error.

- Libraries are called as their documentation does (`benchmarks/rivals.py`), the knob searched in at
  most {rivals.TRIES} calls until it is within {100 * rivals.MET:.0f} % of the budget, or the next
  step is above it, or half of the {rivals.LIMIT // 60} minutes that each may take are over.
  Criteria marked *(paper)* are written from their papers (`benchmarks/published.py`). FlexRel is
  called with its defaults.
- *Trained*: 40 steps of 32 of the labelled calibration samples at the rate, of three, that suits
  each network best, or none where it is better as it is, on labelled data that nothing is reported
  on; zeros held.
- *At the accuracy of the best other*: the smallest network of a grid that reaches it, with any
  number of multiply-adds; of FlexRel's own scores the one that diverges least, repaired; where it
  is trained, OBS of channels, and of weights the product, repaired first or not, what is better on
  that same data.
- *File*: what is left on disk, torch.save of the state or `.flexrel`, float32, and after xz -9.
  *Time* is that of the call, *MiB* by how much the process grew in all calls of the search; other
  work shared the processor, so that times are rough.
- Calibration data and batches to train on were drawn once (seed 0).
"""


def page(found):
    """Yield the page's parts."""
    if not found:
        return
    yield "# Other libraries on the same work"
    yield ABOUT
    if short := list(in_short([block for block in found if not missing(block)])):
        yield "## In short"
        yield from short
    yield "## Case by case"
    yield "![Accuracy against bytes, of FlexRel and other libraries](../methods.png)"
    for block in found:
        yield from _case(block)
    known = {block["case"] for block in found}
    rest = [case.name for case in CASES if case.name not in known]
    yield f"Not run: {'; '.join(rest)}." if rest else ""
    yield common.measured_with(found[-1]["versions"])


def _case(block):
    dense = block["dense"]
    yield (
        f"**{block['case']}**: dense {100 * dense['score']:.1f} %, "
        f"{dense['packed'] / 1e3:,.0f} kB packed; n = {dense['samples']:,}; threads: "
        f"{block['threads']}"
    )
    header = ["method", "accuracy", "trained", "MACs", "packed, kB", "file, kB", "xz, kB", "time"]
    yield common.table([*header, "MiB"], _rows(block))
    failed = [f"{n}: {r['failure']}" for n, r in block["rows"].items() if "failure" in r]
    if failed:
        yield "Failures:\n\n" + common.listed(failed)
    without = missing(block)
    yield f"Not run: {'; '.join(without)}." if without else ""
    ratios = {role: at_best_ratio(block, role) for role in ROLES}
    said = (_said(block, role, ratio) for role, ratio in ratios.items() if ratio is not None)
    yield common.listed(said)


def _said(block, role, ratio):
    key, when = ROLES[role]
    (name, best), found = best_other(block, key), block["rows"][role]
    macs = ""
    if block["granularity"] == "channel" and "macs" in found:
        macs = f", with {found['macs']:.3f} of the multiply-adds ({name} {best['macs']:.3f})"
    return (
        f"At the accuracy of the best other, {name} with {100 * best[key]:.1f} %, {when}: FlexRel "
        f"({found['form']}) takes {found['packed'] / 1e3:,.0f} kB, {percent(ratio)} % of its "
        f"bytes{macs}."
    )


def _rows(block):
    rows = [(n, r) for n, r in block["rows"].items() if "call_s" in r]
    rows.sort(key=lambda pair: -pair[1]["score"])
    keys = ("score", "trained")
    best = {key: max((r.get(key, 0) for _, r in rows), default=0) for key in keys}
    error = math.sqrt(0.25 / block["dense"]["samples"])
    for name, row in rows:
        cells = []
        for key in keys:
            value = row.get(key)
            shown = "" if value is None else _percent(value, block["dense"], error)
            cells.append(f"**{shown}**" if value is not None and value == best[key] else shown)
        numbers = [f"{row[key] / 1e3:,.0f}" for key in ("packed", "file", "xz")]
        seconds = [f"{row['call_s']:.1f} s", f"{row['peak_mib']:,.0f}"]
        yield [name, *cells, f"{row['macs']:.3f}", *numbers, *seconds]


def _percent(value, dense, most):
    error = math.sqrt(value * (1 - value) / dense["samples"]) if dense["unit"] == "top-1" else most
    return f"{100 * value:.1f} ± {100 * error:.1f}"


def in_short(rivals):
    """Yield what FlexRel takes at the accuracy of the best other method."""
    rows, notes = [], []
    for role, (_, how) in ROLES.items():
        kinds = {kind: [] for kind in UNITS}
        for block in rivals:
            ratio = 1.0 if _is_lost(block, role) else at_best_ratio(block, role)
            if ratio is not None:
                kinds[block["granularity"]].append(ratio)
        ratios = [ratio for found in kinds.values() for ratio in found]
        if not ratios:
            continue
        found = math.exp(common.mean([(math.log(ratio), 0.0) for ratio in ratios])[0])
        rows.append(
            [
                how,
                _share(ratios),
                f"≤ {100 * SMALLER:.0f} %: {'met' if found <= SMALLER else 'not met'}",
                *(_share(each) for each in kinds.values()),
                f"{percent(median(ratios))} %",
                f"{percent(min(ratios))} to {percent(max(ratios))} %",
                f"{len(ratios)} of {len(CASES)}",
            ]
        )
        if why := _not_counted(rivals, role):
            notes.append(f"- {how[0].upper()}{how[1:]}: {'; '.join(why)}.")
    if not rows:
        return
    yield (
        "Bytes that FlexRel takes at the accuracy of the best other method of each case, as a "
        "share of that one's, through one encoder: geometric mean, median and range over cases."
    )
    kinds = (f"{kind} alone" for kind in UNITS.values())
    yield common.table(["", "of its bytes", "asked", *kinds, "median", "range", "cases"], rows)
    if notes:
        yield "\n".join(notes)


def percent(ratio):
    """Return a ratio in percent, to a tenth below ten."""
    return f"{100 * ratio:.{1 if ratio < 0.095 else 0}f}"


def _share(ratios):
    """Return the geometric mean in percent, with the error of one of several."""
    if not ratios:
        return ""
    found, error = common.mean([(math.log(ratio), 0.0) for ratio in ratios])
    about = f" ± {100 * math.exp(found) * error:.0f}" if len(ratios) > 1 else ""
    return f"{percent(math.exp(found))}{about} %"


def missing(block):
    """Return the methods that were not run on a case."""
    wanted = methods_of(block["network"], block["granularity"])
    return [name for name in wanted if name not in block["rows"]]


def _not_counted(blocks, role):
    """Return in words for which cases there is no ratio, or none that was seen, and why."""
    known = [b for b in blocks if best_other(b, ROLES[role][0])]
    low = [block for block in known if _is_low(block, role)]
    lost = [block for block in known if _is_lost(block, role)]
    rest = [b for b in known if b not in low and b not in lost and at_best_ratio(b, role) is None]
    said = {
        "counted as 100 %: {} where FlexRel was not seen to reach that accuracy": lost,
        "not counted: {} where the best other is closer to one answer for all than to dense": low,
        "not counted: {} where it was not measured": rest,
    }
    return [why.format(len(found)) for why, found in said.items() if found]


def at_best_ratio(block, role):
    """Return FlexRel's bytes over those of the best other method, at that one's accuracy.

    None where it was not measured, or where the best other is little better than a guess.
    """
    best, found = best_other(block, ROLES[role][0]), block["rows"].get(role, {})
    if not best or "packed" not in found or found["score"] != best[1][ROLES[role][0]]:
        return None  # measured before another method became the best
    return None if _is_low(block, role) else found["packed"] / best[1]["packed"]


def _is_low(block, role):
    """Return whether the best other is little better than one answer to all: bytes say nothing."""
    key, dense = ROLES[role][0], block["dense"]
    score = best_other(block, key)[1][key]
    return 2 * (score - dense["constant"]) < dense["score"] - dense["constant"]


def _is_lost(block, role):
    """Return whether FlexRel was not seen to reach the accuracy of the best other method."""
    best, found = best_other(block, ROLES[role][0]), block["rows"].get(role, {})
    return bool(best) and not _is_low(block, role) and "failure" in found


def best_other(block, key):
    """Return the name and row of the best of the others; None where none was measured."""
    rows = [(n, r) for n, r in block["rows"].items() if key in r and not n.startswith(OURS)]
    return max(rows, key=lambda pair: pair[1][key], default=None)


def main():
    parser = common.parser(__doc__)
    parser.add_argument("--cases", default="", help="part of a case's name")
    parser.add_argument("--methods", nargs="+", help="of these alone; other rows stay")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    parser.add_argument("--score", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        child(args)
        return
    common.run(args, "peers", blocks(args), ("case",), page)
    if not args.quick:
        draw()


def draw():
    """Draw the page's figure."""
    if found := common.read("peers"):
        figures.methods(found, common.PAGES.parent / "methods.png")


if __name__ == "__main__":
    main()
