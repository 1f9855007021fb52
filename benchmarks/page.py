"""Writes docs/results.md: what the benchmarks of evidence found, from their JSON alone."""

import itertools
import math
import textwrap
from pathlib import Path

import aims
import cases
import common
import figures
import methods
import tasks
import times

DOCS = common.HERE.parent / "docs"
PAGE = DOCS / "results.md"
CURVES, METHODS_FIGURE = DOCS / "curves.png", DOCS / "methods.png"
BYTES = ("magnitude", "relevance", aims.FOUND)
SAVINGS = {aims.FOUND: "saving", aims.BLEND: "without OBS", aims.LABELS: "by labels"}

ON_PAPER = """
`python benchmarks/paper.py`; with `--model torchvision:vgg16 --data imagenet/val` the paper's own
network and images. Bytes of the packed file, float16, as a share of the dense network's, at an
accuracy of the dense network's less 0.5, 1, 2 and 5 points.

- *Bytes*: of networks on a grid of sizes, each 0.85 of the one before (efficientnet_lite0: 0.95),
  those of the smallest that reaches the accuracy, and between neighbours along a straight line.
- *FlexRel*: at each size the form of the score that diverges least from the dense network on
  calibration data, as `prune` chooses, without labels; *form* names it. *By labels*: the one most
  accurate on labelled data that nothing is reported on. *Without OBS*: where OBS is not among them.
- The forms: magnitude, relevance, blends of the two and, of channels, OBS: the damage that a repair
  can't make up for, which is neither (`docs/method.md`). Not repaired, `prune` tries more blends
  and no OBS.
- *Saving*: over the better of the two single signals, with the error of 200 draws of the n images
  or pairs that report. In blocks measured before draws were interpolated between all networks that
  were made, of channels those that say nothing *without OBS*, it is too large where a draw just
  misses a target and the next larger network is much larger.
- Data: `benchmarks/tasks.py`, all disjoint. Unlike the training data: 3 of 10 classes; half of the
  images with noise, half with little contrast; MiniLM, a sentence encoder, on film reviews (SST-2).
  Accuracy is the share of right answers, on STS-B Spearman's rank correlation. CIFAR-10's to
  calibrate and to choose by are images that the networks were trained on.
- Calibration data were drawn once, seed 0, but where another draw is named (`--draws 1 2`); the
  errors of those drawn once leave other draws out. OBS lets units go one after the other: where
  many can stand for each other, as in vgg16 on 3 classes, its smallest networks differ much from
  draw to draw.
- Not in the errors: the defaults were settled on the same networks, by other images (*Forms*,
  *Choice* in `benchmarks/README.md`), but the few scores that are tried with a repair by what is
  best in *Repair* there, on the same test images.
"""
ON_PEERS = f"""
`python benchmarks/peers.py`. Channels: the same multiply-adds at most; weights: the same bytes at
most, through one encoder, which is *packed*, float16. The best of a column is bold.

- Libraries are called as their documentation does (`benchmarks/rivals.py`), the knob searched in at
  most {methods.TRIES} calls until it is within {methods.MET:.0%} of the budget, or the next step is
  above it, or half of the {methods.LIMIT // 60} minutes that each may take are over. Criteria
  marked *(paper)* are written from their papers (`benchmarks/published.py`). FlexRel is called with
  its defaults.
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


def write():
    """Write the page and its figure."""
    experiments, rivals = _blocks("paper-*"), _blocks("peers")
    short = [*aims.in_short(experiments, rivals), *times.in_short()]
    parts = [
        "# Results",
        (
            "Written by the benchmarks from `benchmarks/results/*.json`; not by hand. Every "
            "section names the command that makes it. ± is one standard error."
        ),
        "## In short",
        *(short or ["Nothing is measured yet."]),
        *_paper(experiments),
        *_peers(rivals),
        *times.latency(),
        *times.accelerator(),
    ]
    PAGE.write_text("\n\n".join(_wrapped(part.strip()) for part in parts if part) + "\n")


def _wrapped(part):
    """Return a paragraph, or a list's items, in lines of at most 100; all else as it is."""
    if part.startswith(("|", "#", "!")):
        return part
    return "\n".join(
        textwrap.fill(line, 100, subsequent_indent="  " if line.startswith("- ") else "")
        for line in part.splitlines()
    )


def _blocks(pattern):
    files = sorted(path.stem for path in common.RESULTS.glob(f"{pattern}.json"))
    return [b for f in files if not f.endswith("-quick") for b in common.load(f)["blocks"]]


# --- the paper's experiment -----------------------------------------------------------------


