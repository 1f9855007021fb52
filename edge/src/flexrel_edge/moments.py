"""What the layers of a network in use take in: means and mean squares by channel, in a small file.

The file is a packed file: of one tensor a layer, `[2, channels]`, the means and the mean squares.
So it has a checksum, can be signed, and is read and verified as any other.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from flexrel_edge.errors import PackError
from flexrel_edge.files import widened
from flexrel_edge.format import Reader, encode
from flexrel_edge.records import Array, show

MEAN: Final = "|mean"  # endings of the outputs that tell them
SQUARE: Final = "|square"
OBSERVED: Final = "observed"  # key of the metadata
_VERSION: Final = 1
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_DEVICE: Final = re.compile(r"[0-9a-f]{16}")
_WHOLE: Final = 2**63  # numbers are below


@dataclass(frozen=True, eq=False)
class Moments:
    """What the layers of a network take in, in the mean over requests.

    Attributes:
        network: SHA-256 of the content of the packed file that answered.
        device: 16 hexadecimal digits, drawn when it first observed something; empty: of several.
        counter: how often the device has written its file; it never goes back.
        requests: that the device has answered while it was to observe; it never goes back.
        samples: that the means are over; a float, as old ones count less.
        layers: name -> float32 `[2, channels]`: means, and means of squares.
        fleet: of several devices: device -> its counter and requests.
    """

    network: str
    device: str
    counter: int
    requests: int
    samples: float
    layers: Mapping[str, Array]
    fleet: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (_SHA256.fullmatch(self.network) and _DEVICE.fullmatch(self.device or "0" * 16)):
            raise PackError(f"{show(self.network)} or {show(self.device)} is no name in moments")
        counts = (self.counter, self.requests), *self.fleet.values()
        if not all(type(n) is int and 0 <= n < _WHOLE for pair in counts for n in pair):
            raise PackError(f"{show(counts)} are no counts in moments")
        if not all(_DEVICE.fullmatch(name) for name in self.fleet) or bool(self.fleet) == bool(
            self.device
        ):
            raise PackError("moments are of one device or of a fleet of them, each with its name")
        if type(self.samples) is not float or not 0 < self.samples < math.inf:
            raise PackError(f"moments of {show(self.samples)} samples; above 0 can be")
        if not self.layers:
            raise PackError("moments of no layer")
        for name, both in self.layers.items():
            if both.dtype != np.float32 or both.ndim != 2 or both.shape[0] != 2:  # noqa: PLR2004
                raise PackError(
                    f"moments of layer {show(name)} are {both.dtype} {list(both.shape)}; they are "
                    "float32 [2, channels]"
                )
            if not np.isfinite(both).all():
                raise PackError(f"moments of layer {show(name)} have a NaN or an infinity")
            if (both[1] < 0).any():
                raise PackError(f"moments of layer {show(name)} have a square below 0")

    @property
    def devices(self) -> Mapping[str, tuple[int, int]]:
        """Each device's counter and requests."""
        return self.fleet or {self.device: (self.counter, self.requests)}

    def encode(self) -> bytes:
        """Return the file's bytes, not signed."""
        about = {
            "version": _VERSION,
            "network": self.network,
            "device": self.device,
            "counter": self.counter,
            "requests": self.requests,
            "samples": self.samples,
            "fleet": self.fleet,
        }
        layers = {name: np.asarray(both) for name, both in self.layers.items()}
        return encode(layers, metadata={OBSERVED: json.dumps(about)})


def moments_in(reader: Reader) -> Moments:
    """Return what a file of moments holds.

    Raises:
        PackError: it holds something else, or its counter is not the one that was signed.
    """
    text = reader.contents.metadata.get(OBSERVED)
    if text is None:
        raise PackError("is a packed file, but holds no moments; flexrel-edge observe writes some")
    try:
        found = _parsed(json.loads(text), reader)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise PackError(f"what it says of its moments is damaged: {error}") from error
    signed = reader.contents.counter
    if signed not in (None, found.counter):
        raise PackError(f"was signed with counter {signed}, but says {found.counter} of its own")
    return found


def _parsed(about: dict[str, Any], reader: Reader) -> Moments:
    version = about.pop("version")
    if version != _VERSION:
        raise PackError(f"has moments of version {show(version)}, this reader knows {_VERSION}")
    if not all(isinstance(about[key], str) for key in ("network", "device")):
        raise TypeError("its network and device are no texts")
    fleet = {str(name): (one, two) for name, (one, two) in about.pop("fleet").items()}
    layers = {name: widened(tensor) for name, tensor in reader.tensors()}
    return Moments(**about, layers=layers, fleet=fleet)


def told(outputs: Mapping[str, Array]) -> dict[str, Array]:
    """Return what the outputs of an observing network tell, float64 `[2, channels]` by layer."""
    names = [name[: -len(MEAN)] for name in outputs if name.endswith(MEAN)]
    return {
        name: np.stack([outputs[name + MEAN], outputs[name + SQUARE]]).astype(np.float64)
        for name in names
    }


def added(
    old: Mapping[str, Array], weight: float, new: Mapping[str, Array], more: float
) -> dict[str, Array]:
    """Return the means of both, each by how many samples it counts.

    Args:
        old: by layer; empty: none.
        weight: samples of these.
        new: of the same layers.
        more: samples of these.
    """
    share = more / (weight + more)
    if not old:
        return dict(new)
    return {name: old[name] + share * (both - old[name]) for name, both in new.items()}
