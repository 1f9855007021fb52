"""What relevance starts from: one scalar a sample, made of the model's output."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from flexrel.core.batches import Batch
from flexrel.core.running import is_class_scores, scores_in
from flexrel.errors import ModelError, UsageError
from flexrel.relevance.rules import RuleLike, rule_of

AttributionTarget = Callable[
    [Any, Tensor | None], Tensor
]  # (output, labels) -> one scalar per sample
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


def check_output(output: object) -> None:
    """Raise UsageError unless `output` is one of the names, or a callable."""
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
    if not isinstance(output, str):
        scalars = output(result, batch.labels)
        if not isinstance(scalars, Tensor) or scalars.shape != (batch.samples,):
            found = list(scalars.shape) if isinstance(scalars, Tensor) else type(scalars).__name__
            raise UsageError(f"output= must return [{batch.samples}] scalars, but returned {found}")
        return output, _weighted(scalars, batch)
    values = _tensor(result)
    scores = is_class_scores(values)
    if output == "auto":
        output = "predicted" if scores else "norm"
    if output != "norm" and not scores:
        raise ModelError(
            f"output={output!r} needs class scores [samples, classes], but the model returns "
            f"{list(values.shape)}; use 'norm' or a callable"
        )
    return output, _named(values, batch, output)


def _tensor(result: Any) -> Tensor:  # noqa: ANN401
    values = scores_in(result)
    if isinstance(values, Tensor) and values.is_floating_point():
        return values
    fields = f" with {', '.join(map(str, result))}" if isinstance(result, Mapping) else ""
    raise ModelError(
        f"the model returns a {type(result).__name__}{fields}, not a tensor of scores; "
        "pass output= as a callable (output, labels) -> one scalar per sample, "
        "such as lambda output, labels: output[0].flatten(1).square().sum(1)"
    )


def _named(values: Tensor, batch: Batch, output: str) -> Tensor:
    if output == "norm" and batch.weights is None:
        return values.square().sum() / 2  # of all samples: only the sum of scalars matters
    if output == "norm":
        if values.shape[:1] != (batch.samples,):
            raise ModelError(
                f"samples have weights, but the model returns {list(values.shape)} for "
                f"{batch.samples} samples; pass output= as a callable"
            )
        return _weighted(values.reshape(batch.samples, -1).square().sum(1) / 2, batch)
    if output == "predicted":
        return _weighted(values.max(dim=1).values, batch)
    if batch.labels is None:
        raise UsageError(
            f"output='label' needs labels, but batch {batch.index} has none; pass tuples "
            "(inputs, labels), or use output='predicted'"
        )
    labels = batch.labels
    whole = labels.shape == values.shape[:1] and not labels.is_floating_point()
    if not whole or not _within(labels, values.shape[1]):
        raise UsageError(
            f"labels of batch {batch.index} must be {len(values)} whole numbers "
            f"in 0 ... {values.shape[1] - 1}"
        )
    return _weighted(values.gather(1, labels.long()[:, None]).squeeze(1), batch)


def _weighted(scalars: Tensor, batch: Batch) -> Tensor:
    return scalars.sum() if batch.weights is None else (scalars * batch.weights).sum()


def _within(labels: Tensor, classes: int) -> bool:
    return bool(((labels >= 0) & (labels < classes)).all())
