"""What operations a network runs, and which of them are calls of its layers."""

from flexrel.tracing.affine import READERS, AffineCall, Geometry
from flexrel.tracing.functions import Function, flat, name_of, overwrites
from flexrel.tracing.norms import NORMS, bound, is_fixed
from flexrel.tracing.owners import Owner, Weights
from flexrel.tracing.recorder import LayerCall, Op, OpRecorder, layer_call

__all__ = [
    "NORMS",
    "READERS",
    "AffineCall",
    "Function",
    "Geometry",
    "LayerCall",
    "Op",
    "OpRecorder",
    "Owner",
    "Weights",
    "bound",
    "flat",
    "is_fixed",
    "layer_call",
    "name_of",
    "overwrites",
]
