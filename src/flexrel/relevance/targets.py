"""What relevance starts from: one scalar a sample, made of the model's output."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from flexrel.core.batches import Batch, missing_labels
from flexrel.core.running import is_class_scores, scores_in, tensors_of
from flexrel.errors import ModelError, UsageError
from flexrel.relevance.rules import RuleLike, rule_of

# (output, labels) -> one scalar a sample
AttributionTarget = Callable[[Any, Tensor | None], Tensor]
OUTPUTS = ("auto", "label", "predicted", "norm")


@dataclass(frozen=True, slots=True)
class Attribution:
    """Which relevance is wanted: by which rule, from which output.

    Attributes:
        rule: as in `calibrate`.
        output: as in `calibrate`.

    Raises:
        UsageError: there is no such rule or output.
    """

    rule: RuleLike = "gradient-input"
    output: str | AttributionTarget = "auto"

    def __post_init__(self) -> None:
        rule_of(self.rule)
        check_output(self.output)

    def __hash__(self) -> int:
        return hash((rule_of(self.rule).name, self.output))


def check_output(output: str | AttributionTarget) -> None:
    """Raise a UsageError if there is no such output."""
    if not callable(output) and output not in OUTPUTS:
        raise UsageError(
            f"output {output!r} is not known; pass {', '.join(OUTPUTS)}, or a callable "
            "(output, labels) -> one scalar per sample"
        )


def start(
    result: Any,  # noqa: ANN401 - whatever the model returns
    batch: Batch,
    output: str | AttributionTarget,
) -> tuple[str | AttributionTarget, Float[Tensor, ""]]:
    """Return `output` resolved, and the scalar of all samples that the backward pass starts from.

    Args:
        result: of the model: a tensor, or a mapping with a tensor of "logits", as Hugging Face's
            models return; a callable gets it as it is.
        batch: whose samples may have weights; each scalar counts that often.
        output: as in `calibrate`.

    Raises:
        ModelError: the output is no tensor, or no class scores where they are asked for.
        UsageError: labels are missing or out of range, or the callable returns something else.
    """
    output, scalars = _scalars(result, batch, output)
    return output, scalars.sum() if batch.weights is None else (scalars * batch.weights).sum()


def counted(result: Any, batch: Batch, output: str | AttributionTarget) -> list[Tensor]:  # noqa: ANN401
    """Return the outputs whose changes count for saliency, by the choice that relevance has.

    All tensors of numbers, of "logits" where there are any, for "auto" and "norm"; for all else the
    scalars that relevance starts from, `[samples]`.

    Args:
        result: as for `start`.
        batch: whose labels "label" and a callable take.
        output: likewise.

    Raises:
        ModelError: as `start` does.
        UsageError: likewise.
    """
    if output in ("auto", "norm"):
        return [tensor for tensor in tensors_of(scores_in(result)) if tensor.is_floating_point()]
    return [_scalars(result, batch, output)[1]]


def _scalars(
    result: Any,  # noqa: ANN401 - whatever the model returns
    batch: Batch,
    output: str | AttributionTarget,
) -> tuple[str | AttributionTarget, Tensor]:
    """Return `output` resolved, and its scalars: one a sample, or one for all of them."""
    if isinstance(output, str):
        return _named(result, batch, output)
    scalars = output(result, batch.labels)
    if not isinstance(scalars, Tensor) or scalars.shape != (batch.samples,):
        found = list(scalars.shape) if isinstance(scalars, Tensor) else type(scalars).__name__
        raise UsageError(f"output= must return [{batch.samples}] scalars, but returned {found}")
    return output, scalars


def _named(result: Any, batch: Batch, output: str) -> tuple[str, Tensor]:  # noqa: ANN401
    """Return what is asked for by name, and its scalars: one a sample, or one for all of them."""
    values = scores_in(result)
    several = [t for t in tensors_of(values) if t.is_floating_point() and t.numel()]
    if len(several) > 1 and output in ("auto", "norm"):
        # Each by its own size: else the one of most units, or of the largest, is all that counts.
        parts = [_half_square(t, batch) / _mean_square(t) for t in several]
        return "norm", torch.stack(parts).sum(0)
    if not isinstance(values, Tensor) or not values.is_floating_point():
        fields = f" with {', '.join(map(str, result))}" if isinstance(result, Mapping) else ""
        raise ModelError(
            f"the model returns a {type(result).__name__}{fields}, not a tensor of scores; "
            "pass output= as a callable (output, labels) -> one scalar per sample"
        )
    scores = is_class_scores(values)
    if output == "auto":
        output = "predicted" if scores else "norm"
    if output == "norm":
        return output, _half_square(values, batch)
    if not scores:
        raise ModelError(
            f"output={output!r} needs class scores [samples, classes], but the model returns "
            f"{list(values.shape)}; use 'norm' or a callable"
        )
    if output == "predicted":
        return output, values.max(dim=1).values
    return output, _of_labels(values, batch)


def _half_square(values: Tensor, batch: Batch) -> Tensor:
    if batch.weights is None:
        return values.square().sum() / 2  # of all samples: only the sum of scalars matters
    if values.shape[:1] != (batch.samples,):
        raise ModelError(
            f"samples have weights, but the model returns {list(values.shape)} for "
            f"{batch.samples} samples; pass output= as a callable"
        )
    return values.reshape(batch.samples, -1).square().sum(1) / 2


def _mean_square(values: Tensor) -> Tensor:
    """Return the squared size of what a sample gives, which is no part of the gradient; not 0."""
    size = values.detach().square().sum() / len(values)
    return torch.where(size > 0, size, 1)


def _of_labels(scores: Tensor, batch: Batch) -> Tensor:
    labels = batch.labels
    if labels is None:
        raise UsageError(
            f"output='label' needs labels, but {missing_labels(batch)}; pass tuples "
            "(inputs, labels), or use output='predicted'"
        )
    whole = labels.shape == scores.shape[:1] and not labels.is_floating_point()
    if not whole or not bool(((labels >= 0) & (labels < scores.shape[1])).all()):
        raise UsageError(
            f"labels of batch {batch.index} must be {len(scores)} whole numbers "
            f"in 0 ... {scores.shape[1] - 1}"
        )
    return scores.gather(1, labels.long()[:, None]).squeeze(1)
