"""What is written and read: packed files, exported networks, the report."""

from flexrel.io.comparison import Comparison, SideRow, comparison_of, render_comparison
from flexrel.io.device import DENSE, DeviceProfile, write_kit
from flexrel.io.encode import cut_notes, encode, names_of
from flexrel.io.export import (
    EXPORTS,
    check_exports,
    check_named,
    check_path,
    export,
    export_notes,
    exported,
    graph_notes,
)
from flexrel.io.figures import amount, count, figure, granularities, percent
from flexrel.io.inputs import (
    check_inputs,
    check_metadata,
    evidence_note,
    inputs_note,
    names_note,
)
from flexrel.io.load import fit, load, restore_
from flexrel.io.notebook import as_axes, as_frame, as_html, as_text, compared
from flexrel.io.png import png_of
from flexrel.io.report import render
from flexrel.io.timing import (
    LayerPoint,
    check_runtime,
    dense_time,
    layer_times,
    network_times,
    timed_file,
)

__all__ = [
    "DENSE",
    "EXPORTS",
    "Comparison",
    "DeviceProfile",
    "LayerPoint",
    "SideRow",
    "amount",
    "as_axes",
    "as_frame",
    "as_html",
    "as_text",
    "check_exports",
    "check_inputs",
    "check_metadata",
    "check_named",
    "check_path",
    "check_runtime",
    "compared",
    "comparison_of",
    "count",
    "cut_notes",
    "dense_time",
    "encode",
    "evidence_note",
    "export",
    "export_notes",
    "exported",
    "figure",
    "fit",
    "granularities",
    "graph_notes",
    "inputs_note",
    "layer_times",
    "load",
    "names_note",
    "names_of",
    "network_times",
    "percent",
    "png_of",
    "render",
    "render_comparison",
    "restore_",
    "timed_file",
    "write_kit",
]
