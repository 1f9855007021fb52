"""The command that compares results, as those in `commands`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flexrel.cli.arguments import JsonOption

if TYPE_CHECKING:
    from flexrel.io import Comparison, SideRow

compare_app = typer.Typer()
_RECORD = "result.json"


def _record_there(given: Path) -> Path:
    """Return the record that a folder or file of a result has.

    Raises:
        typer.BadParameter: there is none.
    """
    path = given / _RECORD if given.is_dir() else given
    if not path.is_file():
        raise typer.BadParameter(
            f"{given}: no such result; name a folder that prune --out wrote, or its {_RECORD}"
        )
    return path


ResultArgument = Annotated[
    Path,
    typer.Argument(help="a folder that prune --out wrote, or its result.json"),
]


@compare_app.command("compare")
def compare_command(
    first: ResultArgument,
    second: ResultArgument,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="a page to write too, comparison.html")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show two results of one network side by side: resources, accuracy, widths of layers.

    Example: flexrel compare pruned-a pruned-b --out comparison.html
    """
    paths = [_record_there(given) for given in (first, second)]
    from dataclasses import asdict

    from flexrel.errors import UsageError
    from flexrel.io import comparison_of, render_comparison
    from flexrel_edge.files import replace_file

    records = (_read(paths[0]), _read(paths[1]))
    try:
        found = comparison_of(records, (str(first), str(second)))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{first} and {second}: a record lacks something: {error}") from error
    if out is not None:
        replace_file(out, render_comparison(found).encode())
    if as_json:
        typer.echo(json.dumps(asdict(found)))
        return
    _tell(found)
    if out is not None:
        typer.echo(str(out))


def _read(path: Path) -> dict[str, Any]:
    """Return a record.

    Raises:
        UsageError: it can't be read.
        PackError: it was saved with another file than lies beside it.
    """
    from flexrel.core.plan import check_model
    from flexrel.errors import UsageError

    try:
        record = json.loads(path.read_bytes())
    except ValueError as error:
        raise UsageError(f"{path}: is damaged, or no record of a result: {error}") from error
    if not isinstance(record, dict) or "achieved" not in record:
        raise UsageError(f"{path}: is no record of a result, as prune --out writes {_RECORD}")
    check_model(path, record.get("model", ""))
    return record


def _tell(found: "Comparison") -> None:
    """Print a comparison: what is whole, then layers."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    from flexrel.cli.show import print_whole

    def add(shown: Table, row: "SideRow") -> None:
        cells = (row.name, row.dense, row.first, row.second, "≠" if row.differs else "")
        shown.add_row(*map(escape, cells))

    shown = Table(box=SIMPLE_HEAD)
    for name in ("", "dense", *found.names, ""):
        shown.add_column(escape(name), justify="right" if name else "left", no_wrap=True)
    for row in found.rows:
        add(shown, row)
    shown.add_section()
    for row in found.layers:
        add(shown, row)
    print_whole(shown)
    for note in found.notes:
        typer.echo(f"note: {note}")
