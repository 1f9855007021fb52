"""Which axes of which tensors must be cut together, and cutting them."""

from flexrel.structure.analyse import analyse
from flexrel.structure.cut import (
    Layer,
    Number,
    Transposed,
    changed,
    mask_,
    named_tensors,
    number_in,
    resize_,
    set_number_,
    shrink_,
)
from flexrel.structure.probe import disagreement, duplicate

__all__ = [
    "Layer",
    "Number",
    "Transposed",
    "analyse",
    "changed",
    "disagreement",
    "duplicate",
    "mask_",
    "named_tensors",
    "number_in",
    "resize_",
    "set_number_",
    "shrink_",
]
