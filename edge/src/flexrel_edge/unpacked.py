"""Unpacked tensors as an ordinary safetensors file, for other programs."""

import json
from typing import Final

from flexrel_edge.errors import FlexrelError
from flexrel_edge.records import Array, Bfloat16, Packed

_DTYPES: Final = {
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


def to_safetensors(packed: Packed) -> bytes:
    """Write all tensors dense, and the metadata, in the safetensors format.

    Args:
        packed: as `decode` gives it.

    Returns:
        The bytes of the file, wide dtypes first so that all tensors lie aligned.

    Raises:
        FlexrelError: a tensor has the one name that safetensors keeps for itself.
    """
    if "__metadata__" in packed.tensors:
        raise FlexrelError("safetensors can't hold a tensor named '__metadata__'; rename it first")
    header: dict[str, object] = {"__metadata__": packed.metadata} if packed.metadata else {}
    parts: list[bytes] = []
    at = 0
    arrays = [(name, *_plain(tensor)) for name, tensor in packed.tensors.items()]
    for name, dtype, array in sorted(arrays, key=lambda item: (-item[2].itemsize, item[0])):
        header[name] = {
            "dtype": dtype,
            "shape": array.shape,
            "data_offsets": [at, at + array.nbytes],
        }
        parts.append(array.tobytes())
        at += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


def _plain(tensor: Array | Bfloat16) -> tuple[str, Array]:
    if isinstance(tensor, Bfloat16):
        return "BF16", tensor.bits
    return _DTYPES[tensor.dtype.name], tensor
