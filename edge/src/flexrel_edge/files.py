"""Packed files on disk: read, write beside and rename, inspect."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from io import BufferedIOBase
from pathlib import Path

import numpy as np

from flexrel_edge.container import check_not_older, is_update
from flexrel_edge.difference import difference
from flexrel_edge.errors import PackError
from flexrel_edge.format import NO_METADATA, Contents, Packed, Reader, encode
from flexrel_edge.graph import lost
from flexrel_edge.records import PCODEC, Array, Bfloat16
from flexrel_edge.source import OnDisk
from flexrel_edge.trust import FilePath, Keys, read_keys, signature_of
from flexrel_edge.underway import clean, created, mode_of
from flexrel_edge.update import Update


def read(path: FilePath, trust: FilePath | None = None) -> dict[str, Array]:
    """Read all tensors of a packed file, verified.

    Args:
        path: of the file.
        trust: PEM file of public keys, one of which must have signed it; None: nobody need have.

    Returns:
        name -> array of the packed shape and dtype. bfloat16, which numpy lacks, comes as
        float32 of exactly the same values.

    Raises:
        PackError: the file is damaged or not trusted; the message begins with the path.
        OSError: the file can't be read.
    """
    with opened(path, trust) as file:
        return {name: widened(tensor) for name, tensor in file.tensors()}


def read_packed(path: FilePath, trust: FilePath | None = None) -> Packed:
    """Read all that a packed file holds, bfloat16 as bits; raises as `read` does."""
    with opened(path, trust) as file:
        return file.packed()


@contextmanager
def opened(path: FilePath, trust: FilePath | None = None) -> Iterator[Reader]:
    """Open a packed file whose tensors are decoded one at a time, as they are asked for.

    Args:
        path: of the file.
        trust: as for `read`.

    Yields:
        Its reader; checksum and index are verified. No more of the file is in memory than the
        tensor that is decoded.

    Raises:
        PackError: the file is damaged or not trusted; the message begins with the path.
        OSError: the file can't be read.
    """
    keys = _keys(trust)
    with Path(path).open("rb") as file, _named(os.fspath(path)):
        yield Reader(OnDisk(file), keys)


def inspect(path: FilePath, trust: FilePath | None = None) -> Contents:
    """Say what a packed file holds; its checksum is verified, no tensor is decoded.

    Args:
        path: of the file.
        trust: as for `read`.

    Returns:
        Version, lengths, checksum, metadata, and an entry per tensor.

    Raises:
        PackError: the file is damaged or not trusted; the message begins with the path.
        OSError: the file can't be read.
    """
    with opened(path, trust) as file:
        return file.contents


def write(
    path: FilePath,
    tensors: Mapping[str, Array | Bfloat16],
    *,
    metadata: Mapping[str, str] = NO_METADATA,
    codec: str = PCODEC,
) -> int:
    """Pack tensors into a file, whole or not at all: a failure leaves what was there.

    Args:
        path: of the file; replaced if it exists. A link is followed.
        tensors: as `encode` takes them.
        metadata: texts to keep with them.
        codec: as for `encode`.

    Returns:
        Length of the file in bytes.

    Raises:
        FlexrelError: something can't be packed; nothing was written.
        OSError: the file can't be written.
    """
    data = encode(tensors, metadata=metadata, codec=codec)
    replace_file(path, data)
    return len(data)


def diff(old: FilePath, new: FilePath, update: FilePath) -> int:
    """Write what makes one packed file of another: an update, or the new file if that is shorter.

    Warns of what the new file lacks of the old one: an ONNX graph, metadata of one's own.

    Args:
        old: packed file that devices have.
        new: packed file that they are to have.
        update: to write, whole or not at all.

    Returns:
        Length of the update in bytes.

    Raises:
        PackError: a file is damaged; the message begins with its path.
        OSError: a file can't be read or written.
    """
    with Path(old).open("rb") as before, Path(new).open("rb") as after:
        with _named(os.fspath(old)):
            base = Reader(OnDisk(before))
        with _named(os.fspath(new)):
            result = Reader(OnDisk(after))
        with _named(f"{os.fspath(old)} or {os.fspath(new)}"):
            data = difference(base, result)
        if len(data) >= result.contents.bytes:
            data = b"".join(result.pieces())
    replace_file(update, data)
    for note in lost(base.contents, result.contents):
        warnings.warn(f"{os.fspath(new)}: {note}", stacklevel=2)
    return len(data)


def patch(
    old: FilePath,
    update: FilePath,
    new: FilePath,
    *,
    trust: FilePath | None = None,
    allow_older: bool = False,
) -> int:
    """Write the packed file that an update makes of another; all three are verified.

    Args:
        old: packed file; left as it is, unless `new` is its path too.
        update: as `diff` writes it.
        new: to write, whole or not at all: a failure leaves what was there.
        trust: PEM file of public keys, one of which must have signed the new file.
        allow_older: whether its counter may be lower than the old one's. Without `trust`, or
            where no key of it signed the old file, no counter is compared.

    Returns:
        Length of the new file in bytes.

    Raises:
        PackError: a file is damaged or not trusted, or the update is for another or to an older
            one; the message begins with a path.
        OSError: a file can't be read or written.
    """
    keys = _keys(trust)
    with Path(old).open("rb") as before, Path(update).open("rb") as file:
        with _named(os.fspath(old)):
            base = Reader(OnDisk(before))
        with _named(os.fspath(update)):
            source = OnDisk(file)
            made = Update(source, keys) if is_update(source) else Reader(source, keys)
            signed = made.signed if isinstance(made, Update) else made.header.signed
            if not allow_older:
                check_not_older(keys, base.header, signed)
            pieces = made.pieces(base) if isinstance(made, Update) else made.pieces()
            with replacing(new) as out:
                return sum(out.write(piece) for piece in pieces)


def sign(path: FilePath, key: FilePath, counter: int | None = None) -> int:
    """Sign a packed file, whole or not at all; a signature that it had is replaced.

    Args:
        path: of the file; all of it is verified first.
        key: PEM file of an Ed25519 private key.
        counter: of versions: devices with the public key take none that is lower than what they
            have. None: the seconds since 1970.

    Returns:
        The counter.

    Raises:
        FlexrelError: the key or the counter is none.
        PackError: the file is damaged; the message begins with the path.
        OSError: a file can't be read or written.
    """
    counter = int(time.time()) if counter is None else counter
    with opened(path) as file:
        file.verify()
        signed = signature_of(file.contents.sha256, counter, key)
        with replacing(path) as out:
            for piece in file.resealed(signed):
                out.write(piece)
    return counter


def replace_file(path: FilePath, data: bytes) -> None:
    """Write beside the file, then rename over it, so that no reader ever sees a part of it."""
    with replacing(path) as file:
        file.write(data)


def replace_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files of a folder beside those that they replace; when all are on the disk, rename."""
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with ExitStack() as stack:
            for name, data in files.items():
                out = stack.enter_context(replacing(folder / name))
                out.write(data)
                out.flush()
                os.fsync(out.fileno())
    except BaseException:
        if made:
            with suppress(OSError):
                folder.rmdir()
        raise


@contextmanager
def replacing(path: FilePath, like: Path | None = None) -> Iterator[BufferedIOBase]:
    """Open a file beside that is renamed over this one when the block ends without an error.

    What somebody who was killed left there is removed first.

    Args:
        path: of the file that is replaced.
        like: whose permissions it gets; None: those of the file that it replaces. If there is no
            such file, as umask says.
    """
    target = Path(os.path.realpath(path))
    clean(target)
    beside, file = created(target, mode_of(target if like is None else like))
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if os.name != "posix":
                file.close()  # no open file can be renamed there; here it is locked until it was
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


def _keys(trust: FilePath | None) -> Keys | None:
    return None if trust is None else read_keys(trust)


@contextmanager
def _named(path: object) -> Iterator[None]:
    """Begin the message of a PackError with a path."""
    try:
        yield
    except PackError as error:
        raise PackError(f"{path}: {error}") from error
