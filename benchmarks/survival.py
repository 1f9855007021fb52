"""Which networks can be cut to half their multiply-adds as they are, by FlexRel and two others.

    python benchmarks/survival.py                measure, then write the tables into README.md
    python benchmarks/survival.py --missing      only what results/survival.json doesn't have

The call names one criterion: choosing among eleven by data says nothing of random weights.
Needs the extra "oracles", torch-pruning and torch-kirigami. Each network and tool has a process of
its own and a time limit, so that what crashes or hangs is a result. Results are saved after each.
"""

import argparse
import faulthandler
import fnmatch
import json
import re
import statistics
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib.metadata import version

import torch

import common
import survivors
from catalogue import FAMILIES
from cutters import (
    BUDGET,
    STAGES,
    TARGET,
    TOOLS,
    at_target,
    multiply_adds,
    output_shape,
    parameters,
    warm_up,
)

OUTCOMES = ("cut", "broken", "refused", "crashed", "timeout")


class Skipped(Exception):  # noqa: N818 - no error of the network's
    """The network does not run by itself."""


# --- one process for each network and tool ----------------------------------------------------


def prepared(family, name):
    """Return a network, its batch and what is known of it before it is cut."""
    make = dict(FAMILIES[family]())[name]
    torch.manual_seed(0)
    try:
        model, batch = make()
        survivors.fresh(model)
        if family != "zoo":  # those are trained
            survivors.enliven(model, batch)
        survivors.plain(model, batch)
        survivors.fresh(model)
        dense = {"shape": output_shape(model, batch), "macs_dense": multiply_adds(model, batch)}
    except Exception as error:
        raise Skipped(survivors.reason(error)) from error
    return model, batch, dense | {"parameters_dense": parameters(model)}


def one(family, name, tool, limit):
    """Measure, and print what is known so far as a line of JSON whenever there is more."""
    row = {"family": family, "network": name, "tool": tool, "outcome": "crashed"}
    row |= {"limit_s": limit}

    def report(news, seconds=None):
        row.update(news)
        print(json.dumps(row), flush=True)
        if seconds:  # the process ends when they are over, whatever it does
            faulthandler.dump_traceback_later(seconds, exit=True)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs, on loading and on untrained networks
        try:
            model, batch, dense = prepared(family, name)
        except Skipped as error:
            report({"outcome": "skipped", "reason": f"does not run by itself: {error}"})
            return
        report({**dense, "stage": "warming up", "requested": int(BUDGET * dense["macs_dense"])})
        warm_up(tool)
        found = TOOLS[tool](model, batch, dense, report, limit)
        faulthandler.cancel_dump_traceback_later()
    row.pop("stage", None)
    report(found)


def in_process(family, name, tool, limit):
    """Return the row of one network and tool, whatever becomes of its process."""
    command = [sys.executable, __file__, "--timeout", str(limit), "--one", family, name, tool]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=4 * limit + 600, check=False
        )
        lines, code, errors = done.stdout, done.returncode, done.stderr
    except subprocess.TimeoutExpired as error:
        lines, code, errors = (error.stdout or b"").decode(), None, ""
    rows = [json.loads(line) for line in lines.splitlines() if line.startswith('{"family"')]
    row = rows[-1] if rows else {"family": family, "network": name, "tool": tool}
    stage = row.pop("stage", None)
    if (stage is None and rows and code == 0) or row.get("outcome") in {"cut", "refused"}:
        return row  # an earlier try's result stands where a later one took too long
    if code is None or "Timeout (" in errors:
        return row | {"outcome": "timeout", "reason": f"over {limit:g} s in {stage or 'all'}"}
    last = (errors.strip().splitlines() or ["without a word"])[-1]
    ended = f"the process ended with status {code} in {stage or 'preparation'}: {last}"
    return row | {"outcome": "crashed", "reason": ended[:300]}


def chosen(families, only, tools):
    for family in families:
        for name, _ in FAMILIES[family]():
            if not only or any(fnmatch.fnmatch(name, pattern) for pattern in only):
                yield from ((family, name, tool) for tool in tools)


