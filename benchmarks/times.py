"""Sections of the page about time: latency in real runtimes, and accelerators."""

from statistics import geometric_mean

import common

HEADER = ("runtime", "threads", "batch", "dense, ms", "pruned, ms", "speed-up", "of the ideal")


def in_short():
    """Yield a line for each kind of cut: the speed-up in each runtime.

    Of the networks that were measured with every kind of widths, so that these can be compared.
    """
    measured = {(b["level"], b["multiple_of"], b["network"]): b for b in _blocks() if b["rows"]}
    multiples = sorted({multiple for _, multiple, _ in measured})
    for level in sorted({level for level, *_ in measured}, reverse=True):
        networks = {network for at, _, network in measured if at == level}
        networks = [n for n in networks if all((level, m, n) in measured for m in multiples)]
        for multiple in multiples if networks else ():
            found = {}
            for row in [r for n in networks for r in measured[level, multiple, n]["rows"]]:
                found.setdefault(row["runtime"], []).append(row["speedup"])
            speedups = ", ".join(
                f"{runtime} {geometric_mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"
                for runtime, values in found.items()
            )
            scores = [measured[level, multiple, network]["scores"] for network in networks]
            lost = sorted(100 * (before - after) for before, after in scores)
            yield (
                f"- With {level:g} of the multiply-adds and {_widths(multiple)}, a network is "
                f"faster by a factor of: {speedups} (geometric mean and range; networks: "
                f"{len(networks)}, 1 and 2 threads, batches of 1 and 32; points of accuracy that "
                f"they lost: {', '.join(f'{points:.1f}' for points in lost)})."
            )


def latency():
    """Yield the section on latency, a table for each cut."""
    blocks = _blocks()
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
    yield f"`python benchmarks/accelerator.py` on {found['device']}, torch {found['torch']}."
    header = ["network", "what", "plain", "found", "ratio"]
    yield common.table(header, [[str(cell) for cell in row] for row in found["rows"]])


def _blocks():
    return common.load("latency")["blocks"] if common.is_measured("latency") else []


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
