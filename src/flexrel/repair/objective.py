"""What training makes small: the distance from the labels, and from the dense network's outputs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from flexrel.core.batches import Batch
from flexrel.core.distance import apart, numbers_in
from flexrel.core.running import call, is_class_scores, scores_in, undisturbed
from flexrel.errors import UsageError

Loss = Callable[[Any, Tensor], Tensor]  # (output, labels) -> the mean, or one number a sample
_WITH_LABELS = 0.5  # share of the loss from the dense network, if there are labels too


@dataclass(frozen=True, slots=True)
class Objective:
    """The loss of a network on a batch: lower is better.

    Attributes:
        dense: the network before it was pruned.
        loss: from output and labels; None: cross entropy of class scores.
        distillation: share of the loss that is the distance from the dense network's outputs.
        temperature: of class scores, in that distance.
    """

    dense: nn.Module
    loss: Loss | None
    distillation: float
    temperature: float

    def __call__(self, network: nn.Module, batch: Batch, *, weighted: bool = True) -> Tensor:
        """Return the batch's mean loss, a scalar.

        Args:
            network: in the mode that it is to be run in.
            batch: on the network's device.
            weighted: whether samples count by their weights, as in training; in validation all
                count the same.

        Raises:
            UsageError: there are no labels where they count, or no loss for them.
            ModelError: a network does not run on the batch, or they return different shapes.
        """
        result = call(network, batch)
        weights = batch.weights if weighted else None
        parts = []
        if self.distillation:
            with torch.no_grad():
                goals = numbers_in(call(self.dense, batch), batch)
            found = numbers_in(result, batch)
            error, size = apart(goals, found, weights=weights, temperature=self.temperature)
            parts.append(self.distillation * (error / size if size > 0 else error))
        if self.distillation < 1:
            parts.append((1 - self.distillation) * self._from_labels(result, batch, weights))
        return torch.stack(parts).sum()

    def _from_labels(
        self,
        result: Any,  # noqa: ANN401 - whatever the model returns
        batch: Batch,
        weights: Tensor | None,
    ) -> Tensor:
        labels = labels_of(batch, self.distillation)
        values = cross_entropy(result, batch) if self.loss is None else self.loss(result, labels)
        if not isinstance(values, Tensor) or values.shape not in ((), (batch.samples,)):
            found = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise UsageError(
                f"loss= must return one number, or one a sample, [{batch.samples}], "
                f"but returned {found} for batch {batch.index}"
            )
        if weights is None:
            return values.float().mean()
        if values.ndim == 0:
            raise UsageError(
                f"the samples of batch {batch.index} have weights, so loss= must return one number "
                f"a sample, [{batch.samples}], but it returned one for all"
            )
        return (values.float() * weights).sum() / weights.sum()


def labels_of(batch: Batch, distillation: float) -> Tensor:
    """Return the batch's labels; raise UsageError if it has none."""
    if batch.labels is None:
        raise UsageError(
            f"batch {batch.index} has no labels, but {1 - distillation:.4g} of the loss comes from "
            "labels; pass tuples (inputs, labels), or distillation=1"
        )
    return batch.labels


def cross_entropy(
    result: Any,  # noqa: ANN401 - whatever the model returns
    batch: Batch,
) -> Tensor:
    """Return the cross entropy of each sample, `[samples]`, in nats.

    Raises:
        UsageError: these are no class scores, or the labels no classes of theirs.
    """
    scores, labels = scores_in(result), batch.labels
    if labels is None or not _fit(scores, labels):
        found = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        given = None if labels is None else list(labels.shape)
        raise UsageError(
            "without loss=, labels need class scores [samples, classes] and a class number for "
            f"each sample, but batch {batch.index} has outputs {found} and labels {given}; pass "
            "loss=, a function (output, labels) -> number, or distillation=1"
        )
    goals = labels if labels.is_floating_point() else labels.long()
    return functional.cross_entropy(scores.float(), goals, reduction="none")


def _fit(scores: Any, labels: Tensor) -> bool:  # noqa: ANN401 - whatever the model returns
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

    All of it without labels, or where there is no loss for them; else half.
    """
    if distillation is not None:
        return distillation
    if batch.labels is None and loss is not None:
        labels_of(batch, 0.0)
    if batch.labels is None:
        return 1.0
    if loss is not None:
        return _WITH_LABELS
    with undisturbed(dense), torch.no_grad():
        fits = _fit(scores_in(call(dense, batch)), batch.labels)
    return _WITH_LABELS if fits else 1.0
