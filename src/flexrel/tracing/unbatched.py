"""A sample alone, without an axis of samples, which some of torch's operations take too."""

from typing import Any, Final

import torch
from torch import nn

from flexrel.core.batches import Batch
from flexrel.core.forms import LOADER
from flexrel.core.running import call, undisturbed
from flexrel.errors import ModelError, UsageError
from flexrel.tracing.ops import Op, OpRecorder

_WEIGHTED: Final = "input weight"  # arguments of these operations, by place
_CONVOLUTIONS: Final = ("conv1d", "conv2d", "conv3d")


def check_batched(model: nn.Module, batch: Batch) -> None:
    """Raise a UsageError if the network takes a batch for one sample.

    A convolution takes `[channels, height, width]` for one image, a linear layer `[inputs]` for one
    row. Then channels would be cut as if they were samples. The network runs once, if it has
    weights that allow it.

    Args:
        model: in evaluation mode for the time, and left as it was.
        batch: as it came.
    """
    if len(batch.tensors) != 1:
        return
    axes = batch.tensors[0].ndim
    if axes > 1 and all(parameter.ndim != axes + 1 for parameter in model.parameters()):
        return
    lone = _Lone(batch.tensors[0].shape)
    with undisturbed(model), torch.no_grad(), lone:
        try:
            call(model, batch)
        except ModelError:  # whoever runs it next says why
            return
    if lone.found:
        raise UsageError(
            f"batch {batch.index} has the shape {list(batch.tensors[0].shape)}, which {lone.found} "
            f"takes for one sample; {LOADER}"
        )


class _Lone(OpRecorder):
    """Finds an operation that takes as many axes as inputs have for one sample."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        self.found = ""

    def run(self, op: Op) -> Any:  # noqa: ANN401
        """Run the operation, and look at its input if it may be a sample alone."""
        if not self.found and op.name in ("linear", *_CONVOLUTIONS):
            given = op.named(_WEIGHTED)
            axes = 1 if op.name == "linear" else given["weight"].ndim - 1
            x = given["input"]  # of networks that go through samples one by one of one less
            if x.ndim == axes == len(self.shape) and len(x) == self.shape[0]:
                self.found = "a linear layer" if op.name == "linear" else "a convolution"
        return super().run(op)
