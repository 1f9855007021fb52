"""The spine: from a network and what the target can afford to the pruned network."""

from flexrel.pruning.arguments import criteria_of
from flexrel.pruning.compare import compare
from flexrel.pruning.dry_run import Feasibility, Possibility, dry_run
from flexrel.pruning.evidence import Evidence, Origin
from flexrel.pruning.frontier import Reached, SweepPoint, SweepResult
from flexrel.pruning.kit import latency_kit
from flexrel.pruning.options import EFFORTS, FORMS, PruneOptions
from flexrel.pruning.packing import PackReport, pack
from flexrel.pruning.prune import prune
from flexrel.pruning.result import Result
from flexrel.pruning.sweep import sweep

__all__ = [
    "EFFORTS",
    "FORMS",
    "Evidence",
    "Feasibility",
    "Origin",
    "PackReport",
    "Possibility",
    "PruneOptions",
    "Reached",
    "Result",
    "SweepPoint",
    "SweepResult",
    "compare",
    "criteria_of",
    "dry_run",
    "latency_kit",
    "pack",
    "prune",
    "sweep",
]
