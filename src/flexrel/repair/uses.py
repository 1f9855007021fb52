"""How a network uses its layers: in which order, and what the output of each is added to."""

from collections import Counter
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from flexrel.core.batches import Batch
from flexrel.core.running import call, tensors_of
from flexrel.tracing import LayerCall, Op, OpRecorder, ParameterOwners, layer_call


@dataclass(frozen=True, slots=True)
class Key:
    """One use of a parameter as a layer's weight: a packed one is several layers' in turn."""

    layer: str
    turn: int

    def __str__(self) -> str:
        return self.layer if self.turn == 0 else f"{self.layer}, use {self.turn + 1}"


@dataclass(frozen=True, slots=True)
class Use:
    """One layer that can be repaired."""

    key: Key
    rows: tuple[int, int] | None  # of the parameter, where the weight is only those
    transposed: bool  # whether the weight is the parameter's transpose
    added: bool  # whether its output goes, through fixed steps alone, into a sum with another
    bias: bool  # whether it has a bias that is its alone
    mean: str | None  # without one: the running mean of a norm right behind it, if its alone
    bytes: int  # of one sample's inputs and outputs


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """One operation that ran; its tensors are kept, so that no id is used twice."""

    step: Op
    reads: tuple[int, ...]  # tensors that went in
    result: Any
    layer: LayerCall | None

    @property
    def made(self) -> int | None:
        """The tensor that came out."""
        return id(self.result) if isinstance(self.result, Tensor) else None


class _Scout(OpRecorder):
    """Writes down what reads which tensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.seen: list[_Seen] = []
        self._weights = ParameterOwners(model)
        self._reads: dict[int, int] = {}  # storage of a parameter or buffer -> operations
        self._buffers = {id(buffer): name for name, buffer in model.named_buffers()}
        owned = [*model.parameters(), *model.buffers()]
        self._owned = {tensor.untyped_storage().data_ptr() for tensor in owned}

    @property
    def layers(self) -> list[tuple[int, LayerCall]]:
        """All calls of layers, with their numbers among what ran."""
        return [(at, seen.layer) for at, seen in enumerate(self.seen) if seen.layer]

    def run(self, step: Op) -> Any:  # noqa: ANN401
        """Run the operation and note it."""
        layer = layer_call(step, self._weights)
        given = step.given()
        result = super().run(step)
        for place in {_place(tensor) for tensor in given} & self._owned:
            if not any(_place(t) == place for t in tensors_of(result)):
                self._reads[place] = self._reads.get(place, 0) + 1
        self.seen.append(_Seen(step, tuple(map(id, given)), result, layer))
        return result

    def reads(self, tensor: Tensor) -> int:
        """Return how many operations read the parameter or buffer, or a part of it."""
        return self._reads.get(_place(tensor), 0)

    def mean(self, norm: Op) -> str | None:
        """Return the name of a batch norm's running mean, if it alone reads it."""
        mean = norm.norm_arguments()["running_mean"]
        return self._buffers.get(id(mean)) if self.reads(mean) == 1 else None

    def end(self, at: int) -> tuple[int | None, Op | None]:
        """Return which operation adds the output of a layer to another tensor, if one does.

        Also returns the batch norm right behind the layer, if there is one.
        """
        made, norm, first = self.seen[at].made, None, True
        layer = self.seen[at].layer
        axis = 1 if layer and layer.affine.geometry else -1
        for later in range(at + 1, len(self.seen)):
            seen = self.seen[later]
            if made not in seen.reads:
                continue
            tensor = next(value for value in seen.step.given() if id(value) == made)
            if first and seen.step.name == "batch_norm" and seen.step.continues(tensor, axis):
                norm = seen.step
            first = False
            alone = seen.made == made or all(made not in s.reads for s in self.seen[later + 1 :])
            if not alone:
                return None, None
            if seen.step.adds(tensor) is not None:
                return later, norm
            if not seen.step.continues(tensor, axis) or seen.made is None:
                return None, norm
            made = seen.made
        return None, norm


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def uses_of(model: nn.Module, example: Batch) -> tuple[list[Use], dict[str, str]]:
    """Return the layers that can be repaired, in the order in which their outputs are used.

    Args:
        model: is run on the example, in evaluation mode, which the caller sees to.
        example: one or two samples.

    Returns:
        The uses; and the layers that are none, with the reason.
    """
    scout = _Scout(model)
    with torch.no_grad(), scout:
        call(model, example)
    times = Counter(_place(layer.affine.weight) for _, layer in scout.layers)
    turns: Counter[str] = Counter()
    sums: set[int] = set()  # in which a layer ends already
    found: list[tuple[int, Use]] = []
    refused: dict[str, str] = {}
    for at, layer in scout.layers:
        reason = _obstacle(layer, times[_place(layer.affine.weight)], scout)
        if reason:
            refused[layer.layer] = reason
            continue
        end, norm = scout.end(at)
        key = Key(layer.layer, turns[layer.layer])
        turns[layer.layer] += 1
        added = end is not None and end not in sums
        bias = layer.affine.bias
        alone = bias is not None and scout.reads(bias) == scout.reads(layer.affine.weight)
        mean = scout.mean(norm) if norm and bias is None else None
        outputs = scout.seen[at].result
        size = (layer.affine.inputs.nbytes + outputs.nbytes) // example.samples
        use = Use(key, layer.rows, layer.transposed, added, alone, mean, size)
        found.append((end if end is not None and added else at, use))
        sums |= set() if end is None else {end}
    found.sort(key=itemgetter(0))
    return [use for _, use in found], refused


def _obstacle(layer: LayerCall, times: int, scout: _Scout) -> str:
    if layer.affine.geometry is not None and layer.affine.geometry.transposed:
        return "it is a transposed convolution"
    if scout.reads(layer.affine.weight) != times:
        return "its weight is used for something else too"
    if layer.rows is None and times > 1:
        return f"it runs {times} times in one pass"
    return ""
