"""How precisely a packed file holds values: which tensors are rounded, and to what."""

from collections.abc import Collection, Mapping
from typing import Final, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from flexrel.errors import PrecisionError, UsageError
from flexrel_edge.scales import MAX_SCALE, on_grid

Values = Literal["float32", "bfloat16", "float16", "int8", "int4"]
RequestedPrecision = Literal["auto", "float32", "bfloat16", "float16", "int8", "int4"]
VALUES: tuple[Values, ...] = ("float32", "bfloat16", "float16", "int8", "int4")
FINEST_FIRST: tuple[Values, ...] = ("float32", "float16", "int8", "int4")  # what "auto" tries

_WIDE: Final = torch.float32  # only such tensors are rounded
LARGEST: Final[Mapping[str, int]] = {"int8": 127, "int4": 7}  # whole number, and its negative
_MATRIX: Final = 2  # axes: fewer have no rows that could share a scale
_SCALE_BITS: Final = 8  # significant ones: times 127 exact, and small in the file
_CLIPS: Final = torch.linspace(1, 0.5, 11)  # of the largest value, beyond which values are cut off
_DROPPED: Final = 13  # of a float32's significant bits, so that 11 are left, as float16 has


def check_values(values: str, known: Collection[str]) -> None:
    """Raise UsageError unless the precision is one that is known."""
    if values not in known:
        raise UsageError(f"values {values!r} is not known; there are: {', '.join(known)}")


def stored(name: str, tensor: Tensor, values: Values) -> Tensor:
    """Return the tensor as the file will hold it.

    "float16" and "bfloat16" give tensors of these dtypes. "int8" and "int4" give float32: matrices,
    and what has more axes, as whole numbers from -127 to 127, or -7 to 7, times a scale for each
    entry of the first axis; that which changes least is taken. Vectors, such as biases and the
    statistics of norms, keep the 11 significant bits of float16. What is rounded already stays.

    Args:
        name: said in errors.
        tensor: any; only float32 is rounded.
        values: as `VALUES` has it.

    Raises:
        PrecisionError: a value is too large for float16, or no number and to be a whole one.
    """
    if tensor.dtype != _WIDE or values == "float32":
        return tensor
    if values == "bfloat16":
        return tensor.bfloat16()
    if values == "float16":
        return _half(name, tensor)
    if tensor.ndim < _MATRIX:
        return shortened(tensor)
    if not bool(tensor.isfinite().all()):
        raise PrecisionError(
            f"{name} has a value that is no finite number, which {values} can't hold"
        )
    return _on_grid(tensor, LARGEST[values])


def shortened(tensor: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return the nearest float32 of 11 significant bits, of two the even one; NaN stays."""
    bits = tensor.contiguous().view(torch.int32)
    last = bits >> _DROPPED & 1
    rounded = bits + (1 << _DROPPED - 1) - 1 + last & -(1 << _DROPPED)
    return torch.where(tensor.isfinite(), rounded.view(_WIDE), tensor)


def scales_of(
    rows: Float[Tensor, "rows columns"], largest: int, weights: Float[Tensor, "#rows columns"]
) -> Float[Tensor, "rows 1"]:
    """Return the scale of each row with which rounding to whole numbers costs least.

    Args:
        rows: finite.
        largest: whole number allowed; what lies beyond it is cut off.
        weights: of each squared error.

    Returns:
        Numbers above 0 of 8 significant bits, tried from the row's largest value down to half.
    """
    top = rows.abs().amax(1, keepdim=True)
    best = _short_scale(top / largest)
    least = torch.full_like(top, torch.inf)
    for clip in _CLIPS.tolist():
        scale = _short_scale(clip * top / largest)
        error = (to_grid(rows, scale, largest) - rows).square().mul(weights).sum(1, keepdim=True)
        best = torch.where(error < least, scale, best)
        least = torch.minimum(error, least)
    return best


def to_grid(
    rows: Float[Tensor, "rows columns"], scales: Float[Tensor, "rows 1"], largest: int
) -> Float[Tensor, "rows columns"]:
    """Return the nearest whole numbers up to `largest`, times the scales."""
    return (rows / scales).round().clamp(-largest, largest) * scales + 0.0  # no minus zeros


def _short_scale(scales: Tensor) -> Tensor:
    """Round up to a few significant bits; 1 in place of 0."""
    fraction, exponent = torch.frexp(scales.clamp_min(torch.finfo(_WIDE).tiny))
    up = torch.ldexp((fraction * 2**_SCALE_BITS).ceil(), exponent - _SCALE_BITS)
    return torch.where(scales == 0, 1.0, up.clamp_max(MAX_SCALE))


def _on_grid(tensor: Tensor, largest: int) -> Tensor:
    if not tensor.numel():
        return tensor
    rows = tensor.flatten(1)
    known = on_grid(rows.detach().cpu().contiguous().numpy())
    if known is not None and abs(known[0]).max(initial=0) <= largest:
        return tensor
    scales = scales_of(rows, largest, torch.ones_like(rows[:1]))
    return to_grid(rows, scales, largest).reshape(tensor.shape)


def _half(name: str, tensor: Tensor) -> Tensor:
    half = tensor.half()
    if bool((half.isinf() & tensor.isfinite()).any()):
        largest = float(tensor.abs().max())
        raise PrecisionError(
            f"{name} has a value of {largest:.3g}, which float16 can't hold; the others can"
        )
    return half
