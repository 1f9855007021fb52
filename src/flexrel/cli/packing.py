"""The commands on packed files, as those in `commands`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from flexrel.cli.arguments import (
    CalibrationOption,
    EvaluationOption,
    InputNamesOption,
    InputsOption,
    JsonOption,
    MeanOption,
    ModelArgument,
    SeedOption,
    SizeOption,
    StdOption,
    ValuesOption,
    WeightsOption,
)
from flexrel.cli.choices import check, told
from flexrel.cli.paths import DATA_FORMS, data_there

packing_app = typer.Typer()


@packing_app.command("pack")
def pack_command(
    model: ModelArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="packed file")],
    weights: WeightsOption = None,
    plan: Annotated[
        Path | None, typer.Option(help="a plan.json, carried out on the network first")
    ] = None,
    values: ValuesOption = "float32",
    calibration: Annotated[
        str | None,
        typer.Option(
            help=f"int8 and int4 round so that outputs on it stay; {DATA_FORMS}",
            callback=data_there,
        ),
    ] = None,
    graph: Annotated[
        str | None,
        typer.Option(
            help=f"carry the ONNX graph too, made with inputs of {DATA_FORMS}", callback=data_there
        ),
    ] = None,
    observe: Annotated[
        bool,
        typer.Option(
            "--observe", help="with --graph: it can tell what flexrel-edge observe writes"
        ),
    ] = False,
    evaluation: EvaluationOption = None,
    target: Annotated[
        str | None,
        typer.Option(help=f"{told('target')}, for --values auto", callback=check("target")),
    ] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(help="NAME=TEXT or NAME=@FILE: labels, licence, ...")
    ] = None,
    codec: Annotated[
        str,
        typer.Option(
            help="pcodec-1, or zstd-1 for devices that pcodec has no wheel for",
            callback=check("codec"),
        ),
    ] = "pcodec-1",
    input_names: InputNamesOption = None,
    size: SizeOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    seed: SeedOption = 0,
) -> None:
    """Pack a network as it is, or as a plan cuts it."""
    from flexrel.cli.images import image_notes, kept_in_memory, prepared
    from flexrel.cli.models import read_model
    from flexrel.cli.options import parse_metadata, parse_names
    from flexrel.cli.sources import first_batch, read_data, read_evaluate
    from flexrel.core.class_names import class_names
    from flexrel.core.plan import Plan
    from flexrel.core.progress import shown
    from flexrel.core.targets import targets_of
    from flexrel.io import graph_notes, names_note, percent
    from flexrel.pruning import pack
    from flexrel.structure import apply

    cut = Plan.load(plan) if plan else None
    texts = parse_metadata(metadata or [])
    targets = targets_of(target)
    with shown("auto") as progress:
        progress("loading the network", 0, None)
        source = read_model(model, weights, seed, progress)
        images = prepared(source.preparation, size, mean, std)
        how, texts_in = (images, source.called(())), source.tokenizer
        data = read_data(calibration, "calibration", *how, texts_in) if calibration else ()
        data, part = kept_in_memory(data)
        example = first_batch(read_data(graph, "calibration", *how, texts_in)) if graph else None
        evaluate = read_evaluate(evaluation, *how, tokenizer=texts_in)
        called = source.classes or class_names((), source.network, (evaluate, data), None)[0]
        network = apply(source.network, cut) if cut else source.network
        progress("packing", 0, None)
        done = pack(
            network,
            out,
            values,  # type: ignore[arg-type]  # checked
            calibration=data,
            evaluate=evaluate,
            target=targets,
            graph=example,
            metadata={**image_notes(data, evaluate), **names_note(called, texts), **texts},
            codec=codec,
            input_names=parse_names(input_names),
            observe=observe,
        )
    typer.echo(f"{out}: {done.bytes:,} bytes, {done.values}")
    if done.accuracy is not None and done.accuracy_before is not None:
        typer.echo(f"accuracy {percent(done.accuracy_before)} -> {percent(done.accuracy)}")
    if done.divergence is not None:
        typer.echo(f"divergence of its outputs from the network's: {done.divergence:.3g}")
    notes = graph_notes(str(out), out.read_bytes()) if graph else ()
    for line in (*part, *done.warnings, *notes):
        typer.echo(f"warning: {line}", err=True)


@packing_app.command("export")
def export_command(
    model: ModelArgument,
    out: Annotated[Path, typer.Argument(help="to write; an .onnx or .pt2")],
    data: InputsOption,
    weights: WeightsOption = None,
    plan: Annotated[
        Path | None, typer.Option(help="a plan.json, carried out on the network first")
    ] = None,
    input_names: InputNamesOption = None,
    size: SizeOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    seed: SeedOption = 0,
) -> None:
    """Write a network for other programs: as ONNX, or as a program of torch.export.

    Example: flexrel export net.py:make net.onnx --data data.py:inputs --weights
    pruned/model.flexrel
    """
    from flexrel.cli.images import prepared
    from flexrel.cli.models import read_model
    from flexrel.cli.options import parse_names
    from flexrel.cli.sources import first_batch, read_data
    from flexrel.core.plan import Plan
    from flexrel.core.progress import shown
    from flexrel.io import check_path, export, export_notes
    from flexrel.structure import apply

    check_path(out)
    cut = Plan.load(plan) if plan else None
    with shown("auto") as progress:
        progress("loading the network", 0, None)
        source = read_model(model, weights, seed, progress)
        images = prepared(source.preparation, size, mean, std)
        example = first_batch(read_data(data, "calibration", images, (), source.tokenizer))
        network = apply(source.network, cut) if cut else source.network
        progress("exporting", 0, None)
        samples = export(network, example, out, input_names=parse_names(input_names))
    typer.echo(f"{out}: {out.stat().st_size:,} bytes")
    for line in export_notes(out.name, samples, network):
        typer.echo(f"warning: {line}", err=True)


@packing_app.command("inspect")
def inspect_command(
    file: Annotated[Path, typer.Argument(help="packed file, or a plan.json")],
    tensors: Annotated[
        bool, typer.Option("--tensors", help="each tensor of a packed file too")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Say what a packed file's network takes, does and lost, or what a plan does and why."""
    if file.suffix == ".json":
        from rich.console import Console

        from flexrel.cli.show import plan_tables
        from flexrel.core.plan import Plan

        plan = Plan.load(file)
        if as_json:
            typer.echo(json.dumps(plan.as_json()))
            return
        console = Console()
        for shown in plan_tables(plan):
            console.print(shown)
        return
    from flexrel_edge import inspect

    inspect(file)  # what is wrong with it is told like other errors
    words = [*["--tensors"] * tensors, *["--json"] * as_json]
    raise typer.Exit(_edge(["inspect", str(file), *words]))


