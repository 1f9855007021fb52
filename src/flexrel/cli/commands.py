"""One function a command: it reads its arguments, makes one library call and prints.

The one that prunes is in `pruning`, those on packed files in `packing`.
"""

import json
import webbrowser
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from flexrel.cli.arguments import (
    InputsOption,
    JsonOption,
    MeanOption,
    ModelArgument,
    OutputOption,
    OverwriteOption,
    QuietOption,
    RuleOption,
    SeedOption,
    SizeOption,
    StdOption,
    WeightsOption,
    Words,
)
from flexrel.cli.paths import WRITTEN, check_folder

data_app = typer.Typer()


@data_app.command("demo")
def demo_command(
    words: Words,
    out: Annotated[
        Path | None,
        typer.Option(
            help="folder for the results, else flexrel-demo, where those of an earlier demo are "
            "replaced"
        ),
    ] = None,
    overwrite: OverwriteOption = False,
    seed: SeedOption = 0,
    quiet: QuietOption = False,
) -> None:
    """The whole story on handwritten digits, in under a minute: train, prune, pack, report."""
    folder = Path("flexrel-demo") if out is None else out
    check_folder(folder, overwrite=overwrite or out is None)
    from rich.console import Console

    from flexrel.cli import demo
    from flexrel.cli.origin import demo_origin
    from flexrel.cli.show import print_whole, table
    from flexrel.io import percent

    result = demo.run(seed, None if quiet else "auto")
    result = replace(result, origin=demo_origin(words.obj, seed))
    result.save(folder)
    for line in result.warnings:
        typer.echo(f"warning: {line}", err=True)
    if quiet:
        return
    console = Console()
    console.print(
        f"A network for handwritten digits, pruned to lose at most 1 point of accuracy on "
        f"{result.samples} images that it was not trained on (one standard error: "
        f"{percent(result.standard_error)}):"
    )
    print_whole(table(result))
    console.print(f"Wrote {folder}/: {', '.join(WRITTEN)}")
    console.print(
        f"Next: open {folder}/report.html; flexrel inspect {folder}/model.flexrel; "
        "flexrel prune --help for a network of your own.",
        soft_wrap=True,
    )


@data_app.command("calibrate")
def calibrate_command(
    model: ModelArgument,
    data: InputsOption,
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
    size: SizeOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    seed: SeedOption = 0,
    quiet: QuietOption = False,
) -> None:
    """Measure relevance on data, and write the stats; those of several runs can be merged."""
    from rich.console import Console

    from flexrel.cli.images import prepared
    from flexrel.cli.models import read_model
    from flexrel.cli.options import parse_rule
    from flexrel.cli.show import conservation
    from flexrel.cli.sources import read_data
    from flexrel.core.progress import shown
    from flexrel.relevance import calibrate

    with shown(None if quiet else "auto") as progress:
        progress("loading the network", 0, None)
        source = read_model(model, weights, seed, progress)
        images = prepared(source.preparation, size, mean, std)
        stats = calibrate(
            source.network,
            read_data(data, "calibration", images, source.called(()), source.tokenizer),
            parse_rule(rule),
            output,
            progress,
            check=check,
            max_batches=max_batches,
            max_seconds=max_seconds,
        )
    stats.save(out)
    if quiet:
        return
    if check:
        Console().print(conservation(stats.balances))
    typer.echo(f"{out}: {len(stats)} layers, {stats.samples:,.0f} samples")
    if stats.unmeasured:
        typer.echo(f"Without relevance: {', '.join(stats.unmeasured)}")


@data_app.command("merge")
def merge_command(
    files: Annotated[
        list[str],
        typer.Argument(help="files of stats, or of moments (also as URLs), one a device"),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="file of their sum")],
    most_samples: Annotated[
        float | None, typer.Option(help="that one file may count, else 100 million")
    ] = None,
    trust: Annotated[
        Path | None,
        typer.Option(help="public keys, one of which must have signed each file of moments"),
    ] = None,
    since: Annotated[
        Path | None,
        typer.Option(help="moments merged last: a device's counts may not have gone back since"),
    ] = None,
) -> None:
    """Add up what was measured in several places, without what can't be used.

    Stats are relevance, by calibrate or in use; moments are what flexrel-edge observe writes.
    """
    from flexrel.cli.statistics import merged_file
    from flexrel_edge.files import replace_file

    found = merged_file(files, most_samples, trust, since)
    replace_file(out, found.data)
    for file, reason in found.dropped:
        typer.echo(f"warning: {file} was dropped: {reason}", err=True)
    typer.echo(
        f"{out}: {found.used} of {len(files)} files, {found.layers} layers, "
        f"{found.samples:,.0f} samples"
    )


@data_app.command("report")
def report_command(
    directory: Annotated[Path, typer.Argument(help="that prune --out wrote")],
    show: Annotated[bool, typer.Option("--open", help="open it in a browser")] = False,
) -> None:
    """Make the report again from result.json and plan.json."""
    from jinja2 import UndefinedError

    from flexrel.core.plan import check_model
    from flexrel.errors import UsageError
    from flexrel.io import render
    from flexrel_edge.files import replace_file

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


@data_app.command("doctor")
def doctor_command(as_json: JsonOption = False) -> None:
    """Say what is installed, whether it loads, what computes, and what to do where it does not.

    Exit code 1 if something is wrong that FlexRel can't do without.
    """
    from dataclasses import asdict

    from flexrel.cli.doctor import findings

    found = []
    for one in findings():
        found.append(one)
        if not as_json:
            advice = f"; {one.advice}" if one.advice else ""
            typer.echo(f"{one.state:8}{one.name}: {one.told}{advice}")
    if as_json:
        typer.echo(json.dumps({"findings": [asdict(one) for one in found]}))
    if any(one.needed and one.state != "ok" for one in found):
        raise typer.Exit(1)


_RECORDS = ("result.json", "plan.json")
