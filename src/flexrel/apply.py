"""From a plan to a network: zeros for elements, really smaller tensors for channels."""

import copy

import torch
from torch import Tensor, nn

from flexrel.batches import Batch, call
from flexrel.errors import ModelError
from flexrel.records import Plan
from flexrel.structure import mask_, shrink_

_AGREE = 1e-4  # largest difference of outputs, as a share of the largest output


def apply(model: nn.Module, plan: Plan) -> nn.Module:
    """Return a copy of the model with the plan carried out; the model itself is not changed.

    Args:
        model: that the plan's structure was read from.
        plan: elements become zeros; channels are removed for real.

    Raises:
        ModelError: the model can't be copied.
    """
    pruned = _copy(model)
    if plan.structure.granularity == "element":
        mask_(pruned, plan)
    else:
        shrink_(pruned, plan)
    return pruned


def verify(model: nn.Module, pruned: nn.Module, plan: Plan, example: Batch) -> None:
    """Check that the pruned network computes what the model with zeroed units computes.

    Raises:
        ModelError: it does not, or it does not run; says by how much they differ.
    """
    masked = _copy(model)
    mask_(masked, plan)
    expected, found = (_outputs(network, example) for network in (masked, pruned))
    for want, have in zip(expected, found, strict=True):
        if want.shape != have.shape:
            raise ModelError(
                f"the cut network returns {list(have.shape)}, the masked one {list(want.shape)}"
            )
        if want.numel() == 0:
            continue
        apart = float((want - have).abs().max())
        if not apart <= _AGREE * max(float(want.abs().max()), 1.0):
            raise ModelError(
                f"the cut network's outputs differ from the masked one's by {apart:.3g}; "
                "nothing was returned. Leave layers alone with keep= to find the cause"
            )


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        raise ModelError(f"the model can't be copied: {str(error).splitlines()[0]}") from error


def _outputs(network: nn.Module, example: Batch) -> list[Tensor]:
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    with torch.no_grad():
        result = call(network, example)
    for module, training in modes:
        module.training = training
    found = result if isinstance(result, list | tuple) else [result]
    return [value.float() for value in found if isinstance(value, Tensor)]
