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
from flexrel.io.notebook import as_axes, as_frame, as_html, as_text
from flexrel.io.report import amount, count, figure, percent, render
from flexrel.io.timing import (
    LayerPoint,
    check_runtime,
    dense_time,
    layer_times,
    network_times,
    timed_file,
)

__all__ = [
    "EXPORTS",
    "LayerPoint",
    "amount",
    "as_axes",
    "as_frame",
    "as_html",
    "as_text",
    "check_exports",
    "check_path",
    "check_runtime",
    "count",
    "dense_time",
    "encode",
    "export",
    "export_notes",
    "exported",
    "figure",
    "fit",
    "graph_notes",
    "layer_times",
    "load",
    "network_times",
    "percent",
    "render",
    "timed_file",
]
