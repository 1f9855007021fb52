"""What a packed file holds of one tensor: a frozen entry, which is validated when made."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, Final, Union

import numpy as np
from numpy.typing import NDArray

from flexrel_edge.errors import FlexrelError, PackError

Array = NDArray[Any]

RAW: Final = "raw"
PCODEC: Final = "pcodec-1"
ZSTD: Final = "zstd-1"
CODERS: Final = (PCODEC, ZSTD)  # what parts that are not raw are coded with
CODECS: Final = (RAW, *CODERS)

MAX_RANK: Final = 32  # numpy before version 2 has no more axes
MAX_DENSE: Final = 2**36  # bytes; of a whole file once unpacked

# dtype as the index names it -> how its bits lie in a part, little-endian
STORAGE: Final[Mapping[str, np.dtype[Any]]] = {
    "bfloat16": np.dtype("<u2"),
    "bool": np.dtype("u1"),
    "float16": np.dtype("<f2"),
    "float32": np.dtype("<f4"),
    "float64": np.dtype("<f8"),
    "int8": np.dtype("i1"),
    "int16": np.dtype("<i2"),
    "int32": np.dtype("<i4"),
    "int64": np.dtype("<i8"),
    "uint8": np.dtype("u1"),
    "uint16": np.dtype("<u2"),
    "uint32": np.dtype("<u4"),
    "uint64": np.dtype("<u8"),
}
FLOATING: Final = ("bfloat16", "float16", "float32", "float64")  # whole numbers can stand for them
WHOLE: Final = STORAGE["int8"]  # they
SCALES: Final = STORAGE["float32"]  # what they are multiplied by
GROUP: Final = STORAGE["uint8"]  # a bit for each element of a group

_repr = reprlib.Repr()
_repr.maxstring, _repr.maxlong, _repr.maxlist = 100, 24, MAX_RANK + 1


@dataclass(frozen=True, eq=False)
class Bfloat16:
    """A bfloat16 tensor, which numpy has no type for.

    Attributes:
        bits: uint16 of the tensor's shape: sign, 8 bits of exponent, 7 of mantissa, as in the
            upper half of the float32 of the same value.
    """

    bits: Array

    def __post_init__(self) -> None:
        if self.bits.dtype != np.uint16:
            raise FlexrelError(f"the bits of a Bfloat16 are uint16, found {self.bits.dtype}")


@dataclass(frozen=True)
class Blocks:
    """Zeros come by blocks of a matrix: the first axis by all others.

    Attributes:
        rows: of a block; they divide the first axis.
        columns: of a block; they divide the elements of a row.
        kept: blocks that are not all zero.
    """

    rows: int
    columns: int
    kept: int


@dataclass(frozen=True)
class Groups:
    """Which elements are kept is said by groups along an axis.

    Attributes:
        size: elements of a group, 2 to 8; it divides the axis.
        axis: counted from 0.
    """

    size: int
    axis: int


Pattern = Union[Blocks, Groups]


@dataclass(frozen=True)
class Entry:
    """What the index says of one tensor. A wrong entry can't be made.

    Attributes:
        name: not empty.
        dtype: a key of `STORAGE`.
        shape: of the tensor, row-major.
        kept: number of elements whose bit pattern is not zero.
        values_codec: one of `CODECS`.
        values_bytes: length of the part with the values: all of them, or the kept ones.
        positions_codec: one of `CODECS`; None for a dense tensor.
        positions_bytes: length of the part that says which elements are kept.
        scales_codec: one of `CODECS`; None where the values are as they are. Else they are int8,
            and what each stands for is it times the scale of its row.
        scales_bytes: length of the part with the scales, one an entry of the first axis.
        pattern: by what positions are said; None: by gaps between elements.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    kept: int
    values_codec: str
    values_bytes: int
    positions_codec: str | None = None
    positions_bytes: int = 0
    scales_codec: str | None = None
    scales_bytes: int = 0
    pattern: Pattern | None = None

    @cached_property
    def total(self) -> int:
        """Number of elements, kept or not."""
        return prod(self.shape)

    @property
    def kind(self) -> str:
        """Say "dense" (all values are stored), or "sparse" (positions and kept values) and how."""
        if self.positions_codec is None:
            return "dense"
        if isinstance(self.pattern, Blocks):
            return f"sparse block:{self.pattern.rows}x{self.pattern.columns}"
        return "sparse" if self.pattern is None else f"sparse groups of {self.pattern.size}"

    @property
    def lengths(self) -> tuple[tuple[str | None, int], ...]:
        """Codec and bytes of values, positions and scales; None where there is no such part."""
        return (
            (self.values_codec, self.values_bytes),
            (self.positions_codec, self.positions_bytes),
            (self.scales_codec, self.scales_bytes),
        )

    @property
    def bytes(self) -> int:
        """Length of all parts."""
        return sum(size for _, size in self.lengths)

    @property
    def storage(self) -> np.dtype[Any]:
        """How the tensor's elements lie in memory."""
        return STORAGE[self.dtype]

    @property
    def values_dtype(self) -> np.dtype[Any]:
        """How the values lie in their part: as in memory, or as whole numbers."""
        return self.storage if self.scales_codec is None else WHOLE

    @property
    def stored(self) -> int:
        """Number of values in their part: all, those kept, or those of kept blocks."""
        if self.positions_codec is None:
            return self.total
        if isinstance(self.pattern, Blocks):
            return self.pattern.kept * self.pattern.rows * self.pattern.columns
        return self.kept

    @property
    def positions(self) -> tuple[int, np.dtype[Any]]:
        """How many numbers say which elements are kept, and of what dtype."""
        if isinstance(self.pattern, Groups):
            return self.total // self.pattern.size, GROUP
        kept = self.kept if self.pattern is None else self.pattern.kept
        return kept, gap_dtype(self.total)

    @property
    def rows(self) -> int:
        """Length of the first axis; 1 for a scalar."""
        return self.shape[0] if self.shape else 1

    @property
    def columns(self) -> int:
        """Elements in each row."""
        return prod(self.shape[1:])

    @property
    def dense_bytes(self) -> int:
        """What an array of this shape takes, in bytes; an empty axis is counted as one."""
        return prod(max(axis, 1) for axis in self.shape) * STORAGE[self.dtype].itemsize

    def __post_init__(self) -> None:
        if not (self.name and is_text(self.name)):
            raise PackError(f"tensor name {show(self.name)} is not a non-empty text")
        try:
            self._check()
        except PackError as error:
            raise PackError(f"tensor {show(self.name)} {error}") from None

    def _check(self) -> None:
        if self.dtype not in STORAGE:
            raise PackError(f"has dtype {show(self.dtype)}, unknown to version 1")
        if len(self.shape) > MAX_RANK or not all(0 <= axis <= MAX_DENSE for axis in self.shape):
            raise PackError(
                f"has shape {show(list(self.shape))}; "
                f"it may have {MAX_RANK} axes of 0 to {MAX_DENSE} elements"
            )
        if self.dense_bytes > MAX_DENSE:
            raise PackError(
                f"has shape {show(list(self.shape))}, {show(self.dense_bytes)} bytes "
                f"unpacked; version 1 allows {MAX_DENSE}"
            )
        total = self.total
        if not 0 <= self.kept <= total:
            raise PackError(f"keeps {show(self.kept)} of {total} elements")
        self._check_scales()
        if self.pattern is not None:
            self._check_pattern(self.pattern)
        check_part("values", self.values_codec, self.values_bytes, self.stored, self.values_dtype)
        if self.positions_codec is not None:
            if self.kept == total:
                raise PackError("is sparse, but has no zero")
            check_part("positions", self.positions_codec, self.positions_bytes, *self.positions)
        elif self.positions_bytes:
            raise PackError(f"has {self.positions_bytes} bytes of positions in no codec")

    def _check_pattern(self, pattern: Pattern) -> None:
        if isinstance(pattern, Groups):
            size, axis = pattern.size, pattern.axis
            fits = 1 < size <= 8 * GROUP.itemsize and 0 <= axis < len(self.shape)
            fits = fits and self.shape[axis] % size == 0
        else:
            rows, columns, kept = pattern.rows, pattern.columns, pattern.kept
            fits = rows > 0 and columns > 0 and rows * columns > 1 and bool(self.shape)
            fits = fits and self.rows % rows == 0 and self.columns % columns == 0
            fits = fits and 0 <= kept < self.total // (rows * columns)
            fits = fits and kept <= self.kept <= kept * rows * columns
        if not fits or not self.total or self.positions_codec is None:
            raise PackError(
                f"keeps {self.kept} of shape {show(list(self.shape))} by {show(pattern)}, "
                "which does not fit"
            )

    def _check_scales(self) -> None:
        if self.scales_codec is None:
            return
        if self.dtype not in FLOATING or not self.shape or not self.total:
            raise PackError(
                f"has scales, but is {self.dtype} of shape {show(list(self.shape))}; "
                f"they are for {', '.join(FLOATING)} that have rows"
            )
        check_part("scales", self.scales_codec, self.scales_bytes, self.rows, SCALES)


def check_part(what: str, codec: str, size: int, count: int, dtype: np.dtype[Any]) -> None:
    """Refuse a part whose codec is unknown, or whose length can't be that of so many elements."""
    if codec not in CODECS:
        raise PackError(
            f"has its {what} in codec {show(codec)}; version 1 knows {', '.join(CODECS)}"
        )
    raw = count * dtype.itemsize
    fits = size == raw if codec == RAW else 0 < size < raw
    if not fits:
        raise PackError(
            f"has {show(size)} bytes of {codec} {what} for {count} elements of "
            f"{dtype.itemsize} bytes; raw takes exactly {raw}, a codec fewer"
        )


def gap_dtype(total: int) -> np.dtype[Any]:
    """Width of the gaps in a tensor of `total` elements: 32 bits where they suffice, else 64."""
    return np.dtype("<u4" if total <= 2**32 else "<u8")


def show(value: object) -> str:
    """Quote what a file says, in one line and not at length, for an error message."""
    return _repr.repr(value)


def is_text(value: object) -> bool:
    """Whether it is text that UTF-8 can carry: no lone surrogates."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
