"""How far what a network returns is from what the dense one does."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional

from flexrel.core.batches import Batch, RawBatch, read_batches
from flexrel.core.running import call, is_class_scores, tensors_of, undisturbed
from flexrel.errors import ModelError

_SCALES: Final = math.log(1e6)  # of scores of unit size, at most, and one over it at least
_BISECTIONS: Final = 48


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


def check_shapes(goals: Sequence[Tensor], found: Sequence[Tensor]) -> None:
    """Raise a ModelError if two networks return different shapes."""
    shapes = [[list(tensor.shape) for tensor in tensors] for tensors in (found, goals)]
    if shapes[0] != shapes[1]:
        raise ModelError(f"the network returns {shapes[0]}, the dense network {shapes[1]}")


def apart_but_for_scale(
    goal: Float[Tensor, "samples classes"], found: Float[Tensor, "samples classes"]
) -> float:
    """Return how far class scores are from the dense network's, but for how confident they are.

    The mean Kullback-Leibler divergence of the predicted distributions, in nats, where the scores
    found are first multiplied by the one factor above 0 that makes it least. A cut makes all
    scores smaller, which no answer depends on. Infinity where scores are not finite.

    Source:
        Ours; the factor is one over the temperature of Guo et al., "On Calibration of Modern
        Neural Networks" (2017), section 4.2, which changes no prediction.
    """
    if not bool(goal.isfinite().all() and found.isfinite().all()):
        return math.inf
    log_goal = goal.double().log_softmax(1)
    share = log_goal.exp()
    scores = found.double() - found.double().mean(1, keepdim=True)
    size = float(scores.square().mean().sqrt())
    scores = scores / size if size else scores
    wanted = (share * scores).sum()
    low, high = -_SCALES, _SCALES  # logarithms of the factor; its slope rises
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        have = ((scores * math.exp(middle)).softmax(1) * scores).sum()
        low, high = (middle, high) if have < wanted else (low, middle)
    factors = (size, math.exp((low + high) / 2))  # as they are; as they do best
    at = (share * (log_goal - (scores * factor).log_softmax(1)) for factor in factors)
    return max(min(float(each.sum(1).mean()) for each in at), 0.0)


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
    check_shapes(goals, found)
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


class Divergence:
    """How far a network's outputs are from the dense network's, on calibration data.

    Needs no labels. Lower is better, 0 is the dense network itself. For class scores: the mean
    Kullback-Leibler divergence of the predicted distributions, in nats, but for how confident all
    of them are (`apart_but_for_scale`). For other outputs, also several in tuples or mappings: the
    squared error over the squared size of the dense outputs.
    """

    def __init__(self, dense: nn.Module, batches: Sequence[RawBatch]) -> None:
        """Run the dense network once over the batches and keep its outputs."""
        self._batches = batches
        self._goals = list(_outputs(dense, batches))
        alone = [goals[0] for goals in self._goals if len(goals) == 1]
        classes = {goal.shape[1] for goal in alone if is_class_scores(goal)}
        self._scores = len(alone) == len(self._goals) and len(classes) == 1

    def __call__(self, model: nn.Module) -> float:
        """Return the model's divergence; infinity where its outputs are not finite.

        Raises:
            ModelError: its outputs have other shapes than the dense network's.
        """
        pairs = zip(self._goals, _outputs(model, self._batches), strict=True)
        if self._scores:
            return _apart_together(pairs)
        error, size = 0.0, 0.0
        for goals, found in pairs:
            more = apart(goals, found)
            error, size = error + float(more[0]), size + float(more[1])
        value = error / size if size else error
        return value if math.isfinite(value) else math.inf


def _apart_together(pairs: Iterable[tuple[list[Tensor], list[Tensor]]]) -> float:
    """Return how far class scores of all batches are apart: one factor serves them all."""
    dense, pruned = list[Tensor](), list[Tensor]()
    for goals, found in pairs:
        check_shapes(goals, found)
        dense += goals
        pruned += found
    return apart_but_for_scale(torch.cat(dense), torch.cat(pruned))


def _outputs(model: nn.Module, batches: Sequence[RawBatch]) -> Iterator[list[Tensor]]:
    with undisturbed(model), torch.no_grad():
        for batch in read_batches(batches, model):
            yield numbers_in(call(model, batch), batch)
