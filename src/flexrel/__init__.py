"""FlexRel: the smallest network that still does the job, and the evidence.

result = flexrel.prune(model, calibration=batches, evaluate=accuracy_of,
                       target=flexrel.AccuracyDrop(0.01))
result.save("pruned")

A name is imported when it is first asked for: torch takes a second to load, which `flexrel --help`
does without.
"""

from importlib import import_module
from typing import TYPE_CHECKING

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
    "Latency",
    "Link",
    "MACs",
    "Magnitude",
    "MaskHolder",
    "Measurement",
    "MergedStats",
    "ModelError",
    "PackError",
    "PackReport",
    "Parameters",
    "PeakMemory",
    "Plan",
    "PruneOptions",
    "Recovery",
    "Regression",
    "Relevance",
    "RelevanceStats",
    "Resource",
    "Result",
    "Rule",
    "Segmentation",
    "Sparsity",
    "SweepPoint",
    "SweepResult",
    "Target",
    "UsageError",
    "Worsening",
    "__version__",
    "apply",
    "calibrate",
    "compare",
    "dry_run",
    "export",
    "latency_kit",
    "load",
    "merge",
    "pack",
    "prune",
    "sweep",
]

if TYPE_CHECKING:
    from flexrel import hub as hub
    from flexrel import observed as observed
    from flexrel import online as online
    from flexrel import tracking as tracking
    from flexrel import training as training
    from flexrel.core.budgets import AccuracyDrop, Bytes, MACs, Parameters, Sparsity
    from flexrel.core.evaluate import Accuracy
    from flexrel.core.latency import Latency
    from flexrel.core.link import Link
    from flexrel.core.measurement import Measurement
    from flexrel.core.memory import PeakMemory
    from flexrel.core.plan import Plan
    from flexrel.core.regression import Regression
    from flexrel.core.resources import Budget, Resource
    from flexrel.core.segmentation import Segmentation
    from flexrel.core.targets import Ceiling, Floor, Target, Worsening
    from flexrel.criteria import OBS, Criterion, FlexRel, Magnitude, Relevance
    from flexrel.errors import BudgetError, FlexrelError, ModelError, PackError, UsageError
    from flexrel.io import export, load
    from flexrel.pruning import (
        Feasibility,
        PackReport,
        PruneOptions,
        Result,
        SweepPoint,
        SweepResult,
        compare,
        dry_run,
        latency_kit,
        pack,
        prune,
        sweep,
    )
    from flexrel.relevance import RULES, MergedStats, RelevanceStats, Rule, calibrate, merge
    from flexrel.repair import ClosedForm, FineTune, MaskHolder, Recovery
    from flexrel.structure import apply
else:
    _HOMES = {  # as above
        "core.budgets": ("AccuracyDrop", "Bytes", "MACs", "Parameters", "Sparsity"),
        "core.evaluate": ("Accuracy",),
        "core.regression": ("Regression",),
        "core.latency": ("Latency",),
        "core.link": ("Link",),
        "core.measurement": ("Measurement",),
        "core.memory": ("PeakMemory",),
        "core.plan": ("Plan",),
        "core.resources": ("Budget", "Resource"),
        "core.segmentation": ("Segmentation",),
        "core.targets": ("Ceiling", "Floor", "Target", "Worsening"),
        "criteria": ("OBS", "Criterion", "FlexRel", "Magnitude", "Relevance"),
        "errors": ("BudgetError", "FlexrelError", "ModelError", "PackError", "UsageError"),
        "io": ("export", "load"),
        "pruning": (
            "Feasibility",
            "SweepResult",
            "SweepPoint",
            "PackReport",
            "PruneOptions",
            "Result",
            "compare",
            "dry_run",
            "latency_kit",
            "pack",
            "prune",
            "sweep",
        ),
        "relevance": ("RULES", "MergedStats", "RelevanceStats", "Rule", "calibrate", "merge"),
        "repair": ("ClosedForm", "FineTune", "MaskHolder", "Recovery"),
        "structure": ("apply",),
    }

    def __getattr__(name: str) -> object:  # type checkers see the imports, and not this
        if name in ("hub", "observed", "online", "tracking", "training"):
            return import_module(f"flexrel.{name}")
        for home, names in _HOMES.items():
            if name in names:
                globals()[name] = found = getattr(import_module(f"flexrel.{home}"), name)
                return found
        raise AttributeError(f"module 'flexrel' has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
