"""The commands that prune, as those in `commands`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from flexrel.cli.arguments import (
    DATA,
    JsonOption,
    ModelArgument,
    OutputOption,
    RuleOption,
    SeedOption,
    ValuesOption,
    WeightsOption,
)
from flexrel.cli.choices import check, told

prune_app = typer.Typer()


def _check_directory(out: Path | None) -> None:
    """Find out before the work, not after it, that results can't be written."""
    if out is not None and out.exists() and not out.is_dir():
        raise typer.BadParameter(f"{out} is a file; name a directory for the results")


@prune_app.command("demo")
def demo_command(
    out: Annotated[Path, typer.Option(help="directory for the results")] = Path("flexrel-demo"),
    seed: SeedOption = 0,
) -> None:
    """The whole story on handwritten digits, in under a minute: train, prune, pack, report."""
    _check_directory(out)
    from rich.console import Console

    from flexrel.cli import demo
    from flexrel.cli.show import progress_bars, table
    from flexrel.io import percent

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


@prune_app.command("prune")
def prune_command(
    model: ModelArgument,
    calibration: Annotated[str, typer.Option(help=f"inputs as in use; {DATA}")],
    evaluation: Annotated[str | None, typer.Option(help=f"labelled data; {DATA}")] = None,
    weights: WeightsOption = None,
    target: Annotated[
        str | None, typer.Option(help=told("target"), callback=check("target"))
    ] = None,
    budget: Annotated[
        list[str] | None, typer.Option(help=told("budget"), callback=check("budget"))
    ] = None,
    granularity: Annotated[
        str, typer.Option(help=told("granularity"), callback=check("granularity"))
    ] = "channel",
    criterion: Annotated[
        str, typer.Option(help=told("criterion"), callback=check("criterion"))
    ] = "auto",
    allocation: Annotated[
        str, typer.Option(help=told("allocation"), callback=check("allocation"))
    ] = "global",
    keep: Annotated[list[str] | None, typer.Option(help="a layer to leave alone")] = None,
    multiple_of: Annotated[int, typer.Option(help="round widths up to multiples of this")] = 1,
    rule: RuleOption = "gradient-input",
    output: OutputOption = "auto",
    outputs: Annotated[
        str,
        typer.Option(
            help=f"what the network returns: {told('outputs')}", callback=check("outputs")
        ),
    ] = "auto",
    recover: Annotated[
        str,
        typer.Option(help=f"{told('recover')} on the calibration data", callback=check("recover")),
    ] = "closed-form",
    values: ValuesOption = "float32",
    form: Annotated[
        str,
        typer.Option(
            help=f"what is cut: {told('form')}; the last where code fixes sizes",
            callback=check("form"),
        ),
    ] = "auto",
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="measure magnitude and relevance too, at several sizes, for the report; "
            "takes as long again",
        ),
    ] = False,
    seed: SeedOption = 0,
    out: Annotated[Path | None, typer.Option(help="directory for the results")] = None,
    export: Annotated[
        list[str] | None,
        typer.Option(
            help="into --out too: onnx, pt2; graph: ONNX inside of model.flexrel",
            callback=check("export"),
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Return the smallest network that keeps to a target and budgets.

    Example: flexrel prune net.py:make --weights net.safetensors --calibration data.py:inputs
    --evaluation data.py:labelled --target accuracy-drop=1% --out pruned
    """
    _check_directory(out)
    exports = export or []
    if exports and out is None:
        raise typer.BadParameter("--export writes into --out DIR; name one")
    if target and not evaluation:
        raise typer.BadParameter("a target on accuracy needs --evaluation DATA, with labels")
    if not (target or budget or ":" in granularity):
        raise typer.BadParameter("nothing to prune to; give --target or --budget")
    from rich.console import Console

    from flexrel.cli.options import parse_rule
    from flexrel.cli.show import progress_bars, recovery_lines, table, what_it_is
    from flexrel.cli.sources import read_data, read_model
    from flexrel.core.budgets import budget_of, target_of
    from flexrel.core.evaluate import Accuracy
    from flexrel.io import EXPORTS, check_exports
    from flexrel.pruning import PruneOptions, criteria_of, prune
    from flexrel.pruning import compare as compare_result
    from flexrel.relevance import Attribution

    check_exports(exports)
    budgets = [budget_of(text) for text in budget or []]
    goal = target_of(target) if target else None
    attribution = Attribution(parse_rule(rule), output)
    criteria = criteria_of(criterion, granularity, recover, attribution)
    evaluate = Accuracy(read_data(evaluation, "evaluation")) if evaluation else None
    with progress_bars() as progress:
        network = read_model(model, weights, seed, progress)
        data = list(read_data(calibration, "calibration"))
        result = prune(
            network,
            calibration=data,
            evaluate=evaluate,
            target=goal,
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
