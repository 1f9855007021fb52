"""FlexRel: the smallest network that still does the job, and the evidence.

result = flexrel.prune(model, calibration=batches, evaluate=accuracy_of,
                       target=flexrel.AccuracyDrop(0.01))
result.save("pruned")
"""

from flexrel.apply import apply
from flexrel.budgets import AccuracyDrop, Budget, Bytes, MACs, Parameters, Sparsity
from flexrel.calibrate import calibrate
from flexrel.criteria import OBS, Criterion, FlexRel, Magnitude, Relevance
from flexrel.errors import BudgetError, FlexrelError, ModelError, PackError, UsageError
from flexrel.evaluate import Accuracy
from flexrel.evidence import Evidence
from flexrel.export import export
from flexrel.pack import Written, load, pack
from flexrel.pipeline import prune
from flexrel.plan import Plan
from flexrel.records import Measurement
from flexrel.recover import ClosedForm, FineTune, MaskHolder, Recovered, Recovery
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
    Rule,
    ZPlus,
)
from flexrel.result import Result
from flexrel.statistics import Statistics

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
    "Evidence",
    "FineTune",
    "FlexRel",
    "FlexrelError",
    "Gamma",
    "GradientInput",
    "MACs",
    "Magnitude",
    "MaskHolder",
    "Measurement",
    "ModelError",
    "PackError",
    "Parameters",
    "Plan",
    "Recovered",
    "Recovery",
    "Relevance",
    "Result",
    "Rule",
    "Sparsity",
    "Statistics",
    "UsageError",
    "Written",
    "ZPlus",
    "__version__",
    "apply",
    "calibrate",
    "export",
    "load",
    "pack",
    "prune",
]
