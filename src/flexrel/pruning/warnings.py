"""What the user of a result should know, a line each."""

from flexrel.core.caches import caching
from flexrel.core.cost import left_whole
from flexrel.core.graph import PruningGraph
from flexrel.core.network import PlainNetwork
from flexrel.core.plan import Plan
from flexrel.pruning.data import CalibrationData, input_shift
from flexrel.pruning.evaluation import EvaluationData

_CACHES = (
    "the network returns a cache for its next call; config.use_cache was turned off while it was "
    "pruned, and is on again in the result"
)
_MUCH = 0.05  # of all weights


def warnings_of(
    plain: PlainNetwork, evaluation: EvaluationData, data: CalibrationData, plan: Plan
) -> tuple[str, ...]:
    """Return all that may be wrong with a request, or that a plan left."""
    why = (
        "within the target none can go"
        if evaluation.goals
        else "the budgets ask for no less than the network takes as it came"
    )
    units = plan.graph.pattern.units
    nothing = () if plan.removed else (f"no {units} were removed: {why}",)
    shift = input_shift(plain.network, data.batches)
    caches = (_CACHES,) if caching(plain.network) else ()
    unlike = (str(shift),) if shift and shift.warns else ()
    return (
        *plain.warnings,
        *caches,
        *data.warnings,
        *evaluation.warnings,
        *unlike,
        *nothing,
        *left_warnings(plan.graph),
    )


def left_warnings(graph: PruningGraph) -> tuple[str, ...]:
    """Return which modules hold more than 5 % of the weights and were left whole, and why.

    Args:
        graph: of the plan; what is kept on request is no surprise.
    """
    return tuple(
        f"{module} holds {share:.0%} of the weights and was left as it is: {reason}"
        for module, share, reason in left_alone(graph)
        if share > _MUCH and reason != "kept on request"
    )


def left_alone(graph: PruningGraph) -> list[tuple[str, float, str]]:
    """Return the modules that are left whole, their share of the weights, and why."""
    reasons = {one.name: one.reason for one in graph.protected}
    found: list[tuple[str, float, str]] = []
    for module, share in left_whole(graph).items():
        inside = (name for name in reasons if name == module or name.startswith(f"{module}."))
        found.append((module, share, reasons.get(next(inside, ""), "nothing of it can be cut")))
    return found
