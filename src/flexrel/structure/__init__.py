"""Which axes of which tensors must be cut together, and cutting them."""

from flexrel.structure.analyse import analyse
from flexrel.structure.apply import apply, verify
from flexrel.structure.cut import (
    Layer,
    Number,
    Transposed,
    changed,
    gone_entries,
    kept_positions,
    mask_,
    named_tensors,
    number_in,
    resize_,
    set_number_,
    shrink_,
)
from flexrel.structure.probe import difference, disagreement, outputs
from flexrel.structure.program import Program, export, quiet, saved, torch_program, trains
from flexrel.structure.skip import passed_over, skip_

__all__ = [
    "Layer",
    "Number",
    "Program",
    "Transposed",
    "analyse",
    "apply",
    "changed",
    "difference",
    "disagreement",
    "export",
    "gone_entries",
    "kept_positions",
    "mask_",
    "named_tensors",
    "number_in",
    "outputs",
    "passed_over",
    "quiet",
    "resize_",
    "saved",
    "set_number_",
    "shrink_",
    "skip_",
    "torch_program",
    "trains",
    "verify",
]
