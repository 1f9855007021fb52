"""FlexRel: the smallest network that still does the job, and the evidence.

result = flexrel.prune(model, calibration=batches, evaluate=accuracy_of,
                       target=flexrel.AccuracyDrop(0.01))
result.save("pruned")
"""

from flexrel.core.budgets import AccuracyDrop, Budget, Bytes, MACs, Parameters, Sparsity
from flexrel.core.evaluate import Accuracy
from flexrel.core.measurement import Measurement
from flexrel.core.plan import Plan
from flexrel.criteria import OBS, Criterion, FlexRel, GroupSignals, Magnitude, Relevance
from flexrel.errors import BudgetError, FlexrelError, ModelError, PackError, UsageError
from flexrel.io import PackReport, export, load, pack
from flexrel.pruning import Result, prune
from flexrel.relevance import (
    RULES,
    Affine,
    AttnLRP,
    Balance,
    ByDepth,
    ByName,
    Epsilon,
    Gamma,
    GradientInput,
    RelevanceStats,
    Rule,
    ZPlus,
    calibrate,
)
from flexrel.repair import ClosedForm, FineTune, MaskHolder, Recovery, RepairResult
from flexrel.structure import apply

__version__ = "0.1.0"

__all__ = [
    "OBS",
    "RULES",
    "Accuracy",
    "AccuracyDrop",
    "Affine",
    "AttnLRP",
    "Balance",
    "Budget",
    "BudgetError",
    "ByDepth",
    "ByName",
    "Bytes",
    "ClosedForm",
    "Criterion",
    "Epsilon",
    "FineTune",
    "FlexRel",
    "FlexrelError",
    "Gamma",
    "GradientInput",
    "GroupSignals",
    "MACs",
    "Magnitude",
    "MaskHolder",
    "Measurement",
    "ModelError",
    "PackError",
    "PackReport",
    "Parameters",
    "Plan",
    "Recovery",
    "Relevance",
    "RelevanceStats",
    "RepairResult",
    "Result",
    "Rule",
    "Sparsity",
    "UsageError",
    "ZPlus",
    "__version__",
    "apply",
    "calibrate",
    "export",
    "load",
    "pack",
    "prune",
]
