"""Which axes of which tensors must be cut together, and cutting them."""

from flexrel.structure.activations import activations_of
from flexrel.structure.analyse import analyse
from flexrel.structure.modules import (
    LinearOrConv,
    RecurrentLayer,
    SizePlace,
    TransposedConv,
    cut_changes,
    gates_of,
    passed_over,
    set_size_,
    size_at,
    skip_,
)
from flexrel.structure.program import (
    Program,
    exported_program,
    program_bytes,
    quiet,
    torch_program,
)
from flexrel.structure.surgery import (
    apply,
    gone_by,
    gone_entries,
    kept_positions,
    named_tensors,
    resize_,
)
from flexrel.structure.verify import difference, outputs, untrainable, verify
from flexrel.structure.weights import weights_of_layers

__all__ = [
    "LinearOrConv",
    "Program",
    "RecurrentLayer",
    "SizePlace",
    "TransposedConv",
    "activations_of",
    "analyse",
    "apply",
    "cut_changes",
    "difference",
    "exported_program",
    "gates_of",
    "gone_by",
    "gone_entries",
    "kept_positions",
    "named_tensors",
    "outputs",
    "passed_over",
    "program_bytes",
    "quiet",
    "resize_",
    "set_size_",
    "size_at",
    "skip_",
    "torch_program",
    "untrainable",
    "verify",
    "weights_of_layers",
]
