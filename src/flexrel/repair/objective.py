"""What training makes small: the distance from the labels, and from the dense network's outputs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from flexrel.core.batches import Batch
from flexrel.core.distance import apart, numbers_in
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
        loss: from output and labels; None: cross entropy of class scores.
        distillation: share of the loss that is the distance from the dense network's outputs.
        temperature: of class scores, in that distance.
    """

    network: nn.Module
    dense: nn.Module
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
                goals = numbers_in(call(self.dense, batch), batch)
            found = numbers_in(output, batch)
            error, size = apart(goals, found, weights=batch.weights, temperature=self.temperature)
            loss = loss + self.distillation * (error / size if size > 0 else error)
        if self.distillation < 1:
            loss = loss + (1 - self.distillation) * self._from_labels(output, batch)
        return loss

    def _from_labels(self, output: Any, batch: Batch) -> Tensor:  # noqa: ANN401 - of any model
        if batch.labels is None:
            raise UsageError(
                f"batch {batch.index} has no labels, but {1 - self.distillation:.4g} of the loss "
                "comes from labels; pass tuples (inputs, labels), or distillation=1"
            )
        if self.loss is None:
            values = _cross_entropy(output, batch.labels, batch.index)
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


def _cross_entropy(output: Any, labels: Tensor, index: int) -> Tensor:  # noqa: ANN401 - of any model
    """Return the cross entropy of each sample of batch `index`, in nats, `[samples]`."""
    scores = scores_in(output)
    if not _are_classes(labels, scores):
        found = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise UsageError(
            "without loss=, labels need class scores [samples, classes] and a class number for "
            f"each sample, but batch {index} has outputs {found} and labels {list(labels.shape)}; "
            "pass loss=, a function (output, labels) -> number, or distillation=1"
        )
    goals = labels if labels.is_floating_point() else labels.long()
    return functional.cross_entropy(scores.float(), goals, reduction="none")


def _are_classes(labels: Tensor, scores: Any) -> bool:  # noqa: ANN401 - of any model
    """Return whether labels are class numbers, or probabilities, for these class scores."""
    if not is_class_scores(scores):
        return False
    if labels.is_floating_point():
        return bool(labels.shape == scores.shape)
    within = labels.shape == scores.shape[:1]
    return within and bool(((labels >= 0) & (labels < scores.shape[1])).all())


def share_of(
    distillation: float | None, loss: Loss | None, dense: nn.Module, batch: Batch
) -> float:
    """Return the share of the loss from the dense network: as asked, or else what fits the batch.

    Half with labels that there is a loss for, else all of it.
    """
    if distillation is not None:
        return distillation
    if loss is None and batch.labels is not None:
        with torch.no_grad():
            fits = _are_classes(batch.labels, scores_in(call(dense, batch)))
        return _WITH_LABELS if fits else 1.0
    return _WITH_LABELS if loss else 1.0
