"""What a pruned network lost, and getting it back."""

from flexrel.recover.finetune import FineTune, Trained
from flexrel.recover.holder import MaskHolder

__all__ = ["FineTune", "MaskHolder", "Trained"]
