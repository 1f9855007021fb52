"""What a dry run found, as a table or as JSON."""

import json

import typer
from rich.console import Console
from rich.table import Table

from flexrel.errors import BudgetError
from flexrel.io import count, percent
from flexrel.pruning import Feasibility

_SMALL = 100  # below which decimals say something


def told_possible(found: Feasibility, *, as_json: bool) -> int:
    """Print which budgets are possible; return the exit code, that of budgets if one is not."""
    if as_json:
        typer.echo(json.dumps(found.as_json()))
    else:
        Console().print(_table(found))
        for line in (one.refused for one in found.amounts if one.refused):
            typer.echo(f"impossible: {line}", err=True)
    return 0 if found.possible else BudgetError.exit_code


def _table(found: Feasibility) -> Table:
    """Return what budgets a dry run found possible, one resource a row; the binding one in bold."""
    binds = f"most has to go for {found.binds}" if found.binds else None
    shown = Table(title=None, caption=binds)
    shown.add_column("resource", no_wrap=True)
    for name in ("dense", "closest possible", "asked", "units to remove"):
        shown.add_column(name, justify="right")
    for one in found.amounts:
        asked = ""
        if one.limit is not None:
            asked = f"{'at least' if one.at_least else 'at most'} {_amount(one.limit)}"
        removed = "impossible" if one.refused else ""
        shown.add_row(
            one.resource,
            _amount(one.dense),
            _amount(one.closest),
            asked,
            removed if one.removed is None else percent(one.removed),
            style="bold" if one.resource == found.binds else "",
        )
    return shown


def _amount(number: float) -> str:
    return f"{number:.4g}" if number < _SMALL else count(number)
