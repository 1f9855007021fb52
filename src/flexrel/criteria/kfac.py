"""Kronecker factors: what a layer takes in, and how an error in its outputs reaches the network's.

The two matrices say what a refit of the layer can make up for, and how much what it can't would
matter: a Kronecker-factored quadratic model of the network's outputs (K-FAC; Martens and Grosse,
2015). Both are sums over samples, so those of batches, processes and devices add up.
"""

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flexrel.core.batches import Batch, RawBatch, samples_of
from flexrel.core.deadline import OutOfTimeError
from flexrel.core.division import divided
from flexrel.core.measurement import Progress, silent
from flexrel.core.running import backward_to_inputs, call, rooted
from flexrel.criteria.noise import noise_of, squares_off_diagonal
from flexrel.errors import ModelError
from flexrel.relevance import AttributionTarget, counted
from flexrel.repair import (
    SecondMoments,
    drawn_rows,
    inputs_at,
    outputs_at,
    samples_at,
    second_moments,
)
from flexrel.tracing import LayerCall, Op, OpRecorder, ParameterOwners, layer_call

_Sum = TypeVar("_Sum", SecondMoments, Tensor)
_ROWS = 5_000  # of a layer's inputs, over all batches, or
_ROWS_AN_INPUT = 4
_GRADIENTS = 25_000  # rows of its outputs, likewise


@dataclass(frozen=True, slots=True, eq=False)
class LayerFactors:
    """The two factors of one layer; sums over rows.

    Attributes:
        inputs: second moments of its inputs, by groups, of rows drawn at random; float32, since
            they are large and the ridge on them is larger than what that loses.
        outputs: `[g, j, j]`, float64: products of the gradients at its outputs, summed over all
            positions of all samples, in squared outputs of the network; where there are many, of
            rows drawn at random, as many times as large as there are more.
        noise: `[g]`, float64: how far the products of different inputs, summed over the rows, are
            expected to be from what as many rows of other samples would give: the sum of the
            squared distances.
        transposed: whether the weight is `[in, out]`, as of Hugging Face's Conv1D.
    """

    inputs: SecondMoments
    outputs: Float[Tensor, "g j j"]
    noise: Float[Tensor, "g"]
    transposed: bool = False

    def __add__(self, other: "LayerFactors") -> "LayerFactors":
        """Return the factors on both sets of samples."""
        return LayerFactors(
            self.inputs + other.inputs,
            self.outputs + other.outputs,
            self.noise + other.noise,
            self.transposed,
        )

    @property
    def finite(self) -> bool:
        """Whether none of the sums is infinite or NaN, as of inputs whose squares are."""
        sums = (self.inputs.xx, self.inputs.x, self.outputs, self.noise)
        return all(bool(each.isfinite().all()) for each in sums)

    def covariance(self) -> Float[Tensor, "g k k"]:
        """Return the covariance of the inputs, shrunk as far as it is noise.

        Of few samples the sample covariance has directions in which nothing varies, so that
        everything could be refitted at no cost. Products of different inputs are brought closer
        to 0 by the share of their squares that is noise.

        Source:
            Ledoit and Wolf, 2004, with the diagonal as the target; the noise is ours: from the
            difference of two halves of the samples, since rows of one sample are alike.
        """
        found = self.inputs.centred().xx
        own = found.diagonal(dim1=1, dim2=2)
        squares = squares_off_diagonal(found)
        noise = self.noise / max(self.inputs.rows, 1) ** 2
        share = (noise / squares.clamp_min(torch.finfo(squares.dtype).tiny)).clamp(0, 1)
        return torch.lerp(found, own.diag_embed(), share.to(found.dtype)[:, None, None])


@dataclass(frozen=True, slots=True, eq=False)
class KFACFactors:
    """The factors of layers on a calibration set; those of two sets add up.

    Attributes:
        layers: name -> factors.
        samples: how many there were.
    """

    layers: Mapping[str, LayerFactors]
    samples: int

    def __add__(self, other: "KFACFactors") -> "KFACFactors":
        """Return the factors on both sets of samples."""
        layers = dict(self.layers)
        for name, found in other.layers.items():
            layers[name] = layers[name] + found if name in layers else found
        return KFACFactors(layers, self.samples + other.samples)


def measure_factors(
    model: nn.Module,
    batches: Sequence[RawBatch],
    layers: Collection[str],
    progress: Progress = silent,
    *,
    output: str | AttributionTarget = "auto",
    held: float = 0.0,
    seed: int = 0,
) -> KFACFactors:
    """Return the factors of layers on a calibration set.

    The gradients are those of the network's outputs times a standard normal vector: what an error
    `d` of a layer's outputs does to those of the network, `E |J d|²`, is then `d' S d`. It needs no
    labels, and does not fade where the network is sure of itself, as those of a loss do.

    Args:
        model: runs in evaluation mode, and is left as it was.
        batches: gone through once, one forward and one backward pass each.
        layers: whose factors are wanted; those that are never reached are left out.
        progress: told after each batch.
        output: which of the network's outputs, as `counted` takes it.
        held: share of the samples that are left out, as `divided` does.
        seed: of the normal vectors and of the rows that are drawn.

    Raises:
        ModelError: no gradient can go back through the model, or it does not run.
    """
    total = KFACFactors({}, 0)
    generator = torch.Generator().manual_seed(seed)
    samples = samples_of(batches, model)
    with suppress(OutOfTimeError), backward_to_inputs(model):
        for batch, _ in divided(batches, model, held):
            if batch is None:
                continue
            share = batch.samples / samples
            total += _factors_on(model, batch, layers, output, share, generator)
            progress("measuring K-FAC factors", batch.index + 1, len(batches))
    return total


