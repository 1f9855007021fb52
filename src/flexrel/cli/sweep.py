"""The command that makes networks of several sizes, as those in `commands`."""

import json
import shlex
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flexrel.cli.arguments import (
    AllocationOption,
    CalibrationOption,
    ClassNamesOption,
    CriterionOption,
    EffortOption,
    EvaluationOption,
    FormOption,
    GranularityOption,
    JsonOption,
    KeepOption,
    MeanOption,
    ModelArgument,
    MultipleOption,
    OutputsOption,
    QuietOption,
    RecoverOption,
    SeedOption,
    SizeOption,
    StdOption,
    ValuesOption,
    WeightsOption,
)
from flexrel.cli.choices import check

if TYPE_CHECKING:
    from flexrel.pruning import SweepPoint, SweepResult

sweep_app = typer.Typer()


def _points(text: str) -> int | list[str]:
    """Return how many points a text asks for, or their amounts.

    Raises:
        typer.BadParameter: it says neither.
    """
    if text.isdecimal():
        return int(text)
    amounts = [part.strip() for part in text.split(",")]
    if not all(amounts):
        raise typer.BadParameter(f"points {text!r} can't be read; write 6, or 50%,25%,10%")
    return amounts


@sweep_app.command("sweep")
def sweep_command(
    model: ModelArgument,
    calibration: CalibrationOption,
    evaluation: EvaluationOption = None,
    weights: WeightsOption = None,
    resource: Annotated[
        str,
        typer.Option(
            help="bytes, macs, parameters, memory, link@1Mbit/s, latency@onnxruntime,threads=2 "
            "or sparsity"
        ),
    ] = "bytes",
    points: Annotated[
        str,
        typer.Option(
            help="how many, evenly in the logarithm down to what is possible; or amounts: "
            "50%,25%,10%"
        ),
    ] = "6",
    trials: Annotated[
        int,
        typer.Option(
            help="networks more, of other sizes, criteria, granularities and values, that Optuna "
            "chooses for a better front",
            min=0,
        ),
    ] = 0,
    metric: Annotated[str, typer.Option(help="that networks are compared by")] = "accuracy",
    lower: Annotated[
        bool, typer.Option("--lower-is-better", help="of the metric, as of a loss")
    ] = False,
    granularity: GranularityOption = "channel",
    criterion: CriterionOption = "auto",
    allocation: AllocationOption = "global",
    keep: KeepOption = None,
    multiple_of: MultipleOption = 1,
    outputs: OutputsOption = "auto",
    recover: RecoverOption = "closed-form",
    values: ValuesOption = "float32",
    form: FormOption = "auto",
    effort: EffortOption = "default",
    time_limit: Annotated[
        str | None,
        typer.Option(help='of each network, such as "2 min"', callback=check("time_limit")),
    ] = None,
    size: SizeOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    class_names: ClassNamesOption = None,
    seed: SeedOption = 0,
    out: Annotated[
        Path,
        typer.Option(
            help="folder of frontier.json and of the study; a sweep that lies there goes on",
            file_okay=False,
        ),
    ] = Path("sweep"),
    files: Annotated[
        bool, typer.Option("--files", help="write what prune writes for each point, into --out")
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Say how well networks of several sizes do, with the command that makes each.

    Example: flexrel sweep net.py:make --weights net.safetensors --calibration data.py:inputs
    --evaluation data.py:labelled --resource macs --points 6
    """
    if not evaluation:
        raise typer.BadParameter("a sweep needs --evaluation DATA, with labels")
    asked = _points(points)
    from flexrel.cli.images import kept_in_memory, prepared
    from flexrel.cli.models import read_model
    from flexrel.cli.options import parse_class_names
    from flexrel.cli.show import StoppedError
    from flexrel.cli.sources import read_data, read_evaluate
    from flexrel.core.progress import shown
    from flexrel.pruning import PruneOptions, sweep

    given_names = parse_class_names(class_names)
    progress: Literal["auto"] | None = None if quiet else "auto"
    with shown(progress) as tell:
        tell("loading the network", 0, None)
        source = read_model(model, weights, seed, tell)
        images = prepared(source.preparation, size, mean, std)
        classes = source.called(given_names)
        evaluate = read_evaluate(evaluation, images, classes, outputs, source.tokenizer)
        tell("reading calibration data", 0, None)
        given = read_data(calibration, "calibration", images, classes, source.tokenizer)
        data, part = kept_in_memory(given)
    options = PruneOptions(
        allocation=allocation,  # type: ignore[arg-type]  # checked, as the others
        multiple_of=multiple_of,
        form=form,  # type: ignore[arg-type]
        effort=effort,  # type: ignore[arg-type]
        outputs=outputs,  # type: ignore[arg-type]
        time_limit=time_limit,
        class_names=given_names or source.classes,
        progress=progress,
    )
    try:
        found = sweep(
            source.network,
            calibration=data,
            evaluate=evaluate,  # type: ignore[arg-type]  # which there is
            resource=resource,
            points=asked,
            trials=trials,
            metric=metric,
            lower_is_better=lower,
            folder=out,
            files=files,
            criterion=criterion,
            granularity=granularity,
            recover=recover,
            values=values,  # type: ignore[arg-type]
            keep=keep or (),
            seed=seed,
            options=options,
        )
    except KeyboardInterrupt:
        raise StoppedError(
            f"stopped; {out}/ keeps the points that were made, and the same command goes on"
        ) from None
    same: list[tuple[str, object]] = [
        ("--calibration", calibration),
        ("--evaluation", evaluation),
        ("--weights", weights),
        *(("--keep", layer) for layer in keep or ()),
        ("--allocation", None if allocation == "global" else allocation),
        ("--outputs", None if outputs == "auto" else outputs),
        ("--recover", None if recover == "closed-form" else recover),
        ("--form", None if form == "auto" else form),
        ("--effort", None if effort == "default" else effort),
        ("--time-limit", time_limit),
        ("--size", size),
        ("--mean", mean),
        ("--std", std),
        ("--class-names", class_names),
        ("--seed", seed or None),
    ]
    words = ["flexrel", "prune", model, *_options(same)]
    resolved = "channel" if granularity == "auto" else granularity  # whose widths are rounded
    width = _options([("--multiple-of", None if multiple_of == 1 else multiple_of)])

    def with_command(point: "SweepPoint") -> "SweepPoint":
        own = [
            ("--budget", point.budget),
            ("--criterion", None if point.criterion == "auto" else point.criterion),
            ("--granularity", None if point.granularity == "channel" else point.granularity),
            ("--values", None if point.values == "float32" else point.values),
        ]
        rounded = width if point.granularity == resolved else []
        return replace(point, command=shlex.join([*words, *_options(own), *rounded]))

    found = replace(found, points=tuple(map(with_command, found.points)))
    found.save(out / "frontier.json")
    for line in part:
        typer.echo(f"warning: {line}", err=True)
    if as_json:
        typer.echo(json.dumps({**found.as_json(), "out": str(out)}))
    elif not quiet:
        _tell(found, out)


def _options(given: Iterable[tuple[str, object]]) -> list[str]:
    """Return the words of those options that are given: of each its name and its value."""
    return [word for name, value in given if value is not None for word in (name, str(value))]


def _tell(found: "SweepResult", out: Path) -> None:
    """Print a frontier, its points in a table, and the commands of those on the front."""
    from flexrel.cli.frontier import front_table, refusals
    from flexrel.cli.show import print_whole

    print_whole(front_table(found))
    for line in refusals(found):
        typer.echo(f"impossible: {line}", err=True)
    for point in found.front():
        typer.echo(point.command)
    typer.echo(f"Wrote {out / 'frontier.json'}")
