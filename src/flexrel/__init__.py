"""FlexRel: the smallest network that still does the job, and the evidence.

result = flexrel.prune(model, calibration=batches, evaluate=accuracy_of,
                       target=flexrel.AccuracyDrop(0.01))
result.save("pruned")
"""

from flexrel.core.budgets import AccuracyDrop, Bytes, MACs, Parameters, Sparsity
from flexrel.core.evaluate import Accuracy
from flexrel.core.measurement import Measurement
from flexrel.core.plan import Plan
from flexrel.core.resources import Budget, Resource
from flexrel.core.targets import Ceiling, Floor, Target, Worsening
from flexrel.criteria import OBS, Criterion, FlexRel, Magnitude, Relevance
from flexrel.errors import BudgetError, FlexrelError, ModelError, PackError, UsageError
from flexrel.io import export, load
from flexrel.pruning import (
    Feasibility,
    PackReport,
    PruneOptions,
    Result,
    compare,
    dry_run,
    pack,
    prune,
)
from flexrel.relevance import RULES, RelevanceStats, Rule, calibrate
from flexrel.repair import ClosedForm, FineTune, MaskHolder, Recovery
from flexrel.structure import apply

__version__ = "0.1.0"

__all__ = [
    "OBS",
    "RULES",
    "Accuracy",
    "AccuracyDrop",
    "Budget",
    "BudgetError",
    "Bytes",
    "Ceiling",
    "ClosedForm",
    "Criterion",
    "Feasibility",
    "FineTune",
    "FlexRel",
    "FlexrelError",
    "Floor",
    "MACs",
    "Magnitude",
    "MaskHolder",
    "Measurement",
    "ModelError",
    "PackError",
    "PackReport",
    "Parameters",
    "Plan",
    "PruneOptions",
    "Recovery",
    "Relevance",
    "RelevanceStats",
    "Resource",
    "Result",
    "Rule",
    "Sparsity",
    "Target",
    "UsageError",
    "Worsening",
    "__version__",
    "apply",
    "calibrate",
    "compare",
    "dry_run",
    "export",
    "load",
    "pack",
    "prune",
]
