"""Calls of operations that are affine in their input: `z = a W + b`, in whatever spelling.

`F.linear`, `x @ weight.T`, `torch.addmm`, every convolution, and the same as ATen operations of an
exported program: each is read into one `Affine`, which is all that a relevance rule is shown.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from flexrel.relevance.patches import Stamp, Window


@dataclass(frozen=True, slots=True)
class Geometry:
    """How a convolution moves over its spatial axes; one entry an axis."""

    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]  # before and after
    dilation: tuple[int, ...]
    output_padding: tuple[int, ...]
    transposed: bool
    groups: int


@dataclass(frozen=True, slots=True, eq=False)
class Affine:
    """One call of a layer: what `z = a W + b` is made of, without the input.

    Attributes:
        name: of the layer that the weight belongs to.
        weight: `[out, in]`; of a convolution `[out, in / groups, *kernel]`; of a transposed one
            `[in, out / groups, *kernel]`.
        bias: `[out]`, or None.
        geometry: of a convolution; None of a linear layer.
        depth: where in the network it was called: 0 is its first layer, 1 its last. It is
            known in the backward pass only; 0 until then.
    """

    name: str
    weight: Tensor
    bias: Tensor | None
    geometry: Geometry | None
    depth: float = 0.0

    @property
    def groups(self) -> int:
        """Number of groups of channels; 1 for a linear layer."""
        return self.geometry.groups if self.geometry else 1

    def forward(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return `inputs W + bias` for another weight and bias of the same shapes."""
        g = self.geometry
        if g is None:
            return functional.linear(inputs, weight, bias)
        inputs, padding = _evenly_padded(inputs, g.padding)
        settings = (g.stride, padding, g.dilation, g.transposed, g.output_padding, g.groups)
        outputs: Tensor = torch.ops.aten.convolution.default(inputs, weight, bias, *settings)
        return outputs

    def backward(self, gradient: Tensor, weight: Tensor, like: Tensor) -> Tensor:
        """Return `gradient Wᵀ` for another weight; `like` is an input of the layer."""
        g = self.geometry
        if g is None:
            return gradient @ weight
        padded, padding = _evenly_padded(like, g.padding)
        found: Tensor = torch.ops.aten.convolution_backward.default(
            gradient,
            padded,
            weight,
            None,
            g.stride,
            padding,
            g.dilation,
            g.transposed,
            g.output_padding,
            g.groups,
            [True, False, False],
        )[0]
        if padded is like:
            return found
        for axis, ((before, _), size) in enumerate(
            zip(g.padding, like.shape[2:], strict=True), start=2
        ):
            found = found.narrow(axis, before, size)
        return found

    def times(self, scale: Tensor, shift: Tensor) -> "Affine":
        """Return the layer followed by `z * scale + shift` a channel: a folded batch norm."""
        ends = [1] * (self.weight.ndim - 2)
        if self.geometry and self.geometry.transposed:  # [in, out / groups, *kernel]
            groups, per_group = self.groups, self.weight.shape[1]
            rows = scale.view(groups, 1, per_group, *ends)
            weight = (self.weight.unflatten(0, (groups, -1)) * rows).flatten(0, 1)
        else:
            weight = self.weight * scale.view(-1, 1, *ends)
        bias = shift if self.bias is None else self.bias * scale + shift
        return replace(self, weight=weight, bias=bias)

    def cast(self, dtype: torch.dtype) -> "Affine":
        """Return the layer with weight and bias of another dtype."""
        bias = None if self.bias is None else self.bias.to(dtype)
        return replace(self, weight=self.weight.to(dtype), bias=bias)

    def axes(self) -> tuple[Window | Stamp, ...]:
        """Return how a convolution reads each of its spatial axes; `()` for a linear layer."""
        g = self.geometry
        if g is None:
            return ()
        kernel = self.weight.shape[2:]
        if g.transposed:
            sides = [before for before, _ in g.padding]
            stamps = zip(kernel, g.stride, g.dilation, sides, g.output_padding, strict=True)
            return tuple(Stamp(*stamp) for stamp in stamps)
        windows = zip(kernel, g.stride, g.dilation, g.padding, strict=True)
        return tuple(Window(k, s, d, *side, "zeros") for k, s, d, side in windows)


