"""What a saved file tells people besides the network: what it takes, and how it came out."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from flexrel.core.plan import Plan
from flexrel.core.resources import Candidate
from flexrel.pruning.limits import Limits
from flexrel_edge.about import annotated
from flexrel_edge.graph import EVIDENCE, INPUTS


@dataclass(frozen=True, slots=True, eq=False)
class Annotated:
    """A network, and its packed file with the notes."""

    rounded: nn.Module
    packed: bytes


def unnoted(packed: bytes) -> bytes:
    """Return a packed file without what `noted` adds, as those of candidates and rivals are."""
    return annotated(packed, {INPUTS: None, EVIDENCE: None})


def noted(
    packed: bytes, notes: Mapping[str, str], model: nn.Module, plan: Plan, limits: Limits
) -> tuple[bytes, list[str]]:
    """Return a packed file with notes, or as it is and a line on why they were left out.

    Args:
        packed: of the network, which keeps to the limits.
        notes: texts for its metadata.
        model: the network.
        plan: that it was made by.
        limits: that it keeps to with the notes too, or goes without.
    """
    found = Annotated(model, annotated(packed, notes))
    candidate = Candidate(plan.graph, plan.graph.units, lambda: plan, lambda _: found)
    for resource, limit in limits.measured:
        amount = resource.count(candidate)
        if not resource.met(amount, limit):
            left_out = (
                "model.flexrel does not tell its inputs, accuracy and widths, which `flexrel "
                f"inspect` shows: with them it takes {resource.told(amount)}, above "
                f"{resource.told(limit)}"
            )
            return packed, [left_out]
    return found.packed, []
