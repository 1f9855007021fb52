"""What training makes small: the distance from the labels, and from the dense network's outputs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from flexrel.core.answers import IGNORED
from flexrel.core.batches import Batch, missing_labels
from flexrel.core.distance import measured
from flexrel.core.outputs import (
    OutputDistance,
    Outputs,
    apart,
    class_goals,
    mean_apart,
    numbers_in,
)
from flexrel.core.running import call, is_class_scores, scores_in
from flexrel.errors import UsageError

Loss = Callable[[Any, Tensor], Tensor]  # (output, labels) -> the mean, or one number a sample
_WITH_LABELS = 0.5  # share of the loss from the dense network, if there are labels too


@dataclass(frozen=True, slots=True)
class Objective:
    """The loss of a network on a batch, on its device: lower is better.

    Attributes:
        network: in the mode that it is to be run in.
        dense: the network before it was pruned.
        outputs: what they are, or how far two networks' are apart.
        loss: from output and labels; None: what goes with the outputs.
        distillation: share of the loss that is the distance from the dense network's outputs.
        temperature: of class scores, in that distance.
    """

    network: nn.Module
    dense: nn.Module
    outputs: Outputs | OutputDistance
    loss: Loss | None
    distillation: float
    temperature: float

    def __call__(self, batch: Batch) -> Tensor:
        """Return the batch's mean loss, a scalar, in which samples count by their weights.

        Raises:
            UsageError: there are no labels where they count, or no loss for them.
            ModelError: a network does not run on the batch, or they return different shapes.
        """
        output = call(self.network, batch)
        loss = torch.zeros((), device=batch.tensors[0].device)
        if self.distillation > 0:
            with torch.no_grad():
                goal = call(self.dense, batch)
            loss = loss + self.distillation * self._apart(goal, output, batch)
        if self.distillation < 1:
            loss = loss + (1 - self.distillation) * self._from_labels(output, batch)
        return loss

    def _apart(self, goal: Any, output: Any, batch: Batch) -> Tensor:  # noqa: ANN401 - of any model
        if callable(self.outputs):
            return measured(self.outputs(goal, output))
        pair = numbers_in(goal, batch), numbers_in(output, batch)
        temperature = self.temperature
        return mean_apart(
            *apart(self.outputs, *pair, weights=batch.weights, temperature=temperature)
        )

    def _from_labels(self, output: Any, batch: Batch) -> Tensor:  # noqa: ANN401 - of any model
        if batch.labels is None:
            raise UsageError(
                f"{missing_labels(batch)}, but {1 - self.distillation:.4g} of the loss "
                "comes from labels; pass tuples (inputs, labels), or distillation=1"
            )
        if self.loss is None:
            outputs: Outputs = "values" if callable(self.outputs) else self.outputs
            values = _own_loss(outputs, output, batch.labels, batch.index)
        else:
            values = self.loss(output, batch.labels)
        shape = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
        allowed = [[], [batch.samples]] if batch.weights is None else [[batch.samples]]
        if shape not in allowed:
            raise UsageError(
                f"loss= must return one number a sample, [{batch.samples}], or, where samples have "
                f"no weights, their mean, but returned {shape} for batch {batch.index}"
            )
        if batch.weights is None:
            return values.float().mean()
        return (values.float() * batch.weights).sum() / batch.weights.sum()


def _own_loss(outputs: Outputs, output: Any, labels: Tensor, index: int) -> Tensor:  # noqa: ANN401
    """Return the loss of each sample of batch `index` that goes with what outputs are, `[samples]`.

    Cross entropy in nats of "classes", and of "logits", summed over them; of "values" the squared
    error over the mean square of the labels.

    Raises:
        UsageError: labels do not fit outputs.
    """
    scores = scores_in(output)
    goals = _goals(outputs, scores, labels)
    if goals is None:
        found = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise UsageError(
            f"without loss=, labels must fit outputs, which are {outputs!r}, but batch {index} has "
            f"outputs {found} and labels {list(labels.shape)}; pass loss=, a function (output, "
            "labels) -> number, or distillation=1"
        )
    scores = scores.float()
    if outputs == "classes":
        return functional.cross_entropy(scores, goals, reduction="none", ignore_index=IGNORED[0])
    if outputs == "logits":
        values = functional.binary_cross_entropy_with_logits(scores, goals, reduction="none")
        return values.reshape(len(scores), -1).sum(1)
    size = goals.square().mean()
    errors: Tensor = (scores - goals).square().reshape(len(scores), -1).mean(1)
    return errors / torch.where(size > 0, size, 1)


def _goals(outputs: Outputs, scores: Any, labels: Tensor) -> Tensor | None:  # noqa: ANN401
    """Return labels as the loss takes them; None: they do not fit the outputs."""
    if not isinstance(scores, Tensor):
        return None
    if outputs == "classes":
        goals = class_goals(labels, scores) if is_class_scores(scores) else None
        if goals is None or goals.is_floating_point():
            return goals
        return goals.masked_fill(goals < 0, IGNORED[0])
    if labels.numel() != scores.numel():
        return None
    goals = labels.reshape(scores.shape).float()
    return goals.clamp_min(0) if outputs == "logits" else goals  # of -1 and 1


def share_of(
    distillation: float | None,
    loss: Loss | None,
    outputs: Outputs | OutputDistance,
    output: Any,  # noqa: ANN401 - of any model
    labels: Tensor | None,
) -> float:
    """Return the share of the loss from the dense network: as asked, or else what fits the batch.

    Half with labels that there is a loss for, else all of it.
    """
    if distillation is not None:
        return distillation
    if loss is not None:
        return _WITH_LABELS
    fits = (
        labels is not None
        and not callable(outputs)
        and _goals(outputs, scores_in(output), labels) is not None
    )
    return _WITH_LABELS if fits else 1.0
