"""Small pictures as PNG, without a library for images."""

import struct
import zlib
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_KINDS: Final = {1: 0, 3: 2}  # channels: PNG's name of grey and of colour
_SIDE: Final = 48  # pixels, at most
_BITS: Final = 8
_WHITE: Final = 255


def png_of(image: Float[Tensor, "channels height width"]) -> bytes:
    """Return an image as PNG, at most 48 pixels a side, from its least value to its largest.

    Args:
        image: of 1 channel or 3, scaled in whatever way.
    """
    values = image.detach().float().cpu()
    longer = max(values.shape[1:])
    if longer > _SIDE:
        high, wide = (max(1, side * _SIDE // longer) for side in values.shape[1:])
        values = functional.adaptive_avg_pool2d(values, (high, wide))
    least, most = values.min(), values.max()
    shares = (values - least) / (most - least).clamp_min(torch.finfo(torch.float32).tiny)
    pixels = (shares * _WHITE).round().to(torch.uint8).movedim(0, -1)
    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.numpy().tobytes() for row in pixels.contiguous())  # 0: as it is
    head = struct.pack(">IIBBBBB", width, height, _BITS, _KINDS[channels], 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    return _SIGNATURE + b"".join(_chunk(*part) for part in parts)


def _chunk(name: bytes, content: bytes) -> bytes:
    checked = name + content
    return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))
