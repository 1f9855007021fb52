"""From a plan to a network: zeros for weights and blocks, smaller tensors for channels."""

from torch import nn

from flexrel.batches import Batch
from flexrel.errors import ModelError
from flexrel.records import Plan
from flexrel.structure import disagreement, duplicate, mask_, shrink_


def apply(model: nn.Module, plan: Plan) -> nn.Module:
    """Return a copy of the model with the plan carried out; the model itself is not changed.

    Args:
        model: that the plan's structure was read from.
        plan: weights and blocks become zeros; channels and heads are removed for real.

    Raises:
        ModelError: the model can't be copied.
    """
    pruned = duplicate(model)
    if plan.structure.pattern.zeros:
        mask_(pruned, plan)
    else:
        shrink_(pruned, plan)
    return pruned


def verify(model: nn.Module, pruned: nn.Module, plan: Plan, example: Batch) -> None:
    """Check that the pruned network computes what the model with zeroed units computes.

    Raises:
        ModelError: it does not, or it does not run; says by how much they differ.
    """
    reason = disagreement(model, pruned, plan, example)
    if reason is not None:
        raise ModelError(
            f"{reason}; nothing was returned. Leave layers alone with keep= to find the cause"
        )