def run(families, only, tools, *, limit, jobs, missing):
    """Measure network after network; keep those of an earlier run that are not measured now."""
    rows = {key(row): row for row in common.load("survival", {"rows": []})["rows"]}
    packages = ("torch", "torchvision", "timm", "transformers", "torch-pruning", "torch-kirigami")
    content = {"versions": {name: version(name) for name in packages}}
    todo = [k for k in chosen(families, only, tools) if not (missing and k in rows)]
    print(f"{len(todo)} to measure")
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(in_process, *k, limit) for k in todo]
        try:
            for count, future in enumerate(as_completed(futures), 1):
                row = future.result()
                rows[key(row)] = row
                common.save("survival", content | {"rows": list(rows.values())})
                print(f"{count}/{len(todo)}", *key(row), said(row), sep="  ", flush=True)
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise


def key(row):
    return row["family"], row["network"], row["tool"]


def said(row):
    if row["outcome"] == "cut":
        where = "at target" if at_target(row) else "off target"
        return f"{where} {ratios(row)} in {row['call_s']:.1f} s"
    return f"{row['outcome']}: {row.get('reason', '')[:150]}"


# --- tables -----------------------------------------------------------------------------------


def ratios(row):
    """Return the share of multiply-adds left: by FlexRel's own count, and by the ruler."""
    own = f"{row['own'] / row['own_dense']:.3f} / " if "own" in row else ""
    return f"{own}{row['ratio']:.3f}"


def middle(rows, name, form="{:.2f}", of=statistics.median):
    values = [row[name] for row in rows if row.get(name) is not None]
    return form.format(of(values)) if values else ""


def summary(family, tool, rows):
    counts = [sum(row["outcome"] == outcome for row in rows) for outcome in OUTCOMES[1:]]
    target = [row for row in rows if at_target(row)]
    share = f"{len(target)} ({100 * len(target) / len(rows):.0f} %)"
    seconds = [middle(target, "call_s"), middle(target, "call_s", of=max)]
    plans = [middle(rows, "planning_s"), middle(rows, "planning_s", of=max)]
    ruler = middle(target, "ratio", "{:.3f}")
    off_target = sum(row["outcome"] == "cut" for row in rows) - len(target)
    ruled = sum(TARGET[0] <= row["ratio"] <= TARGET[1] for row in target)
    cells = [len(rows), share, ruled, off_target, *counts, ruler, *seconds, *plans]
    return [f"{family}, {tool}", *cells]


def summaries(rows):
    header = ["family and tool", "networks", "cut and verified at target", "by the ruler too"]
    header += ["cut, off target", *OUTCOMES[1:], "ruler, median", "call, s: median", "max"]
    header += ["planning, s: median", "max"]
    lines = []
    for family in (*FAMILIES, "all"):
        for tool in TOOLS:
            found = [r for r in rows if family in {r["family"], "all"} and r["tool"] == tool]
            if found:
                lines.append(summary(family, tool, found))
    return common.table(header, lines)


def times(rows):
    """Return where the time of FlexRel's calls went."""
    rows = [row for row in rows if row["tool"] == "flexrel" and row["outcome"] == "cut"]
    header = ["FlexRel's cuts", "networks", "whole call, s", "planning, s"]
    header += [f"{name}, s" for _, name in STAGES]
    lines = []
    for family in FAMILIES:
        found = [row for row in rows if row["family"] == family]
        parts = [row["stages_s"] for row in found]
        cells = [middle(parts, name) for _, name in STAGES]
        if found:
            call = [middle(found, "call_s"), middle(found, "planning_s")]
            lines.append([family, len(found), *call, *cells])
    return common.table(header, lines) if lines else ""


def plainly(text):
    """Return a message as a table cell takes it."""
    return "`" + text.replace("`", "'").replace("|", "\\|") + "`" if text else ""


