"""A model rounded to what its packed file will hold."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flexrel.core.batches import RawBatch
from flexrel.core.measurement import Progress, silent
from flexrel.core.precision import LARGEST, Values, check_reach, stored
from flexrel.core.running import duplicate
from flexrel.repair.closed_form import reconstruct_
from flexrel.structure import cut_changes


def round_(
    model: nn.Module,
    values: Values,
    calibration: Sequence[RawBatch] = (),
    progress: Progress = silent,
) -> None:
    """Round the model's tensors, in place, to what its packed file will hold.

    Args:
        model: changed in place.
        values: precision, as `stored` takes it.
        calibration: batches of inputs, labels not needed. With them "int8" and "int4" round so that
            the outputs of each layer change least on them; without, each value by itself.
        progress: told after each layer.

    Raises:
        PrecisionError: the precision can't hold a value.
    """
    _, unsaved = cut_changes(model)
    held = {**unsaved, **model.state_dict()}
    tensors = {name: tensor for name, tensor in held.items() if isinstance(tensor, Tensor)}
    for name, tensor in tensors.items():
        check_reach(name, tensor, values)
    if calibration and values in LARGEST:
        whole = duplicate(model)
        reconstruct_(model, whole, None, calibration, progress, largest=LARGEST[values])
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(stored(name, tensor, values))
