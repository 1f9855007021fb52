"""A frontier as a person sees it: a table of its points, the smallest first."""

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.table import Table

from flexrel.core.evaluate import ACCURACY
from flexrel.io import count, figure, percent
from flexrel.pruning import Reached, SweepResult

_SMALL = 100  # below which decimals say something


def front_table(found: SweepResult) -> Table:
    """Return a frontier's networks, the dense one last; ">" marks those that no other beats."""
    caption = "> no other takes as little and does as well; ± is one standard error"
    shown = Table(box=SIMPLE_HEAD, caption=caption, caption_justify="left")
    shown.add_column("asked", no_wrap=True)
    share = () if found.at_least else ("% of dense",)
    numbers = (*share, *found.dense.amounts, found.metric)
    for name in numbers:
        shown.add_column(name, justify="right", no_wrap=True)
    for name in ("criterion", "granularity", "values"):
        shown.add_column(name, no_wrap=True)
    made = [(point, point.reached) for point in found.points if point.reached is not None]
    front = found.front()
    for point, reached in sorted(made, key=lambda one: found.taken(one[1])):
        on = point in front
        asked = f"{'>' if on else ' '} {point.budget}"
        how = (point.scored_by, point.granularity, point.values)
        shown.add_row(asked, *_numbers(found, reached), *how, style="bold" if on else "")
    shown.add_row("  dense", *_numbers(found, found.dense))
    return shown


def refusals(found: SweepResult) -> Iterator[str]:
    """Yield which points can't be had, and why, a line each."""
    for point in found.points:
        if point.refused:
            yield f"{point.budget}, {point.granularity}, {point.values}: {point.refused}"


def _numbers(found: SweepResult, reached: Reached) -> Iterator[str]:
    """Yield a network's share of the resource, its amounts, and its metric."""
    if not found.at_least:
        yield percent(reached.amounts[found.resource] / found.dense.amounts[found.resource])
    for name in found.dense.amounts:
        number = reached.amounts[name]
        yield f"{number:.4g}" if number < _SMALL else count(number)
    value = reached.metrics[found.metric]
    if found.metric != ACCURACY:
        yield figure(value)
        return
    error = reached.standard_error
    yield percent(value) if error is None else f"{percent(value)} ± {percent(error)}"
