"""What is written and read: packed files, exported networks, the report."""

from flexrel.io.encode import encode
from flexrel.io.export import (
    EXPORTS,
    check_exports,
    check_path,
    export,
    export_notes,
    exported,
    graph_notes,
)
from flexrel.io.load import fit, load
from flexrel.io.report import count, figure, percent, render

__all__ = [
    "EXPORTS",
    "check_exports",
    "check_path",
    "count",
    "encode",
    "export",
    "export_notes",
    "exported",
    "figure",
    "fit",
    "graph_notes",
    "load",
    "percent",
    "render",
]
