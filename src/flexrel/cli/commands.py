"""One function a command: it reads its arguments, makes one library call and prints."""

import json
import sys
import webbrowser
from collections.abc import Sequence
from functools import reduce
from operator import add
from pathlib import Path
from typing import Annotated, Any

import typer
from jinja2 import UndefinedError
from rich.console import Console

from flexrel.cli import demo, packing
from flexrel.cli.arguments import (
    DATA,
    JsonOption,
    ModelArgument,
    OutputOption,
    RuleOption,
    SeedOption,
    WeightsOption,
)
from flexrel.cli.feasible import told_possible
from flexrel.cli.options import parse_rule
from flexrel.cli.show import (
    conservation,
    progress_bars,
    recovery_lines,
    table,
    what_it_is,
)
from flexrel.cli.sources import read_data, read_evaluate, read_model
from flexrel.core.budgets import TARGET_EXAMPLES, budget_of
from flexrel.core.granularity import GRANULARITIES
from flexrel.core.measurement import silent
from flexrel.core.outputs import OUTPUT_KINDS
from flexrel.core.plan import check_model
from flexrel.core.precision import VALUES
from flexrel.core.targets import targets_of
from flexrel.criteria import ALLOCATIONS
from flexrel.errors import FlexrelError, UsageError
from flexrel.io import EXPORTS, check_exports, percent, render
from flexrel.pruning import FORMS, PruneOptions, criteria_of, dry_run, prune
from flexrel.pruning import compare as compare_result
from flexrel.relevance import Attribution, RelevanceStats, calibrate
from flexrel_edge.files import replace_file

app = typer.Typer(
    help="Prune a trained network to what the target can afford.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; the table is in `flexrel.errors`."""
    try:
        app(args=argv if argv is None else list(argv), prog_name="flexrel")
    except FlexrelError as error:
        return _fail(str(error), error.exit_code)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}", UsageError.exit_code)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


def _fail(message: str, code: int) -> int:
    print("flexrel:", " ".join(message.split()), file=sys.stderr)  # noqa: T201 - errors go here
    return code


def _check_directory(out: Path | None) -> None:
    """Find out before the work, not after it, that results can't be written."""
    if out is not None and out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; name a directory for the results")


@app.command("demo")
def demo_command(
    out: Annotated[Path, typer.Option(help="directory for the results")] = Path("flexrel-demo"),
    seed: SeedOption = 0,
) -> None:
    """The whole story on handwritten digits, in under a minute: train, prune, pack, report."""
    _check_directory(out)
    with progress_bars() as progress:
        result = demo.run(seed, progress)
        result.save(out)
    console = Console()
    console.print(
        f"A network for handwritten digits, pruned to lose at most 1 point of accuracy on "
        f"{result.samples} images that it was not trained on (one standard error: "
        f"{percent(result.standard_error)}):"
    )
    console.print(table(result))
    console.print(f"Wrote {out}/: model.flexrel, plan.json, result.json, report.html")
    console.print(
        f"Next: open {out}/report.html; flexrel inspect {out}/model.flexrel; "
        "flexrel prune --help for a network of your own.",
        soft_wrap=True,
    )