@packing_app.command("unpack")
def unpack_command(
    file: Annotated[Path, typer.Argument(help="packed file")],
    out: Annotated[Path, typer.Argument(help="to write; an .onnx, or else safetensors")],
) -> None:
    """Write a packed file's tensors as safetensors, or its network as .onnx if it has the graph."""
    raise typer.Exit(_edge(["unpack", str(file), str(out)]))


@packing_app.command("diff")
def diff_command(
    old: Annotated[Path, typer.Argument(help="packed file that devices have")],
    new: Annotated[Path, typer.Argument(help="packed file that they are to have")],
    update: Annotated[Path | None, typer.Argument(help="to write")] = None,
    beside: Annotated[
        bool, typer.Option("--beside", help="write it beside NEW, where `flexrel-edge pull` looks")
    ] = False,
) -> None:
    """Write an update: what makes one packed file of another, byte for byte."""
    where = [*(["--beside"] if beside else []), *([] if update is None else [str(update)])]
    raise typer.Exit(_edge(["diff", str(old), str(new), *where]))


@packing_app.command("patch")
def patch_command(
    old: Annotated[Path, typer.Argument(help="packed file")],
    update: Annotated[Path, typer.Argument(help="that diff wrote")],
    new: Annotated[Path, typer.Argument(help="packed file to write; it may be the old one")],
) -> None:
    """Make the new packed file of the old one and an update; all are verified."""
    raise typer.Exit(_edge(["patch", str(old), str(update), str(new)]))


@packing_app.command("sign")
def sign_command(
    file: Annotated[Path, typer.Argument(help="packed file, signed in place")],
    key: Annotated[Path, typer.Option(help="PEM file of an Ed25519 private key")],
    counter: Annotated[
        int | None, typer.Option(help="of versions; else the seconds since 1970")
    ] = None,
) -> None:
    """Sign a packed file; `flexrel-edge keygen` makes keys, and devices check with --trust."""
    counted = [] if counter is None else ["--counter", str(counter)]
    raise typer.Exit(_edge(["sign", str(file), "--key", str(key), *counted]))


def _edge(words: list[str]) -> int:
    """Return the exit code of a command that devices have too."""
    from flexrel_edge.cli import main

    return main(words)


@packing_app.command("latency-kit")
def latency_kit_command(
    model: ModelArgument,
    calibration: CalibrationOption,
    out: Annotated[Path, typer.Option("--out", "-o", help="zip for flexrel-edge profile")],
    weights: WeightsOption = None,
    batch: Annotated[int, typer.Option(help="samples a call", min=1)] = 1,
    granularity: Annotated[
        str, typer.Option(help="channel, head or depth", callback=check("granularity"))
    ] = "channel",
    multiple_of: Annotated[
        int, typer.Option(help="that widths will be rounded to; 1: what is fast", min=1)
    ] = 1,
    size: SizeOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    seed: SeedOption = 0,
) -> None:
    """Write what a device times, so that a network can be pruned to a latency there."""
    from flexrel.cli.images import prepared
    from flexrel.cli.models import read_model
    from flexrel.cli.sources import read_data
    from flexrel.core.measurement import silent
    from flexrel.io import count
    from flexrel.pruning import latency_kit

    source = read_model(model, weights, seed, silent)
    images = prepared(source.preparation, size, mean, std)
    parts = latency_kit(
        source.network,
        out,
        calibration=read_data(calibration, "calibration", images, (), source.tokenizer),
        batch=batch,
        granularity=granularity,
        multiple_of=multiple_of,
    )
    typer.echo(f"{out}: {count(parts)} layers and networks, {count(out.stat().st_size)} bytes")
    typer.echo(f"Next, on the device: flexrel-edge profile {out.name} --out device.json")
