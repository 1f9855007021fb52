"""How far what a network returns is from what the dense one does."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional

from flexrel.batches import Batch
from flexrel.errors import ModelError
from flexrel.running import is_class_scores, tensors_of


def numbers_in(
    result: Any,  # noqa: ANN401 - whatever the model returns
    batch: Batch,
) -> list[Tensor]:
    """Return all tensors of numbers in what a model returned for a batch, in float32.

    Raises:
        ModelError: there is none.
    """
    numbers = [t.float() for t in tensors_of(result) if t.is_floating_point()]
    if not numbers:
        raise ModelError(
            f"the model returns a {type(result).__name__} for batch {batch.index} in which "
            "no tensor of numbers is found"
        )
    return numbers


def apart(
    goals: Sequence[Tensor],
    found: Sequence[Tensor],
    *,
    weights: Shaped[Tensor, "samples"] | None = None,
    temperature: float = 1.0,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return how far outputs are from the dense network's, and what to divide that by.

    For class scores, one tensor `[samples, classes]`: the Kullback-Leibler divergences of the
    predicted distributions, in nats, summed; and the number of samples. For other outputs: the
    squared error, and the squared size of the dense outputs, of all tensors together.

    Args:
        goals: outputs of the dense network.
        found: outputs of the other, as many and of the same shapes.
        weights: how often each sample counts; of tensors whose first axis is another, unused.
        temperature: that class scores are divided by, so that small probabilities count; the
            divergence is multiplied by its square, so that gradients keep their size.

    Raises:
        ModelError: the two networks return different shapes.

    Source:
        Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (2015), section 2.
    """
    shapes = [[list(tensor.shape) for tensor in tensors] for tensors in (found, goals)]
    if shapes[0] != shapes[1]:
        raise ModelError(f"the network returns {shapes[0]}, the dense network {shapes[1]}")
    if len(goals) == 1 and is_class_scores(goals[0]):
        # In single precision what two distributions that hardly differ are apart may be below 0.
        pair = (found[0].double(), goals[0].double())
        log_found, log_goal = ((t / temperature).log_softmax(1) for t in pair)
        divergences = functional.kl_div(log_found, log_goal, log_target=True, reduction="none")
        counts = goals[0].new_ones(len(goals[0])) if weights is None else weights.to(goals[0])
        total = (divergences.sum(1) * counts).sum() * temperature**2
        return total.to(goals[0]), counts.sum()
    error, size = goals[0].new_zeros(()), goals[0].new_zeros(())
    for goal, have in zip(goals, found, strict=True):
        counts = goal.new_ones(())
        if weights is not None and goal.ndim and len(goal) == len(weights):
            counts = weights.to(goal).view(-1, *[1] * (goal.ndim - 1))
        error = error + ((have - goal).square() * counts).sum()
        size = size + (goal.square() * counts).sum()
    return error, size
