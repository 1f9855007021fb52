"""What a network's outputs are, and how far those of two networks are apart for that."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional

from flexrel.core.answers import IGNORED
from flexrel.core.batches import Batch
from flexrel.core.running import is_class_scores, tensors_of
from flexrel.errors import ModelError, UsageError

Outputs = Literal["classes", "logits", "values"]
# (what the dense network returned for a batch, what another did) -> their mean distance, a scalar
OutputDistance = Callable[[Any, Any], Tensor]
RequestedOutputs = Literal["auto"] | Outputs | OutputDistance

OUTPUT_KINDS: Final = ("auto", "classes", "logits", "values")
_YES_OR_NO: Final = ({0, 1}, {-1, 1}, {0}, {1})
_SCALES: Final = math.log(1e6)  # of scores of unit size, at most, and one over it at least
_BISECTIONS: Final = 48


def check_outputs(outputs: str | OutputDistance) -> None:
    """Raise a UsageError if there are no such outputs."""
    if not callable(outputs) and outputs not in OUTPUT_KINDS:
        raise UsageError(
            f"outputs {outputs!r} is not known; there are: {', '.join(OUTPUT_KINDS)}, or a "
            "function (dense network's result, another's) -> their mean distance"
        )


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
    if shapes[0] == shapes[1]:
        return
    pairs = list(zip(*shapes, strict=False))
    one, other = next((pair for pair in pairs if pair[0] != pair[1]), map(len, shapes))
    what = "" if isinstance(one, list) else " tensors"
    raise ModelError(
        f"the network returns {one}{what} where the dense network returns {other}; how many there "
        "are of what is selected, such as boxes above a score, depends on the weights: prune a "
        "network that returns the scores themselves and holds this one, "
        "docs/how-to/images.md#boxes, and take it out of the result"
    )


# --- what they are ------------------------------------------------------------------------------


def outputs_told(numbers: Sequence[Tensor], labels: Tensor | None) -> Outputs | None:
    """Return what labels say that a batch's outputs are; None if there are no labels.

    Class numbers in range, or probabilities, for `[samples, classes]` say "classes"; zeros and
    ones, or minus ones and ones, one for each output, say "logits", of which each is one of its
    own; all else "values".
    """
    if labels is None:
        return None
    if len(numbers) != 1:
        return "values"
    scores = numbers[0]
    if is_class_scores(scores) and class_goals(labels, scores) is not None:
        return "classes"
    if labels.numel() == scores.numel() and set(labels.unique().tolist()) in _YES_OR_NO:
        return "logits"
    return "values"


def class_goals(labels: Tensor, scores: Float[Tensor, "samples classes"]) -> Tensor | None:
    """Return labels as cross entropy takes them: numbers or probabilities; None: they are neither.

    Numbers in `IGNORED` stand for samples that do not count.
    """
    if labels.shape == scores.shape[:1]:
        numbers = labels.long()
        whole = bool((numbers == labels).all())
        known = numbers[~torch.isin(numbers, numbers.new_tensor(IGNORED))]
        fits = whole and len(known) > 0 and int(known.min()) >= 0
        fits = fits and int(known.max()) < scores.shape[1]
        return numbers if fits else None
    if labels.shape != scores.shape:
        return None
    shares = labels.to(scores.dtype)
    sums = shares.sum(1)
    fits = bool((shares >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3)
    return shares if fits else None


def resolved(
    outputs: RequestedOutputs, batches: Iterable[tuple[Sequence[Tensor], Tensor | None]]
) -> Outputs | OutputDistance:
    """Return what outputs are: as asked, or what all labels say; without any, "values".

    Args:
        outputs: as in `prune`.
        batches: outputs of the dense network, and labels if there are any.

    Raises:
        UsageError: they were said to be class scores, and are not.
    """
    if outputs == "classes":
        for numbers, _ in batches:
            if len(numbers) != 1 or not is_class_scores(numbers[0]):
                raise UsageError(
                    "outputs 'classes' needs scores [samples, classes], but the network returns "
                    f"{', '.join(str(list(tensor.shape)) for tensor in numbers)}; pass 'values', "
                    "'logits' or a distance of your own"
                )
    if callable(outputs) or outputs != "auto":
        return outputs
    told = {kind for kind in (outputs_told(*batch) for batch in batches) if kind}
    return told.pop() if len(told) == 1 else "values"


# --- how far they are apart ---------------------------------------------------------------------


def apart(
    outputs: Outputs,
    goals: Sequence[Tensor],
    found: Sequence[Tensor],
    *,
    weights: Shaped[Tensor, "samples"] | None = None,
    temperature: float = 1.0,
) -> tuple[Float[Tensor, "tensors"], Float[Tensor, "tensors"]]:
    """Return how far outputs are from the dense network's, and what to divide that by.

    For "classes" and "logits", where each is a distribution of its own: the Kullback-Leibler
    divergences of the predicted distributions, in nats, summed; and the number of samples. For
    "values": the squared error, and the squared size of the dense outputs. One pair for each
    tensor, so that each is weighed by its own size.

    Args:
        outputs: what they are.
        goals: outputs of the dense network.
        found: outputs of the other, as many and of the same shapes.
        weights: how often each sample counts; of tensors whose first axis is another, unused.
        temperature: that scores are divided by, so that small probabilities count; the
            divergence is multiplied by its square, so that gradients keep their size.

    Raises:
        ModelError: the two networks return different shapes.

    Source:
        Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (2015), section 2.
    """
    check_shapes(goals, found)
    pairs = [
        _values_apart(*pair, weights)
        if outputs == "values"
        else _scores_apart(outputs, *pair, weights, temperature)
        for pair in zip(goals, found, strict=True)
    ]
    errors, sizes = zip(*pairs, strict=True)
    return torch.stack(errors), torch.stack(sizes)


def _values_apart(
    goal: Tensor, have: Tensor, weights: Tensor | None
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    counts = _counts(goal, weights)
    return ((have - goal).square() * counts).sum(), (goal.square() * counts).sum()


def _scores_apart(
    outputs: Outputs, goal: Tensor, have: Tensor, weights: Tensor | None, temperature: float
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    # In single precision what two distributions that hardly differ are apart may be below 0.
    pair = (tensor.double() / temperature for tensor in (have, goal))
    if outputs == "logits":
        pair = (torch.stack((tensor, torch.zeros_like(tensor)), -1) for tensor in pair)
        log_have, log_goal = (tensor.log_softmax(-1) for tensor in pair)
    else:
        log_have, log_goal = (tensor.log_softmax(1) for tensor in pair)
    divergences = functional.kl_div(log_have, log_goal, log_target=True, reduction="none")
    divergences = divergences.reshape(len(goal), -1).sum(1)
    counts = goal.new_ones(len(goal)) if weights is None else weights.to(goal)
    return (divergences * counts).sum().to(goal) * temperature**2, counts.sum()


def _counts(goal: Tensor, weights: Tensor | None) -> Tensor:
    if weights is None or not goal.ndim or len(goal) != len(weights):
        return goal.new_ones(())
    return weights.to(goal).view(-1, *[1] * (goal.ndim - 1))


def mean_apart(errors: Float[Tensor, "tensors"], sizes: Float[Tensor, "tensors"]) -> Tensor:
    """Return the mean of what `apart` returns, in which each tensor is weighed by its own size."""
    return (errors / torch.where(sizes > 0, sizes, 1)).mean()


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
