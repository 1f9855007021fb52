"""Which operations are calls of a network's layers: `z = a W + b` with a parameter as the weight.

`F.linear`, `x @ weight.T`, `torch.addmm`, every convolution, and the same as ATen operations of an
exported program: each is read into one `AffineCall`. Parameters are found again by the memory that
they lie in, also as views.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from flexrel.core.graph import layer_of
from flexrel.tracing.ops import Op


@dataclass(frozen=True, slots=True)
class ConvGeometry:
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
    geometry: ConvGeometry | None


def affine_call(op: Op) -> AffineCall | None:
    """Return the operation as one that is affine in its input, if it is."""
    names = _ARGUMENTS.get(op.name)
    if names is None:
        return None
    given = op.named(names)
    if names == _ADDMM:
        return _addmm(given)
    if names == _MATMUL:
        return _matmul(given)
    geometry = None if names == _LINEAR else _geometry(given, names == _CONV_TRANSPOSE)
    return AffineCall(given["input"], given["weight"], given.get("bias"), geometry)


def _addmm(given: Mapping[str, Any]) -> AffineCall | None:
    """Read `bias + inputs @ weight`, as Hugging Face's Conv1D writes it."""
    plain = given.get("beta", 1) == 1 and given.get("alpha", 1) == 1
    if not plain or given["input"].ndim != 1:
        return None
    return AffineCall(given["mat1"], given["mat2"].t(), given["input"], None)


def _matmul(given: Mapping[str, Any]) -> AffineCall | None:
    """Read `inputs @ weight`."""
    inputs = given["input"]
    weight = next(given[name] for name in ("other", "mat2", "tensor2") if name in given)
    if not isinstance(weight, Tensor) or weight.ndim != 2 or inputs.ndim < 2:  # noqa: PLR2004
        return None
    return AffineCall(inputs, weight.t(), None, None)


def _geometry(given: Mapping[str, Any], transposed: bool) -> ConvGeometry:  # noqa: FBT001
    kernel = given["weight"].shape[2:]
    dilation = _each(given.get("dilation", 1), len(kernel))
    padding = given.get("padding", 0)
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        sides = tuple((t // 2, t - t // 2) for t in total)
    else:
        even = _each(0 if padding == "valid" else padding, len(kernel))
        sides = tuple(zip(even, even, strict=True))
    return ConvGeometry(
        _each(given.get("stride", 1), len(kernel)),
        sides,
        dilation,
        _each(given.get("output_padding", 0), len(kernel)),
        bool(given.get("transposed", transposed)),
        int(given.get("groups", 1)),
    )


def _each(value: int | tuple[int, ...] | list[int], axes: int) -> tuple[int, ...]:
    """Return one number an axis, whichever way it was given."""
    found = (value,) if isinstance(value, int) else tuple(value)
    return found * axes if len(found) == 1 else found


_LINEAR = "input weight bias"
_ADDMM = "input mat1 mat2"
_MATMUL = "input other"
_CONV = "input weight bias stride padding dilation groups"
_CONV_TRANSPOSE = "input weight bias stride padding output_padding groups dilation"
_CONVOLUTION = "input weight bias stride padding dilation transposed output_padding groups"
_ARGUMENTS: Mapping[str, str] = {  # name of an operation -> its arguments
    "linear": _LINEAR,
    "addmm": _ADDMM,
    **dict.fromkeys(("matmul", "__matmul__", "mm"), _MATMUL),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _CONV),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _CONV_TRANSPOSE),
    **dict.fromkeys(("convolution", "_convolution"), _CONVOLUTION),
}


@dataclass(frozen=True, slots=True)
class Owner:
    """The layer that a weight belongs to, and how the weight lies in its parameter.

    Attributes:
        layer: its name.
        rows: first and last (exclusive) of the parameter, where the weight is only those.
        transposed: whether the weight is the parameter's transpose.
        tied: other names of the same parameter.
    """

    layer: str
    rows: tuple[int, int] | None = None
    transposed: bool = False
    tied: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The layer's, with `[first:last]` where the weight is only those rows."""
        return f"{self.layer}[{self.rows[0]}:{self.rows[1]}]" if self.rows else self.layer


class ParameterOwners:
    """Which layer a tensor is the weight of: the parameters of a model, and views of them."""

    def __init__(self, model: nn.Module) -> None:
        layers: dict[int, list[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            layers.setdefault(id(parameter), []).append(layer_of(name))
        self._parameters: dict[int, list[tuple[Tensor, Owner]]] = {}
        for parameter in model.parameters():
            first, *tied = layers[id(parameter)]
            place = parameter.untyped_storage().data_ptr()
            owned = parameter, Owner(first, tied=tuple(tied))
            self._parameters.setdefault(place, []).append(owned)

    def owner(self, weight: Tensor) -> Owner | None:
        """Return whose weight it is: a parameter, its transpose, or some of its rows; or None."""
        for parameter, owner in self._parameters.get(weight.untyped_storage().data_ptr(), ()):
            if weight is parameter:
                return owner
            if parameter.device != weight.device:
                continue
            start = int(weight.storage_offset() - parameter.storage_offset())
            if start == 0 and weight.shape == parameter.shape and _same_strides(weight, parameter):
                return owner
            if start == 0 and parameter.ndim == 2 and _is_transpose(weight, parameter):  # noqa: PLR2004
                return Owner(owner.layer, transposed=True, tied=owner.tied)
            if (rows := _rows(weight, parameter, start)) is not None:
                return Owner(owner.layer, rows, tied=owner.tied)
        return None


def _same_strides(one: Tensor, other: Tensor) -> bool:
    """Compare strides of axes that have more than one entry."""
    return all(
        a == b or size == 1
        for a, b, size in zip(one.stride(), other.stride(), one.shape, strict=True)
    )


def _is_transpose(weight: Tensor, parameter: Tensor) -> bool:
    return weight.shape == parameter.shape[::-1] and _same_strides(weight, parameter.t())


def _rows(weight: Tensor, parameter: Tensor, start: int) -> tuple[int, int] | None:
    """Return which rows of the parameter the weight is, if it is some of them."""
    if weight.ndim != parameter.ndim or weight.shape[1:] != parameter.shape[1:]:
        return None
    row = parameter.stride(0)
    if not row or start % row or not _same_strides(weight[:1], parameter[:1]):
        return None
    first = start // row
    inside = first >= 0 and first + len(weight) <= len(parameter)
    return (first, first + len(weight)) if inside else None


@dataclass(frozen=True, slots=True, eq=False)
class LayerCall:
    """A call of an affine operation with a parameter of the network."""

    layer: str
    rows: tuple[int, int] | None  # of the parameter, where the weight is only those
    transposed: bool  # whether the weight is the parameter's transpose
    affine: AffineCall


def layer_call(op: Op, owners: ParameterOwners) -> LayerCall | None:
    """Return which layer the operation is a call of, if it is one."""
    affine = affine_call(op)
    owner = owners.owner(affine.weight) if affine else None
    if affine is None or owner is None:
        return None
    return LayerCall(owner.layer, owner.rows, owner.transposed, affine)
