"""Unpacked tensors as an ordinary safetensors file, for other programs."""

from __future__ import annotations

import json
from io import BufferedIOBase
from typing import Final

from flexrel_edge.errors import FlexrelError
from flexrel_edge.format import Reader, Tensor
from flexrel_edge.records import Bfloat16

_DTYPES: Final = {
    "bfloat16": "BF16",
    "bool": "BOOL",
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "uint8": "U8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
}


def write_safetensors(packed: Reader, out: BufferedIOBase) -> int:
    """Write all tensors dense, and the metadata, in the safetensors format, one after the other.

    Args:
        packed: that is read.
        out: written to, from where it stands; wide dtypes come first so that all tensors lie
            aligned.

    Returns:
        How many bytes were written.

    Raises:
        FlexrelError: a tensor has the one name that safetensors keeps for itself; nothing was
            written.
        PackError: a tensor is damaged.
    """
    entries = sorted(packed.contents.tensors, key=lambda e: (-e.storage.itemsize, e.name))
    metadata = packed.contents.metadata
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    at = 0
    for entry in entries:
        if entry.name == "__metadata__":
            raise FlexrelError(
                "safetensors can't hold a tensor named '__metadata__'; rename it first"
            )
        end = at + entry.total * entry.storage.itemsize
        header[entry.name] = {
            "dtype": _DTYPES[entry.dtype],
            "shape": entry.shape,
            "data_offsets": [at, end],
        }
        at = end
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)
    out.write(len(text).to_bytes(8, "little") + text)
    for entry in entries:
        out.write(_bytes_of(packed.tensor(entry)))
    return 8 + len(text) + at


def _bytes_of(tensor: Tensor) -> memoryview:
    return (tensor.bits if isinstance(tensor, Bfloat16) else tensor).data
