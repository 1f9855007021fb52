"""The command that prunes, as those in `commands`."""

import json
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
    InputNamesOption,
    JsonOption,
    KeepOption,
    MeanOption,
    ModelArgument,
    MultipleOption,
    OutputOption,
    OutputsOption,
    OverwriteOption,
    QuietOption,
    RecoverOption,
    RuleOption,
    SeedOption,
    SizeOption,
    StdOption,
    ValuesOption,
    WeightsOption,
    Words,
)
from flexrel.cli.choices import check, check_asked, told
from flexrel.cli.paths import EXPORTED, WRITTEN, check_folder

if TYPE_CHECKING:
    from flexrel.pruning import Result

prune_app = typer.Typer()


@prune_app.command("prune")
def prune_command(
    words: Words,
    model: ModelArgument,
    calibration: CalibrationOption,
    evaluation: EvaluationOption = None,
    weights: WeightsOption = None,
    target: Annotated[
        str | None, typer.Option(help=told("target"), callback=check("target"))
    ] = None,
    assured: Annotated[
        bool, typer.Option("--assured", help="keep a margin, so that the target can be promised")
    ] = False,
    budget: Annotated[
        list[str] | None, typer.Option(help=told("budget"), callback=check("budget"))
    ] = None,
    latency_profile: Annotated[
        Path | None,
        typer.Option(help="times that flexrel-edge profile measured on the device that is meant"),
    ] = None,
    granularity: GranularityOption = "channel",
    criterion: CriterionOption = "auto",
    allocation: AllocationOption = "global",
    keep: KeepOption = None,
    multiple_of: MultipleOption = 1,
    rule: RuleOption = "gradient-input",
    output: OutputOption = "auto",
    outputs: OutputsOption = "auto",
    recover: RecoverOption = "closed-form",
    regrow: Annotated[
        bool,
        typer.Option("--regrow", help="let weights that were zero before become other numbers"),
    ] = False,
    values: ValuesOption = "float32",
    form: FormOption = "auto",
    effort: EffortOption = "default",
    time_limit: Annotated[
        str | None,
        typer.Option(
            help='such as "2 min": return the best found by then', callback=check("time_limit")
        ),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="folder that keeps what is measured, for the next call", file_okay=False),
    ] = None,
    statistics: Annotated[
        Path | None,
        typer.Option(
            "--statistics",
            "--stats",
            help="measured before: relevance, by calibrate or in use, or moments of devices",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    observed_with: Annotated[
        Path | None,
        typer.Option(
            help="packed file that the devices ran, where --statistics are moments",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    dry: Annotated[bool, typer.Option("--dry-run", help="only say what is possible")] = False,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="measure magnitude and relevance too, at several sizes, for the report; "
            "takes as long again",
        ),
    ] = False,
    size: SizeOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    class_names: ClassNamesOption = None,
    seed: SeedOption = 0,
    out: Annotated[
        Path, typer.Option(help="folder for the results; those of others stay, unless --overwrite")
    ] = Path("pruned"),
    overwrite: OverwriteOption = False,
    export: Annotated[
        list[str] | None,
        typer.Option(
            help="into --out too: onnx, pt2; graph: ONNX inside of model.flexrel; observe: "
            "that too, and it can tell what flexrel-edge observe writes",
            callback=check("export"),
        ),
    ] = None,
    input_names: InputNamesOption = None,
    log: Annotated[
        Path | None, typer.Option(help="add events to this file, a JSON object a line")
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Return the smallest network that keeps to a target and budgets.

    Example: flexrel prune net.py:make --weights net.safetensors --calibration data.py:inputs
    --evaluation data.py:labelled --target accuracy-drop=1% --out pruned
    """
    if not dry:
        check_folder(out, overwrite=overwrite)
        check_asked(target, budget, granularity, evaluation, compare=compare)
    from flexrel.cli.feasible import told_possible
    from flexrel.cli.images import image_notes, kept_in_memory, prepared
    from flexrel.cli.models import read_model
    from flexrel.cli.options import (
        parse_budgets,
        parse_class_names,
        parse_log,
        parse_names,
        parse_rule,
    )
    from flexrel.cli.origin import origin_of
    from flexrel.cli.show import StoppedError
    from flexrel.cli.sources import first_batch, read_data, read_evaluate
    from flexrel.cli.statistics import with_statistics
    from flexrel.core.progress import shown
    from flexrel.core.targets import targets_of
    from flexrel.io import check_exports, check_inputs
    from flexrel.pruning import PruneOptions, criteria_of, dry_run, prune
    from flexrel.pruning import compare as compare_result
    from flexrel.relevance import Attribution

    names, called = parse_names(input_names), parse_class_names(class_names)
    check_exports(exports := export or [], names)
    progress: Literal["auto"] | None = None if quiet else "auto"
    criteria = criteria_of(criterion, granularity, recover, Attribution(parse_rule(rule), output))
    budgets, targets = parse_budgets(budget or [], latency_profile), targets_of(target)
    with shown(progress) as tell:
        tell("loading the network", 0, None)
        source = read_model(model, weights, seed, tell)
        network, images = source.network, prepared(source.preparation, size, mean, std)
        how = images, source.called(called)
        evaluate = read_evaluate(evaluation, *how, outputs, source.tokenizer)
        tell("reading calibration data", 0, None)
        given, part = kept_in_memory(read_data(calibration, "calibration", *how, source.tokenizer))
        used = with_statistics(network, given, statistics, observed_with)
        check_inputs(names, network, [first_batch(used.batches)] if names else [])
    if dry:
        found = dry_run(
            network,
            calibration=used.batches,
            budgets=budgets,
            granularity=granularity,
            values=values,  # type: ignore[arg-type]
            keep=keep or (),
            options=PruneOptions(multiple_of=multiple_of, form=form),  # type: ignore[arg-type]
        )
        raise typer.Exit(told_possible(found, as_json=as_json))
    result = prune(
        network,
        calibration=used.batches,
        evaluate=evaluate,
        target=targets,
        budgets=budgets,
        criterion=criteria,
        granularity=granularity,
        recover=recover,
        values=values,  # type: ignore[arg-type]  # checked, as the next four
        keep=keep or (),
        seed=seed,
        options=PruneOptions(
            allocation=allocation,  # type: ignore[arg-type]
            multiple_of=multiple_of,
            assured=assured,
            regrow=regrow,
            form=form,  # type: ignore[arg-type]
            effort=effort,  # type: ignore[arg-type]
            outputs=outputs,  # type: ignore[arg-type]
            time_limit=time_limit,
            cache=cache,
            stats=used.stats,
            listeners=parse_log(log),
            metadata=image_notes(given, evaluate),
            class_names=called or source.classes,
            progress=progress,
        ),
    )
    result = replace(
        result,
        warnings=(*part, *result.warnings, *used.notes),
        origin=origin_of(words.obj, words.params),
    )
    with shown(progress) as tell:
        tell("writing", 0, None)
        notes = result.save(out, exports, input_names=names)
    if compare:
        try:
            result = compare_result(
                result, network, calibration=used.batches, evaluate=evaluate, progress=progress
            )
            result.save(out, exports, input_names=names)
        except KeyboardInterrupt:
            raise StoppedError(
                f"stopped while others were measured; {out}/ has the network and its report, "
                "without them"
            ) from None
    for line in (*result.warnings, *notes):
        typer.echo(f"warning: {line}", err=True)
    if as_json or not quiet:
        _tell(result, out, exports, as_json=as_json)


def _tell(result: "Result", out: Path, exports: list[str], *, as_json: bool) -> None:
    """Print a result that was written to a folder."""
    from flexrel.cli.show import (
        files_in,
        latency_line,
        print_whole,
        recovery_lines,
        table,
        unmeasured,
        what_it_is,
    )

    record = json.loads((out / "result.json").read_text())
    result = replace(result, achieved=replace(result.achieved, bytes=record["achieved"]["bytes"]))
    kinds = {*exports, *(["pt2"] if result.form == "exported" else [])}
    programs = [name for name in EXPORTED if name.partition(".")[2] in kinds]
    files = files_in(out, (*WRITTEN, *programs))
    if as_json:
        typer.echo(json.dumps({**record, "out": str(out), "files": files}))
    else:
        print_whole(table(result))
        for line in filter(
            None, (*unmeasured(result), *recovery_lines(result), latency_line(result))
        ):
            typer.echo(line)
        typer.echo(what_it_is(result))
        typer.echo(f"Wrote {out}/: {', '.join(files)}")