def _paper(blocks):
    if not blocks:
        return
    yield "## The paper's experiment"
    yield ON_PAPER
    for granularity, repair in itertools.product(aims.GRANULARITIES, aims.REPAIRS):
        mine = [b for b in blocks if (b["granularity"], b["repair"]) == (granularity, repair)]
        how = "not repaired" if repair == "none" else "repaired in closed form"
        yield f"### {granularity.capitalize()}s, {how}"
        if mine:
            yield targets(mine)
        known = {(block["network"], block["deployment"]) for block in mine}
        yield _not_run([", ".join(one) for one in tasks.PLANNED if one not in known])
    if any(block["repair"] == "none" for block in blocks):
        figures.curves(blocks, CURVES)
        yield f"![Accuracy against size, for shares of relevance from 0 to 1]({CURVES.name})"
        yield (
            "Accuracy against the share of parameters that stays, nothing repaired: the paper's "
            "sum for δ from 0, magnitude alone, to 1, relevance alone; and ours, the product."
        )
    yield common.versions(blocks[0])


def _not_run(names):
    return f"Not run: {'; '.join(names)}." if names else ""


def targets(blocks):
    """Return the table of what each of the experiments found."""
    names = [name for name in SAVINGS if any(name in block["log_ratio"] for block in blocks)]
    header = ["network, in use", "drop", *BYTES, "form", *(SAVINGS[name] for name in names)]
    return common.table(header, [row for block in blocks for row in _targets(block, names)])


def _targets(block, names):
    """Yield the rows of a block: one a target, and their mean."""
    dense, empty = block["dense"]["bytes"], [""] * (len(BYTES) + 1)
    draw = f", draw {block['draw']}" if block["draw"] else ""
    title = f"**{block['network']}, {block['deployment']}**{draw}: dense {dense / 1e3:,.0f} kB, "
    title += f"{100 * block['dense']['test']:.1f} %, n = {block['samples']:,}"
    yield [title, "", *empty, *("" for _ in names)]

    def savings(at):
        found = (block["log_ratio"].get(name) for name in names)
        return [aims.saving(*pairs[at]) if pairs else "" for pairs in found]

    for at, drop in enumerate(block["drops"]):
        cells = [f"{block['needed'][name][at] / dense:.3f}" for name in BYTES]
        yield ["", f"{100 * drop:g}", *cells, block["forms"][aims.FOUND][at], *savings(at)]
    yield ["", "mean", *empty, *savings(-1)]


# --- other libraries ------------------------------------------------------------------------


def _peers(blocks):
    if not blocks:
        return
    yield "## Other libraries on the same work"
    yield ON_PEERS
    figures.methods(blocks, METHODS_FIGURE)
    yield f"![Accuracy against bytes, of FlexRel and other libraries]({METHODS_FIGURE.name})"
    for block in blocks:
        dense = block["dense"]
        yield (
            f"**{block['case']}**: dense {100 * dense['score']:.1f} %, "
            f"{dense['packed'] / 1e3:,.0f} kB packed; n = {dense['samples']:,}; threads: "
            f"{block['threads']}"
        )
        yield common.table(
            [
                "method",
                "accuracy",
                "trained",
                "MACs",
                "packed, kB",
                "file, kB",
                "xz, kB",
                "time",
                "MiB",
            ],
            _peer_rows(block),
        )
        failed = [f"- {n}: {r['failure']}" for n, r in block["rows"].items() if "failure" in r]
        if failed:
            yield "Failures:\n\n" + "\n".join(failed)
        if without := aims.missing(block):
            yield _not_run(without)
        ratios = {role: aims.at_best(block, role) for role in aims.ROLES}
        said = [_said(block, role, ratio) for role, ratio in ratios.items() if ratio is not None]
        if said:
            yield "\n".join(f"- {line}" for line in said)
    known = {block["case"] for block in blocks}
    yield _not_run([case.name for case in cases.CASES if case.name not in known])
    yield common.versions(blocks[-1])


def _said(block, role, ratio):
    key, when = aims.ROLES[role]
    (name, best), found = aims.best_other(block, key), block["rows"][role]
    macs = ""
    if block["granularity"] == "channel" and "macs" in found:
        macs = f", with {found['macs']:.3f} of the multiply-adds ({name} {best['macs']:.3f})"
    return (
        f"At the accuracy of the best other, {name} with {100 * best[key]:.1f} %, {when}: FlexRel "
        f"({found['form']}) takes {found['packed'] / 1e3:,.0f} kB, {aims.percent(ratio)} % of its "
        f"bytes{macs}."
    )


def _peer_rows(block):
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


if __name__ == "__main__":
    print(f"{Path(PAGE).name}: ", end="")
    write()
    print("written")
