"""Which layers a network calls, on what: all that the time of a call depends on."""

from typing import Any

import torch
from torch import nn

from flexrel.core.batches import Batch
from flexrel.core.graph import tensor_of
from flexrel.core.latency_model import LayerKind, LayerWork
from flexrel.core.running import call, undisturbed
from flexrel.tracing.layers import LayerCall, ParameterOwners, layer_call
from flexrel.tracing.ops import Op, OpRecorder


def layer_works(network: nn.Module, example: Batch) -> tuple[LayerWork, ...]:
    """Return each call of a layer whose whole weight is a parameter, in the order of the calls.

    Args:
        network: is run on the example, in evaluation mode, and left as it was.
        example: of any number of samples.

    Raises:
        ModelError: the network does not run on it.
    """
    recorder = _WorkRecorder(network)
    with undisturbed(network), torch.no_grad(), recorder:
        call(network, example)
    return tuple(recorder.found)


class _WorkRecorder(OpRecorder):
    """Writes down the calls of layers."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.found: list[LayerWork] = []
        self._owners = ParameterOwners(network)
        self._names = dict(network.named_parameters())

    def run(self, op: Op) -> Any:  # noqa: ANN401 - as the operation
        """Run the operation."""
        layer = layer_call(op, self._owners)
        if layer is not None and layer.rows is None:
            self.found.append(_work(layer, tensor_of(layer.layer, self._names)))
        return super().run(op)


def _work(layer: LayerCall, weight: str) -> LayerWork:
    geometry = layer.affine.geometry
    inputs = layer.affine.inputs
    if geometry is None:
        kind = LayerKind(size=tuple(inputs.shape[1:-1]))
        return LayerWork(weight, kind, layer.transposed)
    kernel = tuple(layer.affine.weight.shape[2:])
    kind = LayerKind(
        kernel,
        geometry.stride,
        geometry.padding,
        geometry.dilation,
        tuple(inputs.shape[-len(kernel) :]),
        geometry.groups,
        geometry.transposed,
        geometry.output_padding,
    )
    return LayerWork(weight, kind, turned=geometry.transposed)
