"""The way in: words to a command, its errors to one line and an exit code."""

import json
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Final, cast

import typer

import flexrel
from flexrel.cli import commands, comparing, packing, pruning, sweep

_WRONG_USAGE: Final = 2  # exit codes
INTERRUPTED: Final = 130
# How often a thread of GNU's OpenMP looks for work before it sleeps. As it is, it looks on and on,
# and where other processes want the cores too, the threads that have work wait for those.
_SPINS: Final = ("GOMP_SPINCOUNT", "3000")
# The root of what typer says of wrong words lies in click, or in typer's own copy of it.
_WrongWords: Final = cast("type[Exception]", typer.BadParameter.__mro__[2])

app = typer.Typer(
    help="Prune a trained network to what the target can afford.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # frames take longer to load than all the rest
)
app.add_typer(pruning.prune_app)
app.add_typer(sweep.sweep_app)
app.add_typer(commands.data_app)
app.add_typer(packing.packing_app)
app.add_typer(comparing.compare_app)


def _say_version(wanted: bool) -> bool:  # noqa: FBT001 - as typer calls it
    if wanted:
        typer.echo(f"flexrel {flexrel.__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option("--version", help="print the version", callback=_say_version, is_eager=True),
    ] = False,
) -> None:
    del version  # its callback has answered


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; the table is in `flexrel.errors`."""
    words = sys.argv[1:] if argv is None else list(argv)
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault(*_SPINS)  # read when torch is loaded
    as_json = "--json" in words
    try:
        given = words or ["--help"]
        done = app(args=given, prog_name="flexrel", standalone_mode=False, obj=tuple(words))
    except _WrongWords as error:
        return _failed({"error": _explained(error), "exit_code": _WRONG_USAGE}, as_json=as_json)
    except SystemExit as stop:  # of the commands that devices have
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except Exception as error:  # noqa: BLE001 - what is none of ours is raised again
        return _failed(_told(error), as_json=as_json)
    if done == INTERRUPTED:
        told = {"error": "stopped; nothing was written", "exit_code": INTERRUPTED}
        return _failed(told, as_json=as_json)
    if not words:
        return _WRONG_USAGE
    return done if isinstance(done, int) else 0


def _failed(told: dict[str, Any], *, as_json: bool) -> int:
    told["error"] = " ".join(told["error"].split())
    print("flexrel:", told["error"], file=sys.stderr)  # noqa: T201 - errors go here
    if as_json:
        typer.echo(json.dumps(told))
    return int(told["exit_code"])


def _explained(error: Exception) -> str:
    """Return what is wrong with the words, and which command's help says more."""
    said: str = error.format_message()  # type: ignore[attr-defined]
    where = getattr(error, "ctx", None)
    path = "flexrel" if where is None else where.command_path
    return f"{said.rstrip('.')}; see {path} --help"


def _told(error: Exception) -> dict[str, Any]:
    """Return what an error says, for programs; raise it again if it is none of ours."""
    from flexrel.errors import BudgetError, FlexrelError

    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return {"error": f"{where}{error.strerror or error}", "exit_code": _WRONG_USAGE}
    if not isinstance(error, FlexrelError):
        raise error
    told = {"error": str(error), "kind": type(error).__name__, "exit_code": error.exit_code}
    if isinstance(error, BudgetError):
        numbers = {"resource": error.resource, "limit": error.limit, "closest": error.closest}
        return {**told, **numbers}
    return told
