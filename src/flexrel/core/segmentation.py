"""How well a network tells the class of each pixel: accuracy and overlap, counted by images."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.utils.data import Dataset

from flexrel.core.answers import IGNORED, OWN_FUNCTION
from flexrel.core.batches import (
    Batch,
    RawBatches,
    check_repeatable,
    missing_labels,
    read_batches,
    samples_of,
)
from flexrel.core.running import call, scores_in, undisturbed
from flexrel.errors import ModelError, UsageError

VOID: Final = 255  # the label of pixels that nobody drew, as data sets have it
_MAP: Final = 3  # axes of labels: [images, height, width], or more
_TWO: Final = 2  # classes of one score


@dataclass(frozen=True, slots=True)
class PixelTally:
    """How many pixels of several images a network answers right.

    Attributes:
        right: of each image, `[images]`; images without a labelled pixel are left out.
        pixels: of each that have a label, likewise.
        table: `[classes, classes]`, how many pixels of each true class are said to be of each.
        ignored: pixels whose label is left out of the count.
    """

    right: Int[Tensor, "images"]
    pixels: Int[Tensor, "images"]
    table: Int[Tensor, "classes classes"]
    ignored: int

    @property
    def accuracy(self) -> float:
        """The share of all labelled pixels that are right."""
        return float(self.right.sum() / self.pixels.sum())

    @property
    def overlap(self) -> float:
        """Intersection over union, the mean of all classes that are true or said anywhere."""
        same = self.table.diagonal().double()
        union = self.table.sum(0) + self.table.sum(1) - same
        return float((same[union > 0] / union[union > 0]).mean())

    @property
    def metrics(self) -> Mapping[str, float]:
        """Both by their names."""
        return {"accuracy": self.accuracy, "mIoU": self.overlap}

    @property
    def chance(self) -> float:
        """The share that is right if the answer is always the most frequent class."""
        return float(self.table.sum(1).max() / self.table.sum())

    @property
    def deviation(self) -> float:
        """Standard deviation of the accuracy from image to image, each weighed by its pixels.

        Over the root of the number of images it is the standard error of the accuracy.

        Source:
            The ratio estimator of a mean over clusters: Cochran, "Sampling Techniques" (1977),
            section 2.11; pixels of one image are not drawn independently, images are.
        """
        images = len(self.right)
        apart = self.right - self.accuracy * self.pixels
        spread = apart.double().square().sum() / max(images - 1, 1)
        return math.sqrt(float(spread)) / float(self.pixels.double().mean())


@dataclass(frozen=True, slots=True)
class Segmentation:
    """How well the class of each pixel is told: an `evaluate`, with "accuracy" and "mIoU".

    The share of labelled pixels that are right, and the intersection over union, the mean of all
    classes that are true or said anywhere; both over all images together, in [0, 1], 1 is best.
    Scores are `[images, classes, height, width]`, of torchvision's networks those under "out", and
    labels `[images, height, width]` class numbers, or with an axis of 1 as scores have it. Of one
    score a pixel, a yes is above the threshold and the classes are 0 and 1. Any number of axes may
    follow the classes. Images, not pixels, are what is counted where errors are told.

    Attributes:
        batches: that can be gone through again and again, with labels, or a
            `torch.utils.data.Dataset` of samples; never the calibration set.
        ignore: labels of pixels that are left out; class numbers of the network are not.
        threshold: above which one score says yes: 0 for logits, 0.5 for probabilities.
    """

    batches: RawBatches
    ignore: tuple[int, ...] = (VOID, *IGNORED)
    threshold: float = 0.0

    def __post_init__(self) -> None:
        check_repeatable(self.batches)

    @property
    def samples(self) -> int:
        """How many images there are, those without a label that counts too."""
        return samples_of(self.batches, nn.Module())

    def __call__(self, model: nn.Module) -> Mapping[str, float]:
        """Return the model's metrics, by name; raises as `tally` does."""
        return self.tally(model).metrics

    def tally(self, model: nn.Module) -> PixelTally:
        """Return how many pixels the model answers right.

        Raises:
            UsageError: no batch, one without such labels, or labels that the model can't give.
            ModelError: the model returns no scores of pixels.
        """
        with undisturbed(model), torch.no_grad():
            batches = read_batches(self.batches, model)
            return self._counted([self._batch(model, batch) for batch in batches])

    def answers(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, int]:
        """Return what is true and what is said, `[images, pixels]`, and the number of classes.

        Of pixels that are left out -1 is true; a score that is NaN says -2.
        """
        scores = _scores(call(model, batch), batch)
        truth = _labels(scores, batch)
        classes = max(scores.shape[1], _TWO)
        said = scores[:, 0] > self.threshold if scores.shape[1] == 1 else scores.argmax(1)
        said = said.long().masked_fill(scores.isnan().any(1), -2)
        left = [one for one in self.ignore if not 0 <= one < classes]
        known = ~torch.isin(truth, truth.new_tensor(left))
        found = truth[known]
        if found.numel() and not 0 <= int(found.min()) <= int(found.max()) < classes:
            raise UsageError(
                f"labels of evaluation batch {batch.index} go from {int(found.min())} to "
                f"{int(found.max())}, the network tells {classes} classes apart; pass the labels "
                "that it was trained on, or Segmentation(data, ignore=...) with those to leave out"
            )
        truth = truth.masked_fill(~known, -1)
        return truth.flatten(1).cpu(), said.flatten(1).cpu(), classes

    def _batch(self, model: nn.Module, batch: Batch) -> PixelTally:
        truth, said, classes = self.answers(model, batch)
        known = truth >= 0
        heard = said.clamp_min(0) + classes * truth  # of NaN, counted below
        table = heard[known & (said >= 0)].bincount(minlength=classes**2)
        right, pixels = ((truth == said) & known).sum(1), known.sum(1)
        return PixelTally(right, pixels, table.view(classes, classes), int((~known).sum()))

    def _counted(self, parts: list[PixelTally]) -> PixelTally:
        if not parts:
            raise UsageError("the evaluation set is empty; pass at least one batch with labels")
        right, pixels = (torch.cat([getattr(p, key) for p in parts]) for key in ("right", "pixels"))
        table, ignored = torch.stack([p.table for p in parts]).sum(0), sum(p.ignored for p in parts)
        if not bool(pixels.any()):
            left = ", ".join(map(str, self.ignore))
            raise UsageError(
                f"all {ignored:,} pixels of the evaluation set are labelled {left}, which are left "
                "out of the count; pass labels (of masks of 0 and 255: mask // 255)"
            )
        return PixelTally(right[pixels > 0], pixels[pixels > 0], table, ignored)


