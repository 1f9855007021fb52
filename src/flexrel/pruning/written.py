"""How measurements and numbers stand in `result.json`."""

import math
from collections.abc import Sequence
from typing import Any

from flexrel.core.evaluate import Metrics
from flexrel.core.measurement import Measurement, RecoveryStep
from flexrel.core.targets import Goal


def measurement_json(m: Measurement) -> dict[str, Any]:
    """Return what a record has of a rival, or of a point of a curve."""
    return {
        "criterion": m.criterion,
        "removed": m.removed,
        "weights_removed": m.weights_removed,
        "accuracy": m.accuracy,
        "divergence": finite(m.divergence),
        "parameters": m.parameters,
        "macs": m.macs,
        "bytes": m.bytes,
    }


def recovery_json(steps: Sequence[RecoveryStep]) -> list[dict[str, Any]]:
    """Return what a record has of repair and training."""
    return [
        {
            "step": step.name,
            "divergence_before": finite(step.before),
            "divergence_after": finite(step.after),
            "kept": step.kept,
            "notes": list(step.notes),
        }
        for step in steps
    ]


def goal_json(goal: Goal, dense: Metrics, achieved: Metrics) -> dict[str, Any]:
    """Return a target, and how the dense network and the pruned one do."""
    return {
        "metric": goal.metric,
        "lower_is_better": goal.lower_is_better,
        "limit": goal.limit,
        "dense": finite(dense[goal.metric]),
        "achieved": finite(achieved[goal.metric]),
    }


def metrics_json(metrics: Metrics) -> dict[str, float | None]:
    """Return metrics, None for those that JSON has no word for."""
    return {name: finite(value) for name, value in metrics.items()}


def finite(value: float | None) -> float | None:
    """Return the value, or None where JSON has no word for it."""
    return value if value is not None and math.isfinite(value) else None
