"""Which axes of which tensors must be cut together, and cutting them."""

from flexrel.structure.analyse import analyse
from flexrel.structure.cut import mask_, named_tensors, resize_, shrink_
from flexrel.structure.probe import disagreement, duplicate

__all__ = ["analyse", "disagreement", "duplicate", "mask_", "named_tensors", "resize_", "shrink_"]
