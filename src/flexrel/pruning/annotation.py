"""What a saved file tells people besides the network: what it takes, and how it came out."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import nn

from flexrel.core.plan import Plan
from flexrel.core.resources import Candidate
from flexrel.pruning.limits import Limits
from flexrel_edge.about import annotated
from flexrel_edge.graph import EVIDENCE, INPUTS, LABELS


@dataclass(frozen=True, slots=True, eq=False)
class Annotated:
    """A network, and its packed file with the notes."""

    rounded: nn.Module
    packed: bytes


def unnoted(packed: bytes, metadata: Collection[str] = ()) -> bytes:
    """Return a packed file without what `noted` adds, as those of candidates and rivals are.

    Args:
        packed: the file.
        metadata: keys of the caller's own, which stay.
    """
    ours = {INPUTS, LABELS, EVIDENCE}.difference(metadata)
    return annotated(packed, dict.fromkeys(ours))


def noted(
    packed: bytes, notes: Mapping[str, str], model: nn.Module, plan: Plan, limits: Limits
) -> tuple[bytes, list[str]]:
    """Return a packed file with notes, or with fewer and a line on why they were left out.

    Where a limit has no room for all of them names of classes go first, which may be many.

    Args:
        packed: of the network, which keeps to the limits.
        notes: texts for its metadata.
        model: the network.
        plan: that it was made by.
        limits: that it keeps to with the notes too, or goes without.
    """
    whole = annotated(packed, notes)
    over = _over(whole, model, plan, limits)
    if over is None:
        return whole, []
    nameless = {key: text for key, text in notes.items() if key != LABELS}
    fewer = annotated(packed, nameless)
    if len(nameless) < len(notes) and _over(fewer, model, plan, limits) is None:
        return fewer, [_left_out("the names of its classes", over)]
    return packed, [_left_out("its inputs, accuracy and widths", over)]


def _left_out(what: str, over: str) -> str:
    return (
        f"model.flexrel does not tell {what}, which `flexrel inspect` shows: with them it takes "
        f"{over}"
    )


def _over(packed: bytes, model: nn.Module, plan: Plan, limits: Limits) -> str | None:
    """Return what a file takes too much of, and how much it may; None if it keeps to all limits."""
    found = Annotated(model, packed)
    candidate = Candidate(plan.graph, plan.graph.units, lambda: plan, lambda _: found)
    for resource, limit in limits.measured:
        amount = resource.count(candidate)
        if not resource.met(amount, limit):
            return f"{resource.told(amount)}, above {resource.told(limit)}"
    return None
