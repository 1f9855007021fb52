"""One run of elements to bytes and back, by pcodec or by zstd."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any, Final

import numpy as np

from flexrel_edge.errors import FlexrelError, PackError
from flexrel_edge.records import PCODEC, ZSTD, Array

try:
    from pcodec import ChunkConfig, PagingSpec, wrapped
except ImportError:  # there is no wheel of it for every device
    wrapped = None

RUN: Final = 2**18  # elements that are coded as one
_LEVEL: Final = 19  # of zstd
_WINDOW: Final = 22  # log2 of bytes: no run is longer
_REFUSALS: Final = (RuntimeError, TypeError, ValueError)  # of pcodec
_PANIC: Final = "PanicException"


def encode_run(values: Array, codec: str) -> bytes:
    """Code at most `RUN` elements.

    Raises:
        FlexrelError: the codec is not installed.
    """
    if codec == ZSTD:
        planes = values.view(np.uint8).reshape(len(values), values.itemsize).T
        coded: bytes = _zstd().compress(np.ascontiguousarray(planes).tobytes(), level=_LEVEL)
        return coded
    _check_pcodec()
    file = wrapped.FileCompressor()
    config = ChunkConfig(paging_spec=PagingSpec.equal_pages_up_to(RUN), enable_8_bit=True)
    chunk = file.chunk_compressor(values, config)
    return b"".join([file.write_header(), chunk.write_meta(), chunk.write_page(0)])


def decode_run_into(values: Array, run: bytes, codec: str) -> None:
    """Fill an array with the elements of a run.

    Raises:
        PackError: the run does not hold them.
        FlexrelError: the codec is not installed.
    """
    if codec == ZSTD:
        _decode_zstd_into(values, run)
    else:
        _decode_pcodec_into(values, run)


def _decode_zstd_into(values: Array, run: bytes) -> None:
    zstd = _zstd()
    window = {zstd.DecompressionParameter.window_log_max: _WINDOW}
    decompressor = zstd.ZstdDecompressor(options=window)
    try:
        data = decompressor.decompress(run, max_length=values.nbytes + 1)
    except zstd.ZstdError as error:
        raise PackError(f"{ZSTD} does not decode: {' '.join(str(error).split())}") from error
    if len(data) != values.nbytes or not decompressor.eof or decompressor.unused_data:
        raise PackError(f"{ZSTD} does not hold {len(values)} elements and nothing else")
    planes = np.frombuffer(data, np.uint8).reshape(values.itemsize, len(values))
    values.view(np.uint8).reshape(len(values), values.itemsize)[:] = planes.T


def _decode_pcodec_into(values: Array, run: bytes) -> None:
    _check_pcodec()
    number_type = f"{values.dtype.kind}{8 * values.itemsize}"
    try:
        file, header = wrapped.FileDecompressor.new(run)
        chunk, meta = file.chunk_decompressor(run[header:], number_type)
        progress, page = chunk.read_page_into(run[header + meta :], len(values), values)
    except BaseException as error:  # a panic of its Rust is no Exception, and has no public type
        if not isinstance(error, _REFUSALS) and type(error).__name__ != _PANIC:
            raise
        reason = " ".join(str(error).split())
        raise PackError(f"{PCODEC} does not decode: {reason}") from error
    if progress.n_processed != len(values) or not progress.finished:
        raise PackError(f"{PCODEC} holds {progress.n_processed} of {len(values)} elements")
    if header + meta + page != len(run):
        raise PackError(f"{PCODEC} ends after {header + meta + page} of {len(run)} bytes")


def _check_pcodec() -> None:
    if wrapped is None:
        raise FlexrelError(
            "this takes pcodec, which is not installed: pip install pcodec, or pack with "
            f"codec={ZSTD!r} for devices that it has no wheel for"
        )


def _zstd() -> Any:  # noqa: ANN401 - a module of Python 3.14, or of a package in its place
    name = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    try:
        return import_module(name)
    except ImportError as error:
        raise FlexrelError(f"codec {ZSTD!r} takes: pip install 'flexrel-edge[zstd]'") from error