@app.command("prune")
def prune_command(
    model: ModelArgument,
    calibration: Annotated[str, typer.Option(help=f"inputs as in use; {DATA}")],
    evaluation: Annotated[
        str | None, typer.Option(help=f"labelled data, or a function of the model; {DATA}")
    ] = None,
    weights: WeightsOption = None,
    target: Annotated[str | None, typer.Option(help=TARGET_EXAMPLES)] = None,
    budget: Annotated[
        list[str] | None, typer.Option(help="bytes=500kB, macs=50%, parameters=120k, sparsity=80%")
    ] = None,
    granularity: Annotated[str, typer.Option(help=", ".join(GRANULARITIES))] = "channel",
    criterion: Annotated[
        str, typer.Option(help="auto, magnitude, relevance, obs or flexrel:DELTA")
    ] = "auto",
    allocation: Annotated[str, typer.Option(help=", ".join(ALLOCATIONS))] = "global",
    keep: Annotated[list[str] | None, typer.Option(help="a layer to leave alone")] = None,
    multiple_of: Annotated[int, typer.Option(help="round widths up to multiples of this")] = 1,
    rule: RuleOption = "gradient-input",
    output: OutputOption = "auto",
    outputs: Annotated[
        str, typer.Option(help=f"what the network returns: {', '.join(OUTPUT_KINDS)}")
    ] = "auto",
    recover: Annotated[
        str, typer.Option(help="none, closed-form, or finetune:EPOCHS on the calibration data")
    ] = "closed-form",
    values: Annotated[
        str, typer.Option(help=f"in the file: auto, {', '.join(VALUES)}")
    ] = "float32",
    form: Annotated[
        str, typer.Option(help=f"what is cut: {', '.join(FORMS)}; the last where code fixes sizes")
    ] = "auto",
    assured: Annotated[bool, typer.Option(help="keep a margin for the promise")] = False,
    dry: Annotated[bool, typer.Option("--dry-run", help="only say what is possible")] = False,
    compare: Annotated[
        bool, typer.Option(help="measure magnitude and relevance too, for the report")
    ] = True,
    seed: SeedOption = 0,
    out: Annotated[Path | None, typer.Option(help="directory for the results")] = None,
    export: Annotated[
        list[str] | None,
        typer.Option(help="into --out too: onnx, pt2; graph: ONNX inside of model.flexrel"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Return the smallest network that keeps to a target and budgets.

    Example: flexrel prune net.py:make --weights net.safetensors --calibration data.py:inputs
    --evaluation data.py:labelled --target accuracy-drop=1% --out pruned
    """
    _check_directory(out)
    exports = export or []
    check_exports(exports)
    if exports and out is None:
        raise UsageError("--export writes into --out DIR; name one")
    budgets = [budget_of(text) for text in budget or []]
    targets = targets_of(target)
    if dry:
        how = PruneOptions(multiple_of=multiple_of, form=form)  # type: ignore[arg-type]
        asked: dict[str, Any] = {"budgets": budgets, "granularity": granularity, "values": values}
        asked |= {"keep": keep or (), "calibration": read_data(calibration, "calibration")}
        found = dry_run(read_model(model, weights, seed, silent), options=how, **asked)
        raise typer.Exit(told_possible(found, as_json=as_json))
    if targets and not evaluation:
        raise UsageError(f"a target on {targets[0].metric} needs --evaluation DATA, with labels")
    attribution = Attribution(parse_rule(rule), output)
    criteria = criteria_of(criterion, granularity, recover, attribution)
    evaluate = read_evaluate(evaluation)
    with progress_bars() as progress:
        network = read_model(model, weights, seed, progress)
        data = list(read_data(calibration, "calibration"))
        result = prune(
            network,
            calibration=data,
            evaluate=evaluate,
            target=targets,
            budgets=budgets,
            criterion=criteria,
            granularity=granularity,
            recover=recover,
            values=values,  # type: ignore[arg-type]  # checked, as the next three
            keep=keep or (),
            seed=seed,
            options=PruneOptions(
                allocation=allocation,  # type: ignore[arg-type]
                multiple_of=multiple_of,
                assured=assured,
                form=form,  # type: ignore[arg-type]
                outputs=outputs,  # type: ignore[arg-type]
                progress=progress,
            ),
        )
        if compare and evaluate is not None:
            result = compare_result(
                result, network, calibration=data, evaluate=evaluate, progress=progress
            )
        notes = () if out is None else result.save(out, exports)
    if as_json:
        typer.echo(json.dumps(result.as_json()))
        return
    Console().print(table(result))
    for line in recovery_lines(result):
        typer.echo(line)
    for line in (*result.warnings, *notes):
        typer.echo(f"warning: {line}", err=True)
    typer.echo(what_it_is(result))
    if out is not None:
        kinds = {*exports, *(["pt2"] if result.form == "exported" else [])}
        more = "".join(f", model.{kind}" for kind in EXPORTS if kind in kinds)
        typer.echo(f"Wrote {out}/: model.flexrel, plan.json, result.json, report.html{more}")


@app.command("calibrate")
def calibrate_command(
    model: ModelArgument,
    data: Annotated[str, typer.Option(help=f"inputs as in use; {DATA}")],
    out: Annotated[Path, typer.Option("--out", "-o", help="file of stats")],
    weights: WeightsOption = None,
    rule: RuleOption = "gradient-input",
    output: OutputOption = "auto",
    max_batches: Annotated[int | None, typer.Option(help="read no more than so many")] = None,
    max_seconds: Annotated[
        float | None, typer.Option(help="read no further batch after so long")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="tell where relevance is not conserved")
    ] = False,
    seed: SeedOption = 0,
) -> None:
    """Measure relevance on data, and write the stats; those of several runs can be merged."""
    with progress_bars() as progress:
        network = read_model(model, weights, seed, progress)
        stats = calibrate(
            network,
            read_data(data, "calibration"),
            parse_rule(rule),
            output,
            progress,
            check=check,
            max_batches=max_batches,
            max_seconds=max_seconds,
        )
    stats.save(out)
    if check:
        Console().print(conservation(stats.balances))
    typer.echo(f"{out}: {len(stats)} layers, {stats.samples:,.0f} samples")
    if stats.unmeasured:
        typer.echo(f"Without relevance: {', '.join(stats.unmeasured)}")


@app.command("merge")
def merge_command(
    files: Annotated[list[Path], typer.Argument(help="files of stats")],
    out: Annotated[Path, typer.Option("--out", "-o", help="file of their sum")],
) -> None:
    """Add up stats that were taken in several places."""
    total = reduce(add, [RelevanceStats.load(path) for path in files])
    total.save(out)
    typer.echo(f"{out}: {len(total)} layers, {total.samples:,.0f} samples")


@app.command("report")
def report_command(
    directory: Annotated[Path, typer.Argument(help="that prune --out wrote")],
    show: Annotated[bool, typer.Option("--open", help="open it in a browser")] = False,
) -> None:
    """Make the report again from result.json and plan.json."""
    try:
        records = [json.loads((directory / name).read_text()) for name in _RECORDS]
    except OSError as error:
        raise UsageError(f"{error.filename}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{directory}: its records are damaged: {error}") from error
    try:
        for name, record in zip(_RECORDS, records, strict=True):
            check_model(directory / name, record.get("model", ""))
        page = render(*records)
    except (AttributeError, KeyError, TypeError, ValueError, UndefinedError) as error:
        raise UsageError(f"{directory}: its records lack something: {error}") from error
    path = directory / "report.html"
    replace_file(path, page.encode())
    typer.echo(str(path))
    if show:
        webbrowser.open(path.resolve().as_uri())


_RECORDS = ("result.json", "plan.json")

app.add_typer(packing.packing_app)
