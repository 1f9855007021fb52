"""How precisely a packed file holds values: which tensors are rounded, and to what."""

import math
from collections.abc import Collection, Iterable, Mapping
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

_WIDE: Final = torch.float32  # what scales are of
_HALF: Final = 2  # bytes of a value: no more are saved by "float16" and "bfloat16"
LARGEST: Final[Mapping[str, int]] = {"int8": 127, "int4": 7}  # whole number, and its negative
_MATRIX: Final = 2  # axes: fewer have no rows that could share a scale
_SCALE_BITS: Final = 8  # significant ones at most: small in the file
_CLIPS: Final = torch.linspace(1, 0.5, 11)  # of the largest value, beyond which values are cut off
# of a dtype's significant bits, so that 11 are left, as float16 has; and integers of its width
_DROPPED: Final = {torch.float32: (13, torch.int32), torch.float64: (42, torch.int64)}


def check_values(values: str, known: Collection[str]) -> None:
    """Raise UsageError unless the precision is one that is known."""
    if values not in known:
        raise UsageError(f"values {values!r} is not known; there are: {', '.join(known)}")


def finest_first(tensors: Iterable[Tensor]) -> tuple[Values, ...]:
    """Return what "auto" tries for a network of these tensors, float16 only if one is wider."""
    wide = any(t.is_floating_point() and t.itemsize > _HALF for t in tensors)
    return tuple(v for v in FINEST_FIRST if wide or v != "float16")


def stored(name: str, tensor: Tensor, values: Values) -> Tensor:
    """Return the tensor as the file will hold it.

    "float16" and "bfloat16" give tensors of these dtypes, of what is wider. "int8" and "int4" keep
    the dtype: matrices, and what has more axes, become whole numbers from -127 to 127, or -7 to 7,
    times a scale for each entry of the first axis; that which changes least is taken. Vectors, such
    as biases and the statistics of norms, keep the 11 significant bits of float16, of fewer all.
    What is rounded already stays.

    Args:
        name: said in errors.
        tensor: any; only floating ones are rounded.
        values: as `VALUES` has it.

    Raises:
        PrecisionError: a value is too large, or no number and to be a whole one.
    """
    if not tensor.is_floating_point() or values == "float32":
        return tensor
    if values in ("float16", "bfloat16"):
        if tensor.itemsize <= _HALF:
            return tensor
        return tensor.bfloat16() if values == "bfloat16" else _half(name, tensor)
    if tensor.ndim < _MATRIX:
        return shortened(tensor)
    check_reach(name, tensor, values)
    return _on_grid(tensor.to(_WIDE), LARGEST[values], tensor.dtype).to(tensor.dtype)


def check_reach(name: str, tensor: Tensor, values: Values) -> None:
    """Raise a PrecisionError if whole numbers times a scale reach not all values of a matrix.

    Args:
        name: said in the error.
        tensor: any; only floating ones of two axes or more become whole numbers.
        values: only "int8" and "int4" make them.
    """
    if not tensor.is_floating_point() or tensor.ndim < _MATRIX or values not in LARGEST:
        return
    if not bool(tensor.isfinite().all()):
        raise PrecisionError(
            f"{name} has a value that is no finite number, which {values} can't hold"
        )
    largest = LARGEST[values]
    reach = (largest + 1) * _largest_scale(largest, tensor.dtype)  # with what rounding takes off
    top = float(tensor.abs().max()) if tensor.numel() else 0.0
    if top > reach:
        raise PrecisionError(
            f"{name} has a value of {top:.3g}, which {values} can't hold: {reach:.3g} is the most; "
            "bfloat16 and float32 can"
        )


