"""Arguments that several commands have."""

from pathlib import Path
from typing import Annotated, Final

import typer

from flexrel.cli.choices import check, told

DATA: Final = "file.py:factory, package.module:factory, an .npz with x and y, or demo:digits"

ModelArgument = Annotated[
    str, typer.Argument(help="file.py:factory, package.module:factory or demo:digits")
]
WeightsOption = Annotated[
    Path | None,
    typer.Option(help=".safetensors, an index of some (.json), .flexrel, or a checkpoint of torch"),
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
    typer.Option(help=f"what relevance starts from: {told('output')}", callback=check("output")),
]
ValuesOption = Annotated[
    str, typer.Option(help=f"in the file: {told('values')}", callback=check("values"))
]
