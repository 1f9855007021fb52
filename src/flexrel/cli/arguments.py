"""Arguments that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

from flexrel.relevance import OUTPUTS, RULES

ModelArgument = Annotated[
    str, typer.Argument(help="file.py:factory, package.module:factory or demo:digits")
]
WeightsOption = Annotated[
    Path | None,
    typer.Option(help=".safetensors, an index of some (.json), .flexrel, or a checkpoint of torch"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="one JSON object on stdout")]
SeedOption = Annotated[int, typer.Option(help="of every random number")]
RuleOption = Annotated[
    str,
    typer.Option(
        help=f"of relevance: {', '.join(RULES)}; by layer: features.*=gamma,head*=epsilon"
    ),
]
OutputOption = Annotated[
    str, typer.Option(help=f"what relevance starts from, and obs counts: {', '.join(OUTPUTS)}")
]
DATA = "file.py:factory, package.module:factory, an .npz with x and y, or demo:digits"
