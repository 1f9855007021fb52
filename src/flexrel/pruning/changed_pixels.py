"""Which pixels of labelled images changed between right and wrong, and of which classes."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flexrel.core.batches import read_batches
from flexrel.core.running import undisturbed
from flexrel.core.segmentation import Segmentation
from flexrel.pruning.changed import ChangedAnswers, ClassAnswers, worst_classes


@dataclass(frozen=True, slots=True, eq=False)
class ComparedPixels:
    """Images on whose pixels two networks are compared.

    Attributes:
        evaluate: the images.
        dense: the network before it was pruned.
    """

    evaluate: Segmentation
    dense: nn.Module

    def changed(self, pruned: nn.Module) -> ChangedAnswers:
        """Return which pixels changed, both networks run batch by batch."""
        counts = torch.zeros(0)
        for batch in read_batches(self.evaluate.batches, self.dense):
            rows = []
            for network in (self.dense, pruned):
                with undisturbed(network), torch.no_grad():
                    truth, said, classes = self.evaluate.answers(network, batch)
                rows.append(said == truth)
            found = _counted(truth, classes, *rows)
            counts = found if not counts.numel() else counts + found
        pixels, before, now, lost, won = counts
        classes_told = [
            ClassAnswers(label, *(int(one[label]) for one in (pixels, before, now)))
            for label in pixels.nonzero().flatten().tolist()
        ]
        return ChangedAnswers(
            samples=int(pixels.sum()),
            lost=int(lost.sum()),
            won=int(won.sum()),
            classes=worst_classes(classes_told),
            labels=(),
            f1=None,
            shown=(),
            unit="pixels",
        )


def _counted(truth: Tensor, classes: int, before: Tensor, now: Tensor) -> Tensor:
    """Return, of each class, all pixels, those right before and now, lost and won."""
    known = truth >= 0
    kinds = (known, before, now, before & ~now, now & ~before)
    return torch.stack([truth[known & kind].bincount(minlength=classes) for kind in kinds])
