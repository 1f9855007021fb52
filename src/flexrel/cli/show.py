"""What a person sees: progress while they wait, and the result as a table."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from flexrel.core.evaluate import ACCURACY
from flexrel.core.measurement import Progress
from flexrel.core.plan import Plan, changes, named, totals
from flexrel.core.wording import everyday
from flexrel.io import count, figure, percent
from flexrel.pruning import Result
from flexrel.relevance import Balance


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """Yield something to tell progress to; it draws a bar a stage on stderr, gone at the end."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    quiet = not console.is_terminal  # a log file wants no bars
    with Bars(*columns, console=console, transient=True, disable=quiet) as bars:
        tasks: dict[str, TaskID] = {}

        def tell(stage: str, done: int, total: int | None) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield tell


def table(result: Result) -> Table:
    """Return the measurements of a result, one network a row.

    The last column is the share of all weights that is gone or zero, zeros of before included.
    """
    shown = Table(title=None, caption=str(result.promise or ""))
    shown.add_column("network", no_wrap=True)
    others = [name for name in result.dense.metrics if name != ACCURACY]
    for name in ("accuracy", *others, "parameters", "MACs", "bytes", "of dense", "weights gone"):
        shown.add_column(name, justify="right")
    for m in result.measurements:
        shown.add_row(
            m.criterion,
            percent(m.accuracy),
            *(figure(m.metrics[name]) for name in others),
            count(m.parameters),
            count(m.macs),
            count(m.bytes),
            percent(m.bytes / result.dense.bytes),
            percent(m.weights_removed),
            style="bold" if m is result.achieved else "",
        )
    return shown


def plan_tables(plan: Plan) -> Iterator[Table]:
    """Yield what a plan does to each group, and what it leaves alone."""
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


def recovery_lines(result: Result) -> Iterator[str]:
    """Yield what repair and training did, a line a step, and what there is to know of it."""
    for step in result.recovery:
        undone = "" if step.kept else "; undone"
        distance = f"{step.before:.4g} before, {step.after:.4g} after"
        yield f"{step.name}: divergence on held-out calibration data {distance}{undone}"
        yield from (f"  {note}" for note in step.notes)


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


_WORST = 20  # rows
