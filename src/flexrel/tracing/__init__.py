"""What operations a network runs, and which of them are calls of its layers."""

from flexrel.tracing.layers import (
    AffineCall,
    ConvGeometry,
    LayerCall,
    Owner,
    ParameterOwners,
    affine_call,
    layer_call,
)
from flexrel.tracing.ops import NORMS, Function, Op, OpRecorder, is_fixed, operation_name
from flexrel.tracing.unbatched import check_batched
from flexrel.tracing.works import layer_works

__all__ = [
    "NORMS",
    "AffineCall",
    "ConvGeometry",
    "Function",
    "LayerCall",
    "Op",
    "OpRecorder",
    "Owner",
    "ParameterOwners",
    "affine_call",
    "check_batched",
    "is_fixed",
    "layer_call",
    "layer_works",
    "operation_name",
]
