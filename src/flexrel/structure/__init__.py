"""Which axes of which tensors must be cut together, and cutting them."""

from flexrel.structure.analyse import analyse
from flexrel.structure.cut import mask_, resize_, shrink_

__all__ = ["analyse", "mask_", "resize_", "shrink_"]
