"""A result whose packed file tells people of it: its bytes are those that count."""

from dataclasses import replace

from flexrel.core.resources import Candidate
from flexrel.pruning.annotation import Annotated
from flexrel.pruning.result import Result


def recorded(result: Result, dense: Candidate) -> Result:
    """Return the result with its inputs, accuracy, amounts and widths in its packed file.

    Where a budget leaves no room for that it is left out; `Result.save` says so.

    Args:
        result: as it was measured.
        dense: the network as it came.
    """
    packed, _ = result.annotated()
    plan = result.plan
    units, network = plan.graph.units, Annotated(result.model, packed)
    candidate = Candidate(plan.graph, units, lambda: plan, lambda _: network)
    counted = result.limits.counted(dense, candidate)
    return replace(
        result,
        packed=packed,
        evidence=result.evidence.in_file(len(packed)),
        achieved=replace(result.achieved, bytes=len(packed)),
        amounts={**counted, **(result.timing.amounts if result.timing else {})},
    )