def without_target(rows):
    """Return every network that FlexRel does not cut at the target, and why."""
    header = ["network", "family", "outcome", "own count / ruler", "planning, s", "reason"]
    lines = []
    for row in rows:
        if row["tool"] == "flexrel" and not at_target(row):
            outcome = "off target" if row["outcome"] == "cut" else row["outcome"]
            left = ratios(row) if row["outcome"] == "cut" else ""
            seconds = middle([row], "planning_s")
            why = plainly(row.get("reason", ""))
            lines.append([row["network"], row["family"], outcome, left, seconds, why])
    return common.table(header, lines) if lines else ""


def disagreeing(rows):
    """Return the cuts at the target by FlexRel's own count that the ruler sees elsewhere."""
    header = ["at target by FlexRel's count of layers only", "family", "own count / ruler"]
    header += ["own count of the dense network over the ruler's"]
    lines = []
    for row in rows:
        if "own" in row and at_target(row) and not TARGET[0] <= row["ratio"] <= TARGET[1]:
            seen = f"{row['own_dense'] / row['macs_dense']:.3f}"
            lines.append([row["network"], row["family"], ratios(row), seen])
    return common.table(header, lines) if lines else ""


def kind_of(reason):
    """Return a message with its names and numbers left out, so that alike ones are one."""
    bare = re.sub(r"'[^']*'|\"[^\"]*\"|\b[\w]+(\.\w+)+\b", "…", reason)
    return re.sub(r"\d+", "N", bare)[:110]


def failures(rows, most=5):
    """Return what the other tools fail at most often, with a network as an example."""
    lines = []
    for tool in list(TOOLS)[1:]:
        kinds = {}
        for row in rows:
            if row["tool"] == tool and row["outcome"] in OUTCOMES[1:]:
                kind = kind_of(row.get("reason", ""))
                kinds.setdefault((row["outcome"], kind), []).append(row["network"])
        ranked = sorted(kinds.items(), key=lambda item: -len(item[1]))[:most]
        for (outcome, kind), names in ranked:
            lines.append([tool, len(names), outcome, plainly(kind), names[0]])
    header = ["most frequent failures", "networks", "outcome", "message", "as on"]
    return common.table(header, lines) if lines else ""


def show():
    content = common.load("survival")
    rows = sorted(content["rows"], key=lambda row: list(FAMILIES).index(row["family"]))
    skipped = [row for row in rows if row["outcome"] == "skipped" and row["tool"] == "flexrel"]
    rows = [row for row in rows if row["outcome"] != "skipped"]
    lines = [f"- {row['network']}: skipped: {row['reason']}" for row in skipped]
    lines += [f"- timm's {n}: skipped: {why}" for n, why in survivors.TIMM_SKIPPED.items()]
    missed = without_target(rows)
    if missed:
        title = "Every network that FlexRel does not cut at the target"
        missed = f"<details><summary>{title}</summary>\n\n{missed}\n\n</details>"
    text = [summaries(rows), times(rows), disagreeing(rows), failures(rows), missed]
    text.append("\n".join(lines))
    common.replace_section("survival", "\n\n".join(part for part in text if part))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", nargs="+", choices=tuple(FAMILIES), default=tuple(FAMILIES))
    parser.add_argument("--only", nargs="+", help="networks, by name or pattern, as in resnet*")
    parser.add_argument("--tools", nargs="+", choices=tuple(TOOLS), default=tuple(TOOLS))
    parser.add_argument("--timeout", type=float, default=120, help="seconds for one call")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--missing", action="store_true", help="only what is not there yet")
    parser.add_argument("--show", action="store_true", help="the tables, from the JSON")
    parser.add_argument("--one", nargs=3, help="FAMILY NETWORK TOOL: in this process, to stdout")
    args = parser.parse_args()
    common.declare_operators()
    if args.one:
        one(*args.one, args.timeout)
        return
    if not args.show:
        limits = {"limit": args.timeout, "jobs": args.jobs, "missing": args.missing}
        run(args.families, args.only, args.tools, **limits)
    show()


if __name__ == "__main__":
    main()
