"""A forward pass that stops at layers, so that many go through a network side by side.

Repair goes layer by layer: a layer is fitted to the inputs that the layers before it, repaired
already, really give it. To run the network from the start for each layer would take as many passes
as it has layers. Here one pass a batch is enough: each runs in a thread of its own, one at a time
in each network, and waits at every layer until all have come there and the layer is repaired.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flexrel.core.batches import Batch
from flexrel.core.running import call
from flexrel.repair.uses import Key, Use
from flexrel.tracing import AffineCall, Op, OpRecorder, ParameterOwners, layer_call


@dataclass(frozen=True, slots=True, eq=False)
class LayerStop:
    """A pass that waits at a layer, or at the sum that its output goes into."""

    key: Key
    call: AffineCall  # inputs, weight and bias, geometry
    outputs: Tensor  # of the layer as it is
    other: Tensor | None = None  # what its output, after the fixed steps, is added to
    slope: Tensor | None = None  # of the fixed steps: one number a channel, or 1


@dataclass(slots=True, eq=False)
class _Open:
    """A layer whose output has not come to its end yet."""

    key: Key
    call: AffineCall
    steps: list[tuple[Op, Tensor]]  # each with the tensor that comes from the layer
    outputs: Tensor
    tip: Tensor  # what the last step made

    def stop(self, other: Tensor) -> LayerStop:
        return LayerStop(self.key, self.call, self.outputs, other, self._slope())

    def again(self) -> Tensor:
        """Return what the steps make of the layer as it is now."""
        first, *rest = self.steps
        tensor = first[0].again(self.call.inputs, self.call.inputs)
        for step, old in rest:
            tensor = step.again(old, tensor)
        return tensor

    def _slope(self) -> Tensor | None:
        if len(self.steps) == 1:
            return None
        ends = []
        for value in (torch.ones, torch.zeros):
            tensor = value(
                self.outputs[:1].shape, dtype=self.outputs.dtype, device=self.outputs.device
            )
            for step, old in self.steps[1:]:
                tensor = step.again(old, tensor)
            ends.append(tensor)
        return ends[0] - ends[1]


class LayerwiseForward(OpRecorder):
    """One batch on its way through a network.

    Args:
        model: in evaluation mode, which the caller sees to.
        batch: the inputs.
        uses: where to stop.
    """

    def __init__(self, model: nn.Module, batch: Batch, uses: Mapping[Key, Use]) -> None:
        super().__init__()
        self._model, self._batch, self._uses = model, batch, uses
        self._weights = ParameterOwners(model)
        self._turns: dict[str, int] = {}
        self._open: dict[int, _Open] = {}
        self._stop: LayerStop | None = None
        self._raised: BaseException | None = None
        self._go, self._came = threading.Semaphore(0), threading.Semaphore(0)
        self._running = self._ended = self._given_up = self._changed = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def samples(self) -> int:
        """How many there are in its batch."""
        return self._batch.samples

    def start(self, *, changed: bool = False) -> None:
        """Let the pass go on to its next stop; `stopped` waits for it.

        Args:
            changed: whether the layer that the pass waits at was changed, so that it runs again.
        """
        if self._ended:
            return
        self._changed = changed
        self._running = True
        if not self._thread.is_alive():
            self._thread.start()
        self._go.release()

    def stopped(self) -> LayerStop | None:
        """Return where the pass stopped; None at the end.

        Raises:
            Whatever the network raises.
        """
        if not self._running:
            return None
        self._came.acquire()
        self._running = False
        if self._raised is not None:
            raise self._raised
        return self._stop

    def close(self) -> None:
        """Give up what is left of the pass."""
        if self._thread.is_alive():
            self._given_up = True
            self._go.release()
            self._thread.join()

    def _run(self) -> None:
        self._go.acquire()
        torch.set_num_threads(1)  # of this thread; the pools of many get in each other's way
        try:
            with torch.no_grad(), self:
                call(self._model, self._batch)
        except _GivenUpError:
            return
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            self._raised = error
        self._stop, self._ended = None, True
        self._open.clear()
        self._came.release()

    def _wait(self, stop: LayerStop) -> bool:
        """Wait at the stop; return whether the layer was changed meanwhile."""
        self._stop = stop
        self._came.release()
        self._go.acquire()
        if self._given_up:
            raise _GivenUpError
        self._stop = None
        return self._changed

    def run(self, step: Op) -> Any:  # noqa: ANN401
        """Run the operation, and wait if a layer comes to its end with it."""
        for tensor in step.given():
            opened = self._open.pop(id(tensor), None)
            if opened is not None:
                return self._goes_on(opened, step, tensor)
        found = layer_call(step, self._weights)
        if found is None:
            return super().run(step)
        affine = found.affine
        key = Key(found.layer, self._turns.get(found.layer, 0))
        use = self._uses.get(key)
        if use is None:
            return super().run(step)
        self._turns[found.layer] = key.turn + 1
        outputs = super().run(step)
        if not use.added:
            changed = self._wait(LayerStop(key, affine, outputs))
            return super().run(step) if changed else outputs
        self._open[id(outputs)] = _Open(key, affine, [(step, affine.inputs)], outputs, outputs)
        return outputs

    def _goes_on(self, opened: _Open, step: Op, tensor: Tensor) -> Any:  # noqa: ANN401
        other = step.adds(tensor)
        if other is None:
            if step.writes and opened.outputs is tensor:
                opened.outputs = tensor.clone()  # the goals are read at the sum
            opened.steps.append((step, tensor))
            opened.tip = super().run(step)
            self._open[id(opened.tip)] = opened
            return opened.tip
        changed = self._wait(opened.stop(other))
        if not changed:
            return super().run(step)
        made = step.again(tensor, opened.again())
        if step.writes and step.args[0] is tensor:  # the model may go on with either
            return tensor.copy_(made)
        return made


class _GivenUpError(BaseException):
    """Ends the thread of a pass that nobody waits for."""
