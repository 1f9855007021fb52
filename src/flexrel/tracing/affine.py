"""Calls of operations that are affine in their input: `z = a W + b`, in whatever spelling.

`F.linear`, `x @ weight.T`, `torch.addmm`, every convolution, and the same as ATen operations of an
exported program: each is read into one `AffineCall`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


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
