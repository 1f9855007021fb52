"""Sections of the page about time: latency in real runtimes, and accelerators."""

from statistics import geometric_mean

import common

HEADER = ("runtime", "threads", "batch", "dense, ms", "pruned, ms", "speed-up", "of the ideal")


def in_short():
    """Yield a table of the speed-up in each runtime, a row for each kind of cut.

    Of the networks that were measured with every kind of widths, so that these can be compared.
    """
    measured = {
        (b["level"], b["multiple_of"], b["network"]): b
        for b in common.blocks("latency")
        if b["rows"]
    }
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


def _speedup(blocks, runtime):
    """Return the geometric mean and the range in a runtime."""
    found = [r["speedup"] for b in blocks for r in b["rows"] if r["runtime"] == runtime]
    if not found:
        return ""
    return f"{geometric_mean(found):.2f} ({min(found):.2f} to {max(found):.2f})"


def latency():
    """Yield the section on latency, a table for each cut."""
    blocks = common.blocks("latency")
    if not blocks:
        return
    yield "## Latency"
    yield (
        "`python benchmarks/latency.py`: networks cut by `prune` to half and a quarter of their "
        "multiply-adds, with any widths and with multiples of 8, scored by OBS and repaired, "
        "exported, timed in turn with the dense one in the same process; medians of 15 rounds, "
        "with the quartiles of the ratio. *Of the ideal*: the speed-up over that of multiply-adds. "
        "Accuracy in percent, of the data of `benchmarks/tasks.py` that report, in use as trained."
    )
    for block in blocks:
        failed = [f"- {name}: {why}" for name, why in block["failures"].items()]
        if block["rows"]:
            before, after = (100 * score for score in block["scores"])
            yield (
                f"**{block['network']}**, {block['macs']:.3f} of its multiply-adds, "
                f"{_widths(block['multiple_of'])}: {before:.1f} → {after:.1f} %"
            )
            yield common.table(HEADER, [_row(row, block["macs"]) for row in block["rows"]])
        else:
            yield (
                f"**{block['network']}**, {block['level']:.3f} of its multiply-adds, "
                f"{_widths(block['multiple_of'])}:"
            )
        if failed:
            yield "\n".join(failed)
    yield common.versions(blocks[-1])


def accelerator():
    """Yield the section on accelerators."""
    yield "## On an accelerator"
    if not common.is_measured("accelerator"):
        yield (
            "Not measured: no machine with one was at hand. `python benchmarks/accelerator.py` "
            "runs there as it is and fills this section."
        )
        return
    found = common.load("accelerator")
    yield (
        f"`python benchmarks/accelerator.py` on {found['device']}, torch {found['torch']}: medians "
        "of 15 rounds in turn. *Relevance*: a plain forward and backward pass with gradients of "
        "the weights, as in training, then `calibrate`; its cost is the ratio. With batches of 50 "
        "the device waits for Python, which calls more operations for relevance; with all "
        "calibration samples in one batch it computes. *2:4*: the forward pass in float16, dense, "
        "then with the linear layers on sparse cores, as torch calls them; in a CUDA graph without "
        "what the calls cost. A speed-up below 1 is a loss."
    )
    header = ["network", "what", "plain or dense", "relevance or 2:4", "ratio"]
    yield common.table(header, [[str(cell) for cell in row] for row in found["rows"]])


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
