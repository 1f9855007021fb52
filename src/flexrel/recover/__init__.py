"""What brings accuracy back after a cut: repair in closed form, and training."""

from flexrel.recover.closed_form import LayerRepair, reconstruct_
from flexrel.recover.recovery import ClosedForm, Recovered, Recovery, recoveries

__all__ = ["ClosedForm", "LayerRepair", "Recovered", "Recovery", "reconstruct_", "recoveries"]
