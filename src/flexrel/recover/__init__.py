"""What brings accuracy back after a cut: repair in closed form, and training."""

from flexrel.recover.asked import recoveries
from flexrel.recover.closed_form import LayerRepair, reconstruct_
from flexrel.recover.finetune import FineTune
from flexrel.recover.holder import MaskHolder
from flexrel.recover.recovery import ClosedForm, Recovered, Recovery

__all__ = [
    "ClosedForm",
    "FineTune",
    "LayerRepair",
    "MaskHolder",
    "Recovered",
    "Recovery",
    "reconstruct_",
    "recoveries",
]
