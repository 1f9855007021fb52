"""What a person sees: the result as a table, and what led to it."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flexrel.core.evaluate import ACCURACY
from flexrel.core.plan import Plan, changes, named, totals
from flexrel.core.wording import everyday
from flexrel.errors import FlexrelError
from flexrel.io import count, figure, percent
from flexrel.pruning import Result
from flexrel.relevance import Balance


class StoppedError(FlexrelError):
    """Ctrl-C was pressed when something had been written; says what."""

    exit_code = 130


def table(result: Result) -> Table:
    """Return the measurements of a result, one network a row; ">" marks the result's own.

    The last column is the share of all weights that is gone or zero, zeros of before included.
    """
    values = "" if result.values == "float32" else f", values in {result.values}"
    told = "> is the result; dense is the network as it came, its bytes those of its packed file"
    promise = "" if result.promise is None else f"\n{result.promise}"
    shown = Table(box=SIMPLE_HEAD, caption=f"{told}{values}{promise}", caption_justify="left")
    shown.add_column("network", no_wrap=True)
    others = [name for name in result.dense.metrics if name != ACCURACY]
    sizes = ("parameters", "MACs", "bytes", "MB", "% of dense", "weights gone")
    for name in ("accuracy", *others, *sizes):
        shown.add_column(name, justify="right", no_wrap=True)
    for m in result.measurements:
        chosen = m is result.achieved
        shown.add_row(
            f"{'>' if chosen else ' '} {m.criterion}",
            "-" if m.accuracy is None else percent(m.accuracy),
            *(figure(m.metrics[name]) for name in others),
            count(m.parameters),
            count(m.macs),
            count(m.bytes),
            f"{m.bytes / _MB:,.3f}",
            percent(m.bytes / result.dense.bytes),
            percent(m.weights_removed),
            style="bold" if chosen else "",
        )
    return shown


def print_whole(shown: Table) -> None:
    """Print a table with all that is in it, also where that takes more than the width there is."""
    console = Console()
    needed = Console(width=_WIDEST).measure(shown).maximum
    console.width = max(console.width, needed)
    console.print(shown)


def unmeasured(result: Result) -> Iterator[str]:
    """Yield why accuracy is not known, and what to pass, if it is not."""
    if not result.dense.metrics:
        yield "Accuracy was not measured: that takes labelled data, --evaluation DATA."


def files_in(folder: Path, names: Iterable[str]) -> dict[str, dict[str, int | str]]:
    """Return the bytes and the SHA-256 of each of the files that is there."""
    found: dict[str, dict[str, int | str]] = {}
    for path in filter(Path.is_file, (folder / name for name in names)):
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        found[path.name] = {"bytes": path.stat().st_size, "sha256": sha256}
    return found


def plan_tables(plan: Plan) -> Iterator[Table]:
    """Yield what a plan does to each group, and what it leaves alone; then what follows it."""
    groups = Table(caption="\n".join(totals(plan.graph, plan.masks)), caption_justify="left")
    for name in ("group", "keeps", "made by", "along go", "read by"):
        groups.add_column(name, overflow="fold")
    for part in changes(plan.graph, plan.masks):
        keeps = f"{part.kept:,} of {part.units:,} {part.unit}"
        lists = ((keeps, *part.numbers), part.makers, part.followers, part.readers)
        groups.add_row(*map(escape, (named(part.name), *map("\n".join, lists))))
    yield groups
    if plan.graph.protected:
        left = Table()
        left.add_column("left alone", overflow="fold")
        left.add_column("because", overflow="fold")
        for layer in plan.graph.protected:
            left.add_row(escape(named(layer.name)), escape(layer.reason))
        yield left
    if plan.then is not None:
        yield from plan_tables(plan.then)


def recovery_lines(result: Result) -> Iterator[str]:
    """Yield what repair and training did, a line a step, and what there is to know of it."""
    for step in result.recovery:
        undone = "" if step.kept else "; undone"
        distance = f"{step.before:.4g} before, {step.after:.4g} after"
        yield f"{step.name}: divergence on held-out calibration data {distance}{undone}"
        yield from (f"  {note}" for note in step.notes)


def latency_line(result: Result) -> str:
    """Return in a line how long a call takes, measured in a process of its own, beside the limit.

    Of another device it is what is expected there. "" where latency was not limited.
    """
    timing, limit = result.timing, result.requested.get("latency_ms")
    if timing is None or limit is None:
        return ""
    where = f", expected on {timing.machine}" if timing.machine else ""
    return (
        f"latency: {timing.milliseconds:.4g} ms of at most {limit:.4g}{where}, "
        f"dense {timing.dense:.4g} "
        f"({timing.runtime} {timing.version}, batch {timing.batch}, threads {timing.threads}; "
        f"widths in multiples of {result.options['multiple_of']})"
    )


def what_it_is(result: Result) -> str:
    """Return in a line whether the network is the module, or a program exported of it."""
    if result.form == "module":
        return "The network is the module itself, with less in it."
    samples = result.options["samples_a_call"]
    batch = "any number of samples" if samples is None else f"{samples} samples, no more or less"
    return f"The network is an exported program, for evaluation; a call takes {batch}."


def conservation(balances: Sequence[Balance]) -> Table:
    """Return the operations that lose or make most relevance, one a row, the worst first."""
    broken = [balance for balance in balances if not balance.holds]
    broken.sort(key=lambda balance: -abs(balance.lost) / balance.handled)
    title = f"relevance is conserved by {len(balances) - len(broken)} of {len(balances)} operations"
    shown = Table(title=title, caption="shares of the relevance that each handled, in size")
    for name in ("layer", "operation", "rule"):
        shown.add_column(name)
    shown.add_column("lost (made: below 0)", justify="right")
    for balance in broken[:_WORST]:
        share = percent(balance.lost / balance.handled)
        shown.add_row(balance.layer, everyday(balance.operation), balance.rule, share)
    if len(broken) > _WORST:
        shown.add_row(f"and {len(broken) - _WORST} more")
    return shown


_MB = 10**6  # bytes
_WIDEST = 999  # characters
_WORST = 20  # rows