def are_maps(batches: RawBatches) -> bool:
    """Return whether labels of the first batch are whole numbers of pixels, with three axes."""
    if isinstance(batches, Iterator) or not isinstance(batches, Iterable | Dataset):
        return False
    labels = next((batch.labels for batch in read_batches(batches, nn.Module())), None)
    if labels is None or labels.ndim < _MAP or labels.is_complex():
        return False
    return not labels.is_floating_point() or bool((labels == labels.round()).all())


def _scores(result: Any, batch: Batch) -> Tensor:  # noqa: ANN401 - whatever the model returns
    """Return scores of pixels, `[images, classes, ...]`."""
    inner = result.get("out", result) if isinstance(result, Mapping) else result
    scores = scores_in(inner)
    if isinstance(scores, Tensor) and scores.is_floating_point():
        if scores.ndim == _MAP and batch.labels is not None and scores.shape == batch.labels.shape:
            scores = scores[:, None]  # one score a pixel
        if scores.ndim > _MAP - 1 and scores.shape[0] == batch.samples:
            return scores.detach()
    found = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
    raise ModelError(
        f"accuracy of pixels needs scores [images, classes, height, width], but the model returns "
        f"{found} for batch {batch.index}; {OWN_FUNCTION}"
    )


def _labels(scores: Tensor, batch: Batch) -> Tensor:
    """Return class numbers of pixels, `[images, ...]`, as scores have them."""
    if batch.labels is None:
        raise UsageError(f"evaluation {missing_labels(batch)}")
    labels = batch.labels.detach()
    if labels.ndim == scores.ndim and labels.shape[1] == 1:
        labels = labels[:, 0]
    wanted = (len(scores), *scores.shape[2:])
    if labels.shape != wanted:
        raise UsageError(
            f"labels of evaluation batch {batch.index} have the shape {list(labels.shape)}, the "
            f"network's scores {list(scores.shape)}; give one class number for each pixel, "
            f"{list(wanted)}, or a network that returns scores of the labels' size "
            "(torch.nn.functional.interpolate)"
        )
    odd = labels[labels != labels.floor()] if labels.is_floating_point() else labels[:0].flatten()
    if odd.numel():
        raise UsageError(
            f"labels of evaluation batch {batch.index} are no whole numbers, such as "
            f"{odd[0].item():.4g}; give class numbers, of a mask that is an image "
            "torch.as_tensor(numpy.array(mask))"
        )
    return labels.long()
