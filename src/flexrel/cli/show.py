"""What a person sees: progress while they wait, and the result as a table."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from flexrel.records import Progress
from flexrel.report import count, percent
from flexrel.result import Result


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
    """Return the measurements of a result, one network a row."""
    shown = Table(title=None)
    shown.add_column("network", no_wrap=True)
    for name in ("accuracy", "parameters", "MACs", "bytes", "of dense"):
        shown.add_column(name, justify="right")
    for m in result.measurements:
        shown.add_row(
            m.criterion,
            percent(m.accuracy),
            count(m.parameters),
            count(m.macs),
            count(m.bytes),
            percent(m.bytes / result.dense.bytes),
            style="bold" if m is result.achieved else "",
        )
    return shown
