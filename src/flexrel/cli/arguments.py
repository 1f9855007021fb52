"""Arguments that several commands have."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flexrel.cli.choices import check, told
from flexrel.cli.paths import DATA_FORMS, data_there, model_there

if TYPE_CHECKING:
    Words = typer.Context
else:
    Words = typer.Context.__mro__[1]  # what commands are really called with
"""Its `obj` are the words of a command, its `params` what they were read as."""

ModelArgument = Annotated[
    str,
    typer.Argument(
        help="file.py:factory, package.module:factory, torchvision:NAME, timm:NAME, hf:FOLDER, "
        "a .pt2 or demo:digits; arguments follow a ?, timm:resnet18?num_classes=10",
        callback=model_there,
    ),
]
WeightsOption = Annotated[
    Path | None,
    typer.Option(
        help=".safetensors, an index of some (.json), .flexrel, or a checkpoint of torch",
        exists=True,
        dir_okay=False,
    ),
]
CalibrationOption = Annotated[
    str, typer.Option("--calibration", help=f"inputs as in use; {DATA_FORMS}", callback=data_there)
]
InputsOption = Annotated[
    str, typer.Option("--data", help=f"inputs as in use; {DATA_FORMS}", callback=data_there)
]
InputNamesOption = Annotated[
    str | None,
    typer.Option("--input-names", help="of the inputs in ONNX, with commas; else as in forward"),
]
EvaluationOption = Annotated[
    str | None,
    typer.Option("--evaluation", help=f"labelled data; {DATA_FORMS}", callback=data_there),
]
SizeOption = Annotated[
    int | None, typer.Option(help="of images, in pixels, unless the network's own is known")
]
MeanOption = Annotated[
    str | None, typer.Option(help="of images' channels in [0, 1]: 0.485,0.456,0.406; likewise")
]
StdOption = Annotated[str | None, typer.Option(help="likewise: 0.229,0.224,0.225")]
ClassNamesOption = Annotated[
    Path | None,
    typer.Option(
        help="file of what classes are called, one a line or JSON; else as the data, or the "
        "network, call them",
        exists=True,
        dir_okay=False,
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="one JSON object on stdout, also of an error")
]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="print nothing but warnings and errors")
]
SeedOption = Annotated[int, typer.Option(help="of every random number")]
RuleOption = Annotated[
    str, typer.Option(help=f"of relevance: {told('rule')}", callback=check("rule"))
]
OutputOption = Annotated[
    str,
    typer.Option(
        help=f"what relevance starts from, and obs counts: {told('output')}",
        callback=check("output"),
    ),
]
ValuesOption = Annotated[
    str, typer.Option(help=f"in the file: {told('values')}", callback=check("values"))
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="replace the results that lie in --out")
]
GranularityOption = Annotated[
    str, typer.Option(help=told("granularity"), callback=check("granularity"))
]
CriterionOption = Annotated[str, typer.Option(help=told("criterion"), callback=check("criterion"))]
AllocationOption = Annotated[
    str, typer.Option(help=told("allocation"), callback=check("allocation"))
]
KeepOption = Annotated[list[str] | None, typer.Option(help="a layer to leave alone")]
MultipleOption = Annotated[int, typer.Option(help="round widths up to multiples of this")]
OutputsOption = Annotated[
    str,
    typer.Option(help=f"what the network returns: {told('outputs')}", callback=check("outputs")),
]
RecoverOption = Annotated[
    str,
    typer.Option(help=f"{told('recover')} on the calibration data", callback=check("recover")),
]
FormOption = Annotated[
    str,
    typer.Option(
        help=f"what is cut: {told('form')}; the last where code fixes sizes",
        callback=check("form"),
    ),
]
EffortOption = Annotated[
    str,
    typer.Option(
        help=f"{told('effort')}: one criterion; several by quick sketches; all in full",
        callback=check("effort"),
    ),
]
