"""Latency of another device: the kit that is timed there, and the times that come back."""

import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
from torch import Tensor, nn

from flexrel.core.batches import Batch
from flexrel.core.latency import Latency
from flexrel.errors import PackError, UsageError
from flexrel.io.onnx import check_installed
from flexrel.io.stopwatch import onnx_layer
from flexrel.io.timing import LayerPoint, of_samples, timed_file
from flexrel_edge.files import replace_file
from flexrel_edge.profile import INDEX, KIT, PROFILE

DENSE = "dense"  # name of the network as a whole, in kits and profiles


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """What `flexrel-edge profile` measured of a kit on a device.

    Attributes:
        path: of the file.
        machine: processor and cores.
        version: of onnxruntime there.
        threads: that a call used.
        batch: samples a call.
        network: fingerprint of the network that the kit was made of.
        networks: milliseconds of the whole network, "dense", and of its cuts, by their names.
        layers: milliseconds of layers, by the key of their widths.
    """

    path: str
    machine: str
    version: str
    threads: int
    batch: int
    network: str
    networks: Mapping[str, float]
    layers: Mapping[str, float]

    @staticmethod
    def load(path: str | Path) -> "DeviceProfile":
        """Return what a file holds.

        Raises:
            UsageError: there is no such file.
            PackError: it is no profile, or damaged.
        """
        if not Path(path).is_file():
            raise UsageError(f"{path}: no such latency profile; flexrel-edge profile writes one")
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
            _check_format(found)
            times = [_times(found[key]) for key in ("networks", "layers")]
            of = found["of"]
            numbers = int(of["threads"]), int(found["batch"])
            texts = str(of["machine"]), str(of["version"])
            profile = DeviceProfile(str(path), *texts, *numbers, str(found["network"]), *times)
            profile.networks[DENSE]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            told = f"{path}: is no latency profile, or it is damaged: {error}"
            raise PackError(told) from error
        return profile

    def check(self, budget: Latency, network: str) -> None:
        """Refuse to go by times of something else.

        Args:
            budget: that asks for them.
            network: fingerprint of the network that is pruned.

        Raises:
            UsageError: it is of another network, or of calls of another kind.
        """
        if self.network != network:
            raise UsageError(
                f"{self.path}: the latency profile is of another network (fingerprint "
                f"{self.network[:8]!r}, this one's is {network[:8]!r}); make a kit of this one"
            )
        for name in ("batch", "threads"):
            asked, has = getattr(budget, name), getattr(self, name)
            if asked != has:
                raise UsageError(
                    f"{self.path}: the latency profile is of {name}={has}, but the budget asks for "
                    f"{name}={asked}; ask for {has}, or profile anew"
                )

    def times(self, points: Iterable[LayerPoint]) -> dict[LayerPoint, float]:
        """Return the milliseconds of layers.

        Raises:
            UsageError: some were not in the kit.
        """
        wanted = {point: point.key(self.batch) for point in points}
        missing = sum(key not in self.layers for key in wanted.values())
        if missing:
            raise UsageError(
                f"{self.path}: the latency profile lacks {missing} of {len(wanted)} widths of "
                "layers; its kit was made of another input size, granularity or multiple of widths"
            )
        return {point: self.layers[key] for point, key in wanted.items()}


def _check_format(found: Mapping[str, Any]) -> None:
    if (found["format"], found["version"]) != PROFILE:
        raise ValueError(f"it is {found['format']} version {found['version']}")


def _times(found: Mapping[str, Any]) -> dict[str, float]:
    times = {str(key): float(value) for key, value in found.items()}
    if not all(0 < value < float("inf") for value in times.values()):
        raise ValueError("a time is no number above 0")
    return times


def write_kit(
    path: str | Path,
    networks: Mapping[str, nn.Module],
    points: Iterable[LayerPoint],
    example: Batch,
    budget: Latency,
    fingerprint: str,
) -> int:
    """Write what a device times, whole or not at all.

    Args:
        path: of the kit.
        networks: the dense one, and cuts of it, by name.
        points: layers at widths.
        example: a batch of inputs.
        budget: says how many samples a call has.
        fingerprint: of the dense network.

    Returns:
        How many layers and networks are in it.

    Raises:
        UsageError: the extra "export" is missing.
        ModelError: a network can't be exported.
    """
    check_installed()
    layers = {point.key(budget.batch): point for point in points}
    index = {
        "format": KIT[0],
        "version": KIT[1],
        "batch": budget.batch,
        "network": fingerprint,
        "networks": {name: f"networks/{at}.onnx" for at, name in enumerate(networks)},
        "layers": {key: f"layers/{at}.onnx" for at, key in enumerate(layers)},
    }
    given = of_samples(example, budget.batch)
    named = {str(at): tensor for at, tensor in enumerate(given.args)}  # by place, others by name
    named |= {name: value for name, value in given.kwargs.items() if isinstance(value, Tensor)}
    inputs = io.BytesIO()
    arrays: dict[str, Any] = {name: tensor.cpu().numpy() for name, tensor in named.items()}
    np.savez(inputs, **arrays)
    whole = io.BytesIO()
    with ZipFile(whole, "w", ZIP_DEFLATED) as archive:
        archive.writestr(INDEX, json.dumps(index))
        archive.writestr("inputs.npz", inputs.getvalue())
        for at, network in enumerate(networks.values()):
            archive.writestr(f"networks/{at}.onnx", timed_file(network, example, budget))
        for at, point in enumerate(layers.values()):
            archive.writestr(f"layers/{at}.onnx", onnx_layer(point.told(budget.batch)))
    replace_file(Path(path), whole.getvalue())
    return len(networks) + len(layers)
