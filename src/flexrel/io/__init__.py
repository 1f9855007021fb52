"""What is written and read: packed files, exported networks, the report."""

from flexrel.io.encode import PackReport, encode, names_of, pack
from flexrel.io.export import (
    EXPORTS,
    check_exports,
    check_path,
    export,
    exported,
    fixed,
    graph_notes,
)
from flexrel.io.load import fit, load
from flexrel.io.report import count, percent, render

__all__ = [
    "EXPORTS",
    "PackReport",
    "check_exports",
    "check_path",
    "count",
    "encode",
    "export",
    "exported",
    "fit",
    "fixed",
    "graph_notes",
    "load",
    "names_of",
    "pack",
    "percent",
    "render",
]
