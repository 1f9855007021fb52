"""What brings accuracy back after a cut: repair in closed form, and training; and rounding."""

from flexrel.repair.closed_form import LATE, reconstruct_
from flexrel.repair.finetune import FineTune
from flexrel.repair.gradual import GradualPruner
from flexrel.repair.holder import MaskHolder
from flexrel.repair.moments import (
    SecondMoments,
    drawn_rows,
    inputs_at,
    outputs_at,
    samples_at,
    second_moments,
)
from flexrel.repair.recovery import ClosedForm, Recovery, RepairResult
from flexrel.repair.rounding import round_
from flexrel.repair.systems import normal_solution

__all__ = [
    "LATE",
    "ClosedForm",
    "FineTune",
    "GradualPruner",
    "MaskHolder",
    "Recovery",
    "RepairResult",
    "SecondMoments",
    "drawn_rows",
    "inputs_at",
    "normal_solution",
    "outputs_at",
    "reconstruct_",
    "round_",
    "samples_at",
    "second_moments",
]