def _factors_on(
    model: nn.Module,
    batch: Batch,
    layers: Collection[str],
    output: str | AttributionTarget,
    share: float,
    generator: torch.Generator,
) -> KFACFactors:
    """Return the factors on one batch, which is that share of all samples."""
    recorder = _FactorRecorder(ParameterOwners(model), layers, batch.samples, share, generator)
    roots, fresh = rooted(batch)
    with recorder:
        result = call(model, fresh)
    every = counted(result, batch, output)
    outputs = [tensor for tensor in every if tensor.requires_grad]
    if not outputs:
        raise ModelError(
            "no gradient reaches the network's layers: its output does not depend on a "
            "floating-point input or an embedding, or it runs under no_grad"
        )
    probes = [torch.randn(t.shape, generator=generator).to(t) for t in outputs]
    sizes = output_sizes(outputs, batch.samples)
    probes = [probe / size for probe, size in zip(probes, sizes, strict=True)]
    torch.autograd.grad(outputs, [*roots, *recorder.leaves], probes, allow_unused=True)
    found = {
        name: LayerFactors(
            recorder.inputs[name], squares, recorder.noise[name], name in recorder.transposed
        )
        for name, squares in recorder.outputs.items()
        if name not in recorder.both_ways
    }
    return KFACFactors(found, batch.samples)


def output_sizes(outputs: Sequence[Tensor], samples: int) -> list[Tensor]:
    """Return what each output of so many samples is divided by: not by its units' size, its own.

    The root of its mean square norm; 1 of a single output, or of zeros.
    """
    if len(outputs) == 1:
        return [outputs[0].new_ones(())]
    sizes = [tensor.detach().norm() / samples**0.5 for tensor in outputs]
    return [torch.where(size > 0, size, 1) for size in sizes]


class _FactorRecorder(OpRecorder):
    """Records what wanted layers take in, and the gradients that come back to their outputs.

    Attributes:
        inputs: layer -> second moments of its inputs, as `LayerFactors` has them.
        noise: layer -> noise of these, likewise.
        outputs: layer -> products of the gradients, likewise; filled as gradients come.
        transposed: layers whose weight is `[in, out]`.
        both_ways: layers whose weight is that in one call and `[out, in]` in another, as of a tied
            autoencoder; their sums are of the first call's way alone.
        leaves: results that depend on no input of the network, from which gradients are followed.
    """

    def __init__(
        self,
        weights: ParameterOwners,
        layers: Collection[str],
        samples: int,
        share: float,  # of all samples
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.inputs: dict[str, SecondMoments] = {}
        self.noise: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        self.leaves: list[Tensor] = []
        self.transposed: set[str] = set()
        self.both_ways: set[str] = set()
        self._weights, self._layers, self._samples = weights, layers, samples
        self._share, self._gradients = share, ceil(share * _GRADIENTS)
        self._generator = generator

    def run(self, op: Op) -> Any:  # noqa: ANN401
        """Run the operation, and record it if it is a wanted layer's."""
        result = super().run(op)
        found = layer_call(op, self._weights)
        if found is not None:
            geometry = found.affine.geometry
            transposed = geometry is not None and geometry.transposed
            if found.layer not in self._layers or found.rows is not None or transposed:
                return result
        elif op.name != "embedding":
            return result
        if not torch.is_grad_enabled():  # a part run under no_grad: nothing comes back through it
            return result
        if not result.requires_grad:
            self.leaves.append(result.detach().requires_grad_())
            result = self.leaves[-1].clone()
        if found is not None and self._other_way(found):
            self.both_ways.add(found.layer)
        elif found is not None:
            self.transposed |= {found.layer} if found.transposed else set()
            self._add_inputs(found, result)
            result.register_hook(partial(self._add_outputs, found))
        return result

    def _other_way(self, found: LayerCall) -> bool:
        known = found.layer in self.inputs
        return known and found.transposed != (found.layer in self.transposed)

    def _add_inputs(self, found: LayerCall, outputs: Tensor) -> None:
        affine = found.affine
        most = ceil(self._share * max(_ROWS, _ROWS_AN_INPUT * affine.weight[0].numel()))
        rows = drawn_rows(outputs, affine.geometry, most, self._generator)
        taken = inputs_at(affine.inputs.detach(), affine.weight, affine.geometry, rows)
        numbers = samples_at(outputs, affine.geometry, rows, self._samples)
        first = (numbers < self._samples // 2).to(taken.device)
        halves = [second_moments(taken[at].float(), dtype=torch.float32) for at in (first, ~first)]
        self._add(self.inputs, found.layer, halves[0] + halves[1])
        self._add(self.noise, found.layer, noise_of(*halves))

    def _add_outputs(self, found: LayerCall, gradient: Tensor) -> None:
        geometry = found.affine.geometry
        groups = geometry.groups if geometry else 1
        drawn = drawn_rows(gradient, geometry, self._gradients, self._generator)
        flat = outputs_at(gradient, geometry, drawn)
        rows = flat.float().unflatten(1, (groups, -1)).transpose(0, 1)
        more = gradient.numel() / max(flat.numel(), 1)
        self._add(self.outputs, found.layer, (rows.mT @ rows).double() * more)

    def _add(self, to: dict[str, _Sum], layer: str, found: _Sum) -> None:
        to[layer] = to[layer] + found if layer in to else found