def _evenly_padded(inputs: Tensor, sides: tuple[tuple[int, int], ...]) -> tuple[Tensor, list[int]]:
    """Return the inputs and the padding that is left to do, which is even on both sides."""
    if all(before == after for before, after in sides):
        return inputs, [before for before, _ in sides]
    flat = [side for pair in reversed(sides) for side in pair]
    return functional.pad(inputs, flat), [0] * len(sides)


@dataclass(frozen=True, slots=True, eq=False)
class AffineCall:
    """A call of an affine operation, as its arguments tell it."""

    inputs: Tensor
    weight: Tensor  # as a rule is shown it: [out, in] for a linear layer
    bias: Tensor | None
    geometry: Geometry | None


Reader = Callable[[tuple[Any, ...], Mapping[str, Any]], "AffineCall | None"]


def _bound(names: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {**dict(zip(names.split(), args, strict=False)), **kwargs}


def _linear(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> AffineCall:
    given = _bound("input weight bias", args, kwargs)
    return AffineCall(given["input"], given["weight"], given.get("bias"), None)


def _addmm(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> AffineCall | None:
    """Read `bias + inputs @ weight`, as Hugging Face's Conv1D writes it."""
    given = _bound("input mat1 mat2", args, kwargs)
    plain = given.get("beta", 1) == 1 and given.get("alpha", 1) == 1
    if not plain or given["input"].ndim != 1:
        return None
    return AffineCall(given["mat1"], given["mat2"].t(), given["input"], None)


def _matmul(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> AffineCall | None:
    """Read `inputs @ weight`."""
    given = _bound("input other", args, {_ALIASES.get(k, k): v for k, v in kwargs.items()})
    inputs, weight = given["input"], given["other"]
    if not isinstance(weight, Tensor) or weight.ndim != 2 or inputs.ndim < 2:  # noqa: PLR2004
        return None
    return AffineCall(inputs, weight.t(), None, None)


_ALIASES = {"mat2": "other", "tensor2": "other"}


def _conv(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> AffineCall | None:
    given = _bound("input weight bias stride padding dilation groups", args, kwargs)
    return _convolution_call(given, transposed=False)


def _conv_transpose(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> AffineCall | None:
    names = "input weight bias stride padding output_padding groups dilation"
    return _convolution_call(_bound(names, args, kwargs), transposed=True)


def _convolution(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> AffineCall | None:
    names = "input weight bias stride padding dilation transposed output_padding groups"
    given = _bound(names, args, kwargs)
    return _convolution_call(given, transposed=bool(given["transposed"]))


def _convolution_call(given: Mapping[str, Any], *, transposed: bool) -> AffineCall:
    weight = given["weight"]
    kernel = tuple(weight.shape[2:])
    dilation = _each(given.get("dilation", 1), len(kernel))
    padding = given.get("padding", 0)
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        sides = [(t // 2, t - t // 2) for t in total]
    else:
        even = _each(0 if padding == "valid" else padding, len(kernel))
        sides = [(p, p) for p in even]
    return AffineCall(
        given["input"],
        weight,
        given.get("bias"),
        Geometry(
            _each(given.get("stride", 1), len(kernel)),
            tuple(sides),
            dilation,
            _each(given.get("output_padding", 0), len(kernel)),
            transposed,
            int(given.get("groups", 1)),
        ),
    )


def _each(value: int | tuple[int, ...] | list[int], axes: int) -> tuple[int, ...]:
    """Return one number an axis, whichever way it was given."""
    found = (value,) if isinstance(value, int) else tuple(value)
    return found * axes if len(found) == 1 else found


READERS: Mapping[str, Reader] = {
    "linear": _linear,
    "addmm": _addmm,
    "matmul": _matmul,
    "__matmul__": _matmul,
    "mm": _matmul,
    "conv1d": _conv,
    "conv2d": _conv,
    "conv3d": _conv,
    "conv_transpose1d": _conv_transpose,
    "conv_transpose2d": _conv_transpose,
    "conv_transpose3d": _conv_transpose,
    "convolution": _convolution,
    "_convolution": _convolution,
}
