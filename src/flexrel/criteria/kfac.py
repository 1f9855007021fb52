"""How an error in a layer's outputs reaches the network's, and what the layer takes in.

The two matrices that say what a refit of the layer can make up for, and how much what it can't
would matter: a Kronecker-factored quadratic model of the network's outputs (Martens and Grosse,
2015). Both are sums over samples, so those of batches, processes and devices add up.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flexrel.core.batches import Batch, RawBatch, divided, read_batches
from flexrel.core.graph import PruningGraph
from flexrel.core.measurement import Progress, silent
from flexrel.core.running import backward_to_inputs, call, rooted, scores_in, tensors_of
from flexrel.errors import ModelError
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

_ROWS = 20_000  # of a layer's inputs, over all batches
_GRADIENTS = 100_000  # rows of its outputs, likewise


@dataclass(frozen=True, slots=True, eq=False)
class LayerFactors:
    """What is known of one layer; sums.

    Attributes:
        inputs: second moments of its inputs, by groups, of rows drawn at random; float32, since
            they are large and the ridge on them is larger than what that loses.
        outputs: `[g, j, j]`, float64: products of the gradients at its outputs, summed over all
            positions of all samples, in squared outputs of the network; where there are many, of
            rows drawn at random, as many times as large as there are more.
        noise: `[g]`, float64: how far the products of different inputs, summed over the rows, are
            expected to be from what as many rows of other samples would give: the sum of the
            squared distances.
    """

    inputs: SecondMoments
    outputs: Float[Tensor, "g j j"]
    noise: Float[Tensor, "g"]

    def __add__(self, other: "LayerFactors") -> "LayerFactors":
        """Return the curvature on both sets of samples."""
        return LayerFactors(
            self.inputs + other.inputs, self.outputs + other.outputs, self.noise + other.noise
        )

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
        squares = _squares_beside_own(found)
        noise = self.noise / max(self.inputs.rows, 1) ** 2
        share = (noise / squares.clamp_min(torch.finfo(squares.dtype).tiny)).clamp(0, 1)
        return torch.lerp(found, own.diag_embed(), share.to(found.dtype)[:, None, None])


class KFACFactors(Mapping[str, LayerFactors]):
    """The curvature of layers, by name, on a calibration set; additive.

    Attributes:
        samples: how many there were.
    """

    def __init__(self, layers: Mapping[str, LayerFactors], samples: int) -> None:
        self._layers = MappingProxyType(dict(layers))
        self.samples = samples

    def __getitem__(self, layer: str) -> LayerFactors:
        """Return the curvature of a layer."""
        return self._layers[layer]

    def __iter__(self) -> Iterator[str]:
        """Go through the names of the layers."""
        return iter(self._layers)

    def __len__(self) -> int:
        """Return how many layers there are."""
        return len(self._layers)

    def __add__(self, other: "KFACFactors") -> "KFACFactors":
        """Return the curvature on both sets of samples."""
        layers = dict(self)
        for name, found in other.items():
            layers[name] = layers[name] + found if name in layers else found
        return KFACFactors(layers, self.samples + other.samples)


def readers_of(graph: PruningGraph) -> set[str]:
    """Return the layers whose inputs go, or whose weights do, when units go."""
    return {reader for group in graph.groups for reader in group.readers}


def measure_factors(
    model: nn.Module,
    batches: Sequence[RawBatch],
    layers: Collection[str],
    progress: Progress = silent,
    *,
    held: float = 0.0,
    seed: int = 0,
) -> KFACFactors:
    """Return the curvature of layers on a calibration set.

    The gradients are those of the network's outputs times a standard normal vector: what an error
    `d` of a layer's outputs does to those of the network, `E |J d|²`, is then `d' S d`. It needs no
    labels, and does not fade where the network is sure of itself, as those of a loss do.

    Args:
        model: runs in evaluation mode, and is left as it was.
        batches: gone through once, one forward and one backward pass each.
        layers: whose curvature is wanted; those that are never reached are left out.
        progress: told after each batch.
        held: share of the samples that are left out, as `divided` does.
        seed: of the normal vectors and of the rows that are drawn.

    Raises:
        ModelError: no gradient can go back through the model, or it does not run.
    """
    total: KFACFactors | None = None
    generator = torch.Generator().manual_seed(seed)
    samples = sum(batch.samples for batch in read_batches(batches, model))
    with backward_to_inputs(model):
        for batch, _ in divided(batches, model, held):
            if batch is None:
                continue
            found = _measure(model, batch, layers, batch.samples / samples, generator)
            total = found if total is None else total + found
            progress("measuring curvature", batch.index + 1, len(batches))
    return total if total is not None else KFACFactors({}, 0)


def _measure(
    model: nn.Module,
    batch: Batch,
    layers: Collection[str],
    share: float,
    generator: torch.Generator,
) -> KFACFactors:
    watch = _Watch(ParameterOwners(model), layers, batch.samples, share, generator)
    roots, fresh = rooted(batch)
    with watch:
        result = scores_in(call(model, fresh))
    outputs = [t for t in tensors_of(result) if t.is_floating_point() and t.requires_grad]
    if not outputs:
        raise ModelError(
            "no gradient reaches the network's layers: its output does not depend on a "
            "floating-point input or an embedding, or it runs under no_grad"
        )
    probes = [torch.randn(t.shape, generator=generator).to(t) for t in outputs]
    torch.autograd.grad(outputs, [*roots, *watch.leaves], probes, allow_unused=True)
    return KFACFactors(
        {
            name: LayerFactors(watch.inputs[name], found, watch.noise[name])
            for name, found in watch.outputs.items()
        },
        batch.samples,
    )


class _Watch(OpRecorder):
    """Takes down what wanted layers read, and the gradients that come back to them."""

    def __init__(
        self,
        weights: ParameterOwners,
        layers: Collection[str],
        samples: int,
        share: float,  # of all samples
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self._samples = samples
        self.inputs: dict[str, SecondMoments] = {}
        self.noise: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        self.leaves: list[Tensor] = []  # results that depend on no input
        self._weights, self._layers = weights, layers
        self._rows, self._gradients = ceil(share * _ROWS), ceil(share * _GRADIENTS)
        self._generator = generator

    def run(self, step: Op) -> Any:  # noqa: ANN401
        """Run the operation, and watch it if it is a layer's."""
        result = super().run(step)
        if step.name == "embedding" and not result.requires_grad:
            return self._leaf(result)
        found = layer_call(step, self._weights)
        if found is None or found.layer not in self._layers or not _followed(found):
            return result
        if not result.requires_grad:
            result = self._leaf(result)
        self._add_inputs(found, result)
        result.register_hook(partial(self._add_outputs, found))
        return result

    def _leaf(self, result: Tensor) -> Tensor:
        self.leaves.append(result.detach().requires_grad_())
        return self.leaves[-1].clone()

    def _add_inputs(self, found: LayerCall, outputs: Tensor) -> None:
        affine = found.affine
        rows = drawn_rows(outputs, affine.geometry, self._rows, self._generator)
        taken = inputs_at(affine.inputs.detach(), affine.weight, affine.geometry, rows)
        numbers = samples_at(outputs, affine.geometry, rows, self._samples)
        first = (numbers < self._samples // 2).to(taken.device)
        halves = [second_moments(taken[at].float(), dtype=torch.float32) for at in (first, ~first)]
        self._add(self.inputs, found.layer, halves[0] + halves[1])
        self._add(self.noise, found.layer, _noise(*halves))

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


def _noise(one: SecondMoments, other: SecondMoments) -> Float[Tensor, "g"]:
    """Return how far the sums over both are expected to be from those of other samples, squared.

    The difference of two sums varies as their sum does. Of one sample alone it is not known: the
    sum itself is the most that it can be.
    """
    if one.rows and other.rows:
        rows = one.rows + other.rows
        apart = one.xx * (rows / 2 / one.rows)
        apart.sub_(other.xx, alpha=rows / 2 / other.rows)
        mean = (one.x + other.x) / rows
        for half, sign in ((one, 1), (other, -1)):  # about the mean of both
            shift = (half.x / half.rows - mean).to(apart.dtype)
            apart.baddbmm_(shift[:, :, None], shift[:, None, :], alpha=sign * rows / 2)
    else:
        apart = (one + other).centred().xx * (one.rows + other.rows)
    return _squares_beside_own(apart)


def _squares_beside_own(matrices: Float[Tensor, "g k k"]) -> Float[Tensor, "g"]:
    """Return the sum of the squares off the diagonal, float64: squares of products are large."""
    wide = torch.float64
    norms: Tensor = torch.linalg.vector_norm(matrices, dim=(1, 2), dtype=wide)
    return norms.square() - matrices.diagonal(dim1=1, dim2=2).to(wide).square().sum(1)


def _followed(found: LayerCall) -> bool:
    geometry = found.affine.geometry
    return found.rows is None and not (geometry is not None and geometry.transposed)