def shortened(tensor: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return the nearest values of 11 significant bits, of two the even one; NaN stays.

    A dtype of no more significant bits stays as it is.
    """
    if tensor.dtype not in _DROPPED:
        return tensor
    dropped, whole = _DROPPED[tensor.dtype]
    bits = tensor.contiguous().view(whole)
    last = bits >> dropped & 1
    rounded = bits + (1 << dropped - 1) - 1 + last & -(1 << dropped)
    return torch.where(tensor.isfinite(), rounded.view(tensor.dtype), tensor)


def scales_of(
    rows: Float[Tensor, "rows columns"],
    largest: int,
    weights: Float[Tensor, "#rows columns"],
    dtype: torch.dtype = _WIDE,
) -> Float[Tensor, "rows 1"]:
    """Return the scale of each row with which rounding to whole numbers costs least.

    Args:
        rows: finite, float32.
        largest: whole number allowed; what lies beyond it is cut off.
        weights: of each squared error.
        dtype: that has to hold every product of a scale and a whole number exactly.

    Returns:
        Numbers above 0, tried from the row's largest value down to half. They have 8 significant
        bits, or those that `largest` leaves of the dtype's: of float16's 11, 4 for 127; of
        bfloat16's 8, 1, so that scales are powers of two and steps up to twice as wide.
    """
    top = rows.abs().amax(1, keepdim=True)
    best = _short_scale(top / largest, largest, dtype)
    least = torch.full_like(top, torch.inf)
    for clip in _CLIPS.tolist():
        scale = _short_scale(clip * top / largest, largest, dtype)
        error = (to_grid(rows, scale, largest) - rows).square().mul(weights).sum(1, keepdim=True)
        best = torch.where(error < least, scale, best)
        least = torch.minimum(error, least)
    return best


def to_grid(
    rows: Float[Tensor, "rows columns"], scales: Float[Tensor, "rows 1"], largest: int
) -> Float[Tensor, "rows columns"]:
    """Return the nearest whole numbers up to `largest`, times the scales."""
    return (rows / scales).round().clamp(-largest, largest) * scales + 0.0  # no minus zeros


def _short_scale(scales: Tensor, largest: int, dtype: torch.dtype) -> Tensor:
    """Round up to the few bits that leave products with whole numbers exact; 1 in place of 0."""
    numbers, bits = torch.finfo(dtype), _bits_of_scales(largest, dtype)
    parts, exponents = torch.frexp(scales.clamp_min(torch.finfo(_WIDE).tiny))
    lowest = round(math.log2(numbers.tiny) + math.log2(numbers.eps))  # bit, of the dtype
    last = (exponents - bits).clamp_min(lowest)
    up = torch.ldexp(torch.ldexp(parts, exponents - last).ceil(), last)
    return torch.where(scales == 0, 1.0, up.clamp_max(_largest_scale(largest, dtype)))


def _bits_of_scales(largest: int, dtype: torch.dtype) -> int:
    """Return how many significant bits leave products with whole numbers exact in a dtype."""
    digits = 1 - round(math.log2(torch.finfo(dtype).eps))
    return min(_SCALE_BITS, digits - largest.bit_length())


def _largest_scale(largest: int, dtype: torch.dtype) -> float:
    """Return the largest scale of so few bits whose products a dtype holds, and a reader takes."""
    bits = _bits_of_scales(largest, dtype)
    fraction, exponent = math.frexp(torch.finfo(dtype).max / largest)
    return min(MAX_SCALE, math.ldexp(math.floor(fraction * 2**bits), exponent - bits))


def _on_grid(tensor: Tensor, largest: int, dtype: torch.dtype) -> Tensor:
    if not tensor.numel():
        return tensor
    rows = tensor.flatten(1) + 0.0  # no minus zeros
    known = on_grid(rows.detach().cpu().contiguous().numpy())
    if known is not None and abs(known[0]).max(initial=0) <= largest:
        return tensor
    scales = scales_of(rows, largest, torch.ones_like(rows[:1]), dtype)
    return to_grid(rows, scales, largest).reshape(tensor.shape)


def _half(name: str, tensor: Tensor) -> Tensor:
    half = tensor.half()
    if bool((half.isinf() & tensor.isfinite()).any()):
        largest = float(tensor.abs().max())
        raise PrecisionError(
            f"{name} has a value of {largest:.3g}, which float16 can't hold; the others can"
        )
    return half
