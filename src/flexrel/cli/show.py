"""What a person sees: the result as a table, and what led to it."""

from collections.abc import Iterator, Sequence

from rich.markup import escape
from rich.table import Table

from flexrel.core.plan import Plan, changes, named, totals
from flexrel.errors import FlexrelError
from flexrel.io import count, percent
from flexrel.pruning import Result
from flexrel.relevance import Balance


class StoppedError(FlexrelError):
    """Ctrl-C was pressed when something had been written; says what."""

    exit_code = 130


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
        shown.add_row(balance.layer, balance.operation, balance.rule, share)
    if len(broken) > _WORST:
        shown.add_row(f"and {len(broken) - _WORST} more")
    return shown


_WORST = 20  # rows
