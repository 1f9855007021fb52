"""How a network uses its layers: in which order, and what the output of each is added to."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from flexrel.core.batches import Batch
from flexrel.core.running import call, tensors_of
from flexrel.tracing import LayerCall, Op, OpRecorder, ParameterOwners, layer_call

_PICKS = frozenset({"nonzero", "argwhere", "masked_select", "unique", "unique_consecutive"})
_TELLS = frozenset({"item", "tolist", "__bool__"})
PYBIND_OPS = (torch._ops.OpOverload, torch._ops.OpOverloadPacket)  # noqa: SLF001


@dataclass(frozen=True, slots=True)
class LayerUse:
    """One use of a parameter as a layer's weight, which can be repaired.

    Attributes:
        name: of the layer; with the number of the use where one packed weight is several layers'.
        layer: whose weight it is.
        rows: of the parameter, where the weight is only those.
        transposed: whether the weight is the parameter's transpose.
        added: whether its output goes, through fixed steps alone, into a sum with another tensor.
        bias: whether it has a bias that is its alone.
        mean: without one, the running mean of a norm right behind it, if that is its alone.
        bytes: of one sample's inputs and outputs.
    """

    name: str
    layer: str
    rows: tuple[int, int] | None
    transposed: bool
    added: bool
    bias: bool
    mean: str | None
    bytes: int


def use_name(layer: str, turn: int) -> str:
    """Return the name of a layer's use, where `turn` were before it."""
    return f"{layer}, use {turn + 1}" if turn else layer


def uses_of(
    model: nn.Module, example: Batch, others: Sequence[Batch] = ()
) -> tuple[list[LayerUse], dict[str, str]]:
    """Return the layers that can be repaired, in the order in which their outputs are used.

    Args:
        model: is run on the example, in evaluation mode, which the caller sees to.
        example: one or two samples.
        others: of its shapes; run where the network picks rows, as one of experts does, to see
            which layers get other rows from sample to sample: another network may pick others.

    Returns:
        The uses; and the layers that are none, with the reason.
    """
    scout = _Scout(model)
    with torch.no_grad(), scout:
        call(model, example)
    calls = [(at, seen.layer) for at, seen in enumerate(scout.seen) if seen.layer]
    times = Counter(_storage(layer.affine.weight) for _, layer in calls)
    turns: Counter[str] = Counter()
    sums: set[int] = set()  # in which a layer ends already
    found: list[tuple[int, LayerUse]] = []
    refused: dict[str, str] = {}
    for at, layer in calls:
        weight, bias = layer.affine.weight, layer.affine.bias
        reason = _obstacle(layer, times[_storage(weight)], scout.reads(weight))
        if not reason and isinstance(scout.seen[at].op.func, PYBIND_OPS):
            reason = "the model calls it as torch.ops, where a pass can't be stopped"
        if reason:
            refused[layer.layer] = reason
            continue
        end, norm = scout.end(at)
        if end is not None and isinstance(scout.seen[end].op.func, PYBIND_OPS):
            end = None  # as above
        mean = norm.norm_arguments()["running_mean"] if norm and bias is None else None
        alone = mean is not None and scout.reads(mean) == 1
        size = layer.affine.inputs.nbytes + scout.seen[at].result.nbytes
        use = LayerUse(
            name=use_name(layer.layer, turns[layer.layer]),
            layer=layer.layer,
            rows=layer.rows,
            transposed=layer.transposed,
            added=end is not None and end not in sums,
            bias=bias is not None and scout.reads(bias) == scout.reads(weight),
            mean=scout.buffers.get(id(mean)) if alone else None,
            bytes=size // example.samples,
        )
        turns[layer.layer] += 1
        found.append((end if end is not None and use.added else at, use))
        sums |= set() if end is None else {end}
    found.sort(key=itemgetter(0))
    uses = [use for _, use in found]
    for other in others if scout.picks else ():
        there = {use.name: use.bytes for use in uses_of(model, other)[0]}
        here = {use.name: use.bytes for use in uses}
        picked = {name for name in here | there if here.get(name) != there.get(name)}
        uses = [use for use in uses if use.name not in picked]
        refused |= dict.fromkeys(picked, "which rows go through it depends on the data")
    return uses, refused


def _picks(op: Op) -> bool:
    """Return whether how much the operation returns depends on numbers: rows, or a decision."""
    alone = op.name == "where" and len(op.args) == 1
    masked = op.name in {"__getitem__", "index"} and any(
        tensor.dtype in {torch.bool, torch.uint8} for tensor in op.given()[1:]
    )
    return op.name in _PICKS | _TELLS or alone or masked


def _obstacle(layer: LayerCall, times: int, reads: int) -> str:
    """Return why a layer can't be repaired; "" if it can.

    Args:
        layer: one of its calls.
        times: that its weight, or another part of the same parameter, is a layer's.
        reads: operations that read the parameter.
    """
    if layer.affine.geometry is not None and layer.affine.geometry.transposed:
        return "it is a transposed convolution"
    if reads != times:
        return "its weight is used for something else too"
    if layer.rows is None and times > 1:
        return f"it runs {times} times in one pass"
    return ""


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """One operation that ran; its tensors are kept, so that no id is used twice."""

    op: Op
    reads: tuple[int, ...]  # ids of the tensors that went in
    result: Any
    layer: LayerCall | None


class _Scout(OpRecorder):
    """Writes down what reads which tensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.seen: list[_Seen] = []
        self.picks = False  # rows, or what runs, by what is in tensors
        self.buffers = {id(buffer): name for name, buffer in model.named_buffers()}
        self._weights = ParameterOwners(model)
        self._reads = {_storage(t): 0 for t in (*model.parameters(), *model.buffers())}

    def run(self, op: Op) -> Any:  # noqa: ANN401
        """Run the operation and note it."""
        layer = layer_call(op, self._weights)
        given = op.given()
        self.picks |= _picks(op)
        result = super().run(op)
        made = {_storage(tensor) for tensor in tensors_of(result)}
        for read in {_storage(tensor) for tensor in given} - made:  # a view reads nothing
            if read in self._reads:
                self._reads[read] += 1
        self.seen.append(_Seen(op, tuple(map(id, given)), result, layer))
        return result

    def reads(self, tensor: Tensor) -> int:
        """Return how many operations read the parameter or buffer, or a part of it."""
        return self._reads.get(_storage(tensor), 0)

    def end(self, at: int) -> tuple[int | None, Op | None]:
        """Return which operation adds the output of a layer to another tensor, if one does.

        Also returns the batch norm right behind the layer, if there is one.
        """
        layer, tip = self.seen[at].layer, self.seen[at].result
        axis = 1 if layer and layer.affine.geometry else -1
        norm, first = None, True
        for later in range(at + 1, len(self.seen)):
            seen = self.seen[later]
            if id(tip) not in seen.reads:
                continue
            if first and seen.op.name == "batch_norm" and seen.op.continues(tip, axis):
                norm = seen.op
            first = False
            alone = seen.result is tip or all(
                id(tip) not in s.reads for s in self.seen[later + 1 :]
            )
            if not alone:
                return None, None
            if seen.op.adds(tip) is not None:
                return later, norm
            if not seen.op.continues(tip, axis) or not isinstance(seen.result, Tensor):
                return None, norm
            tip = seen.result
        return None, norm


def _storage(tensor: Tensor) -> int:
    """Return where the memory lies that a tensor, its views and parts share."""
    return tensor.untyped_storage().data_ptr()
