"""A forward pass in segments, from layer to layer, so that many go through a network side by side.

Repair goes layer by layer: a layer is fitted to the inputs that the layers before it, repaired
already, really give it. To run the network from the start for each layer would take as many passes
as it has layers. Here one pass a batch is enough: each stops at the layer that is repaired next,
and goes on when that is done. All run in one thread, each in a greenlet, which can be left in the
middle of the model's code and entered again.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from greenlet import greenlet
from torch import Tensor, fx, nn
from torch.overrides import _pop_mode_temporarily

from flexrel.core.batches import Batch, device_of
from flexrel.core.running import call, duplicate
from flexrel.repair.uses import PYBIND_OPS, LayerUse, use_name
from flexrel.tracing import (
    AffineCall,
    Function,
    Op,
    OpRecorder,
    ParameterOwners,
    layer_call,
    operation_name,
)

HELD_OUT = 4  # of so many parts of a batch, one chooses the ridge and fits nothing


def repair_parts(batch: Batch) -> int:
    """Return into how many parts a batch's rows fall: samples; at least 4 where it stays whole."""
    return max(batch.samples, HELD_OUT) if batch.whole else batch.samples


@contextmanager
def plain_modes(device: torch.device, *, inference: bool) -> Iterator[None]:
    """Run the block without gradients and autocast; put these modes back, whatever changed them.

    Where the model enters autocast itself, weights are cast anew each time: they change.

    Args:
        device: whose autocast is meant.
        inference: whether the block is under `torch.inference_mode`.
    """
    with (
        torch.inference_mode(mode=inference),
        torch.no_grad(),
        torch.autocast(device.type, enabled=False, cache_enabled=False),
    ):
        yield


def stoppable(model: nn.Module) -> nn.Module:
    """Return a model of the same tensors whose passes can be left at every operation.

    A program calls ATen operations, and those call a mode from inside of pybind11, which aborts
    the process unless its calls end in the order in which they began, as those of several passes
    don't. So the programs in the model call the mode themselves, in front of the operation.
    """
    if not any(isinstance(module, fx.GraphModule) for module in model.modules()):
        return model
    twin = duplicate(model, share=True)
    for module in twin.modules():
        if isinstance(module, fx.GraphModule):
            for node in module.graph.nodes:
                if node.op == "call_function" and isinstance(node.target, PYBIND_OPS):
                    node.target = _in_front(node.target)
            module.recompile()
    return twin


def _in_front(operation: Function) -> Function:
    """Return a function that calls the mode of torch's functions, and then the operation."""

    def run(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as the operation
        if not torch._C._len_torch_function_stack():  # noqa: SLF001 - as torch's own Python asks
            return operation(*args, **kwargs)
        with _pop_mode_temporarily() as mode:
            return mode.__torch_function__(run, (), args, kwargs)

    run.__name__ = operation_name(operation)
    return run


def _random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_random_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)


@dataclass(frozen=True, slots=True, eq=False)
class LayerStop:
    """Where a pass waits: at a layer, or at the sum that its output goes into."""

    call: AffineCall  # inputs, weight and bias, geometry
    outputs: Tensor  # of the layer as it is
    other: Tensor | None = None  # what its output, after the fixed steps, is added to
    slope: Tensor | None = None  # of the fixed steps: one number a channel; None: 1


@dataclass(slots=True, eq=False)
class _Open:
    """A layer on the way to the sum that its output goes into."""

    use: LayerUse
    call: AffineCall
    outputs: Tensor
    steps: list[tuple[Op, Tensor]]  # each with the tensor that comes from the layer

    def again(self) -> Tensor:
        """Return what the steps make of the layer as it is now."""
        tensor = self.call.inputs
        for op, old in self.steps:
            tensor = op.again(old, tensor)
        return tensor

    def slope(self) -> Tensor | None:
        """Return how much one more in the layer's output is behind the fixed steps; None: 1."""
        if len(self.steps) == 1:
            return None
        like, ends = self.outputs[:1], []
        for tensor in (torch.ones_like(like), torch.zeros_like(like)):
            for op, old in self.steps[1:]:
                tensor = op.again(old, tensor)  # noqa: PLW2901
            ends.append(tensor)
        return ends[0] - ends[1]


