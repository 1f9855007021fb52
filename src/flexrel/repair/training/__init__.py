"""Training of a pruned network, its zeros held."""

from flexrel.repair.training.finetune import FineTune
from flexrel.repair.training.holder import MaskHolder

__all__ = ["FineTune", "MaskHolder"]
