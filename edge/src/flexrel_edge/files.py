"""Packed files on disk: read, write beside and rename, inspect."""

import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np

from flexrel_edge.errors import PackError
from flexrel_edge.format import NO_METADATA, decode, describe, encode
from flexrel_edge.records import Array, Bfloat16, Contents, Packed

FilePath = str | os.PathLike[str]
Result = TypeVar("Result")


def read(path: FilePath) -> dict[str, Array]:
    """Read all tensors of a packed file, verified.

    Args:
        path: of the file.

    Returns:
        name -> array of the packed shape and dtype. bfloat16, which numpy lacks, comes as
        float32 of exactly the same values.

    Raises:
        PackError: the file is damaged or not trusted; the message begins with the path.
        OSError: the file can't be read.
    """
    return {name: widened(tensor) for name, tensor in read_packed(path).tensors.items()}


def read_packed(path: FilePath) -> Packed:
    """Read all that a packed file holds, bfloat16 as bits; raises as `read` does."""
    return _from_file(path, decode)


def inspect(path: FilePath) -> Contents:
    """Say what a packed file holds; its checksum is verified, no tensor is decoded.

    Args:
        path: of the file.

    Returns:
        Version, lengths, checksum, metadata, and an entry per tensor.

    Raises:
        PackError: the file is damaged or not trusted; the message begins with the path.
        OSError: the file can't be read.
    """
    return _from_file(path, describe)


def write(
    path: FilePath,
    tensors: Mapping[str, Array | Bfloat16],
    *,
    metadata: Mapping[str, str] = NO_METADATA,
) -> int:
    """Pack tensors into a file, whole or not at all: a failure leaves what was there.

    Args:
        path: of the file; replaced if it exists. A link is followed.
        tensors: as `encode` takes them.
        metadata: texts to keep with them.

    Returns:
        Length of the file in bytes.

    Raises:
        FlexrelError: something can't be packed; nothing was written.
        OSError: the file can't be written.
    """
    data = encode(tensors, metadata=metadata)
    replace_file(path, data)
    return len(data)


def replace_file(path: FilePath, data: bytes) -> None:
    """Write beside the file, then rename over it, so that no reader ever sees a part of it."""
    target = Path(os.path.realpath(path))
    beside = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with beside.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(target)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def widened(tensor: Array | Bfloat16) -> Array:
    """Give a numpy array: a bfloat16 tensor as float32 of the same values, others as they are."""
    if not isinstance(tensor, Bfloat16):
        return tensor
    bits = tensor.bits.reshape(-1).astype(np.uint32) << 16
    return bits.view(np.float32).reshape(tensor.bits.shape)


def _from_file(path: FilePath, parse: Callable[[bytes], Result]) -> Result:
    data = Path(path).read_bytes()
    try:
        return parse(data)
    except PackError as error:
        raise PackError(f"{os.fspath(path)}: {error}") from error
