"""Who made a file: Ed25519 keys that sign packed files, and that devices check them by."""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Union

from flexrel_edge.container import Signed, signed_text
from flexrel_edge.errors import FlexrelError

FilePath = Union[str, "os.PathLike[str]"]
_PUBLIC: Final = re.compile(b"-----BEGIN PUBLIC KEY-----.+?-----END PUBLIC KEY-----", re.DOTALL)
_LARGEST: Final = 2**20  # bytes of a file of keys


class Keys:
    """Public keys; a file is trusted if one of them signed it.

    Args:
        keys: Ed25519 public keys of `cryptography`, at least one.
    """

    def __init__(self, keys: tuple[Any, ...]) -> None:
        self._keys = keys

    def check(self, message: bytes, signature: bytes) -> bool:
        """Whether the signature of the message is by one of them."""
        return any(_is_by(key, message, signature) for key in self._keys)


def read_keys(path: FilePath) -> Keys:
    """Read the public keys in a PEM file: one, or several, one after the other.

    Raises:
        FlexrelError: there is none, or one is not Ed25519; or the extra `trust` is missing.
        OSError: the file can't be read.
    """
    _check_extra()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import load_pem_public_key  # noqa: PLC0415

    keys = []
    for block in _PUBLIC.findall(_content(path)):
        try:
            key = load_pem_public_key(block)
        except ValueError as error:
            raise FlexrelError(f"{os.fspath(path)}: a public key in it is damaged") from error
        if not isinstance(key, Ed25519PublicKey):
            raise FlexrelError(f"{os.fspath(path)}: holds a key that is not Ed25519")
        keys.append(key)
    if not keys:
        raise FlexrelError(
            f"{os.fspath(path)}: holds no public key in PEM; `keygen` writes one as NAME.pub"
        )
    return Keys(tuple(keys))


def signature_of(sha256: str, counter: int, key: FilePath) -> Signed:
    """Sign a packed file's checksum.

    Args:
        sha256: of its content, hexadecimal.
        counter: of versions.
        key: PEM file of an Ed25519 private key, not encrypted.

    Raises:
        FlexrelError: it holds none, the counter is out of range, or the extra `trust` is missing.
        OSError: the file can't be read.
    """
    if not 0 <= counter < 10**19:
        raise FlexrelError(f"a counter of versions is 0 to 10^19 - 1, not {counter}")
    signature = _private_key(key).sign(signed_text(sha256, counter))
    return Signed(counter, signature.hex())


def write_keys(private: FilePath, public: FilePath) -> None:
    """Make a new pair of keys; never over files that are there.

    Args:
        private: to write, readable by its owner alone; it signs.
        public: to write; it goes to devices.

    Raises:
        FlexrelError: the extra `trust` is missing.
        OSError: a file is there, or can't be written.
    """
    _check_extra()
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415

    key = Ed25519PrivateKey.generate()
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    shown = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    for path, mode, data in ((private, 0o600, secret), (public, 0o644, shown)):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(handle, "wb") as file:
            file.write(data)


def _check_extra() -> None:
    if find_spec("cryptography") is None:
        raise FlexrelError("signatures need cryptography: pip install 'flexrel-edge[trust]'")


def _is_by(key: Any, message: bytes, signature: bytes) -> bool:  # noqa: ANN401 - as below
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415

    try:
        key.verify(signature, message)
    except InvalidSignature:
        return False
    return True


def _private_key(path: FilePath) -> Any:  # noqa: ANN401 - its library is an extra
    _check_extra()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

    try:
        key = load_pem_private_key(_content(path), password=None)
    except (ValueError, TypeError) as error:
        raise FlexrelError(
            f"{os.fspath(path)}: holds no private key in PEM without a password"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise FlexrelError(f"{os.fspath(path)}: holds a private key that is not Ed25519")
    return key


def _content(path: FilePath) -> bytes:
    with Path(path).open("rb") as file:
        return file.read(_LARGEST)
