"""Values on a grid: whole numbers times a scale for each row. Found, not told, and exact.

A network whose weights were rounded to 8 or 4 bits holds them as floats: in each row, which is what
makes one output, whole multiples of one step. Then a byte a value and a scale a row say the same.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from flexrel_edge.records import STORAGE, Array

LARGEST: Final = 127  # of a whole number; -128 is not used
MAX_SCALE: Final = 2.0**120  # times 127 it is a float32 still
_BLOCK: Final = 2**20  # elements that are looked at together
_FRACTION: Final = 23  # bits of a float32
_NO_NUMBER: Final = 0xFF  # exponent of NaN and infinities
_LEAST: Final = -149  # exponent of the smallest float32 above 0
_MAX_SHIFT: Final = 6  # 127 has 7 bits
_LOWER: Final = 16  # bits of a float32 that a bfloat16 has not
_BELOW_HALF: Final = 0x7FFF  # of them


def on_grid(values: Array, dtype: str = "float32") -> tuple[Array, Array] | None:
    """Split rows into whole numbers and scales.

    Args:
        values: `[rows, columns]`, as `STORAGE` has the dtype.
        dtype: one of `FLOATING`.

    Returns:
        `[rows, columns]`, int8 in -127 ... 127, and `[rows]`, float32 above 0, whose products are
        the values, bit for bit; None if some row has no such scale.
    """
    rows, columns = values.shape
    whole = np.empty(values.shape, np.int8)
    scales = np.empty(rows, np.float32)
    step = max(_BLOCK // max(columns, 1), 1)
    starts = [0, *range(1, rows, step)]  # most tensors are on no grid: the first row tells
    for at, end in zip(starts, [*starts[1:], rows]):
        wide = _widened(values[at:end], dtype)
        found = None if wide is None else _on_grid(wide)
        if found is None:
            return None
        whole[at:end], scales[at:end] = found
    return whole, scales


def scaled(whole: Array, scales: Array, dtype: str = "float32") -> Array:
    """Return products as `STORAGE` has the dtype: int8 by float32 of a shape that broadcasts.

    Each is rounded to the nearest float32, and that to the nearest of the dtype, of two the even.
    """
    products: Array = np.multiply(whole, scales, dtype=np.float32)
    if dtype == "bfloat16":
        bits = products.view(np.uint32)
        return ((bits + _BELOW_HALF + (bits >> _LOWER & 1)) >> _LOWER).astype(np.uint16)
    with np.errstate(over="ignore"):
        return products.astype(STORAGE[dtype], copy=False)


def _widened(values: Array, dtype: str) -> Array | None:
    """Return the same values as float32; None if one is none."""
    if dtype == "bfloat16":
        return (values.astype(np.uint32) << _LOWER).view(np.float32)
    with np.errstate(over="ignore"):
        wide = values.astype(np.float32, copy=False)
    same = wide.itemsize >= values.itemsize or np.array_equal(wide, values)
    return wide if same else None


def _on_grid(values: Array) -> tuple[Array, Array] | None:
    bits = values.view(np.uint32)
    exponents = (bits >> _FRACTION & _NO_NUMBER).astype(np.int32)
    fractions = (bits & (1 << _FRACTION) - 1).astype(np.int32)
    negative = bits >> 31 != 0
    zero = bits << 1 == 0
    if (exponents == _NO_NUMBER).any() or (negative & zero).any():
        return None
    fractions |= (exponents > 0).astype(np.int32) << _FRACTION
    exponents = np.maximum(exponents, 1) - 1 + _LEAST  # value = fraction * 2**exponent
    lowest = np.where(zero, 1, fractions & -fractions)
    trailing = np.log2(lowest.astype(np.float32)).astype(np.int32)
    exponents += trailing
    unset = np.iinfo(np.int32).max
    least = np.where(zero, unset, exponents).min(1, initial=unset)
    shifts = np.where(zero, 0, exponents - least[:, None])
    if shifts.max(initial=0) > _MAX_SHIFT:
        return None
    units = (fractions >> trailing) << shifts
    common = np.maximum(np.gcd.reduce(units, axis=1), 1)
    units //= common[:, None]
    if units.max(initial=0) > LARGEST:
        return None
    scales = np.ldexp(common.astype(np.float32), np.where(least == unset, 0, least))
    if scales.max(initial=0) > MAX_SCALE:
        return None
    return np.where(negative, -units, units).astype(np.int8), scales