class LayerwiseForward(OpRecorder):
    """One batch on its way through a network.

    What the model enters, as `autocast` or `inference_mode`, holds for the pass alone: the caller,
    which has to be in `plain_modes`, is in those again whenever a pass stops.

    Args:
        model: `stoppable`, and in evaluation mode, which the caller sees to.
        batch: the inputs.
        uses: the layers that it can stop at, by name.
        seed: of the random numbers that the model draws. Passes of one seed draw the same, as far
            as they draw as many.
    """

    def __init__(
        self, model: nn.Module, batch: Batch, uses: Mapping[str, LayerUse], seed: int = 0
    ) -> None:
        super().__init__()
        self.samples, self.parts = batch.samples, repair_parts(batch)
        self._model, self._batch, self._uses = model, batch, uses
        self._weights = ParameterOwners(model)
        self._turns: Counter[str] = Counter()
        self._open: dict[int, _Open] = {}  # by the id of the tensor that the last op made
        self._next = ""  # name of the use to stop at
        self._changed = False
        self._device, self._inference = device_of(model), torch.is_inference_mode_enabled()
        drawing = [torch.device("cpu"), *([self._device] if self._device.type == "cuda" else [])]
        self._drawn = {at: torch.Generator(at).manual_seed(seed).get_state() for at in drawing}
        self._greenlet = greenlet(self._run)

    def advance(self, name: str, *, changed: bool = False) -> LayerStop | None:
        """Let the pass go on to a layer, and return how it stands there.

        None: it came to its end without the layer.

        Args:
            name: of the layer's use.
            changed: whether the layer that the pass waits at was changed, so that it runs again.

        Raises:
            ModelError: the network does not run.
        """
        self._next, self._changed = name, changed
        with self._drawing():
            stop = None if self._greenlet.dead else self._greenlet.switch()
        return stop if isinstance(stop, LayerStop) else None

    def close(self) -> None:
        """Give up what is left of the pass; what the model has open there is closed in order."""
        while not self._greenlet.dead:
            self._greenlet.throw()

    @contextmanager
    def _drawing(self) -> Iterator[None]:
        """Run the block with the pass's own random numbers, and go on with them the next time."""
        outside = {device: _random_state(device) for device in self._drawn}
        for device, state in self._drawn.items():
            _set_random_state(device, state)
        try:
            yield
        finally:
            for device, state in outside.items():
                self._drawn[device] = _random_state(device)
                _set_random_state(device, state)

    def _run(self) -> None:
        with self:
            call(self._model, self._batch)

    def _stop(self, use: LayerUse, stop: LayerStop) -> bool:
        """Wait at the layer if it is the next; return whether it was changed meanwhile."""
        if use.name != self._next:
            return False
        with plain_modes(self._device, inference=self._inference):
            self._greenlet.parent.switch(stop)
        return self._changed

    def run(self, op: Op) -> Any:  # noqa: ANN401
        """Run the operation, and wait if a layer comes to its end with it."""
        for tensor in op.given():
            opened = self._open.pop(id(tensor), None)
            if opened is not None:
                return self._continued(opened, op, tensor)
        result = super().run(op)
        found = layer_call(op, self._weights)
        use = found and self._uses.get(use_name(found.layer, self._turns[found.layer]))
        if not found or not use:
            return result
        self._turns[found.layer] += 1
        if use.added:
            opened = _Open(use, found.affine, result, [(op, found.affine.inputs)])
            self._open[id(result)] = opened
            return result
        changed = self._stop(use, LayerStop(found.affine, result))
        return super().run(op) if changed else result

    def _continued(self, opened: _Open, op: Op, tensor: Tensor) -> Any:  # noqa: ANN401
        """Run an operation on what came of a layer: one of the fixed steps, or the sum."""
        other = op.adds(tensor)
        if other is None:
            if op.writes and opened.outputs is tensor:
                opened.outputs = tensor.clone()  # the goals are read at the sum
            result = super().run(op)
            opened.steps.append((op, tensor))
            self._open[id(result)] = opened
            return result
        stop = LayerStop(opened.call, opened.outputs, other, opened.slope())
        if not self._stop(opened.use, stop):
            return super().run(op)
        made = op.again(tensor, opened.again())
        if op.writes and op.args[0] is tensor:  # the model may go on with either
            return tensor.copy_(made)
        return made
