"""What brings accuracy back after a cut: repair in closed form, and training."""

from flexrel.recover.closed_form import LayerRepair, reconstruct_

__all__ = ["LayerRepair", "reconstruct_"]
