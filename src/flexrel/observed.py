"""What devices without torch observe: moments of a fleet, and calibration data that are like it.

A device runs no backward pass, so it can't tell relevance. It tells what the layers of its network
take in on average (`flexrel-edge observe`). The same network on the server tells that of every
calibration sample. Weighed so that their averages are the fleet's, the calibration samples stand
for its requests: relevance, saliency and repair are then measured on these.
"""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import numpy as np
import torch
from torch import Tensor, nn

from flexrel.core.balancing import BalancedWeights, balanced
from flexrel.core.batches import Batch, RawBatches, collect, read_batches, samples_in
from flexrel.core.division import joined
from flexrel.errors import FlexrelError, PackError, UsageError
from flexrel.relevance import MOST_SAMPLES
from flexrel_edge.files import inspect
from flexrel_edge.format import Reader
from flexrel_edge.graph import graph_in
from flexrel_edge.moments import Moments, added, moments_in, told
from flexrel_edge.observe import read_moments
from flexrel_edge.remote import read_all
from flexrel_edge.session import run, session
from flexrel_edge.source import InMemory
from flexrel_edge.trust import read_keys

__all__ = ["MergedMoments", "Moments", "WeighedData", "merge_moments", "read_moments", "weighed"]

_HELD: Final = 0.95  # of all weight: the samples that hold it are kept
_UNLIKE: Final = 0.3  # of the distance: more than that is left where nothing is like the requests
_BATCH: Final = 64  # samples


@dataclass(frozen=True, slots=True)
class MergedMoments:
    """The mean of a fleet's moments.

    Attributes:
        moments: so many samples of a device, so much it counts.
        used: the files that were taken.
        dropped: those that were not, and why.
    """

    moments: Moments
    used: tuple[str, ...]
    dropped: tuple[tuple[str, str], ...]


def merge_moments(
    files: Sequence[str | Path],
    most_samples: float = MOST_SAMPLES,
    *,
    trust: str | Path | None = None,
    since: str | Path | None = None,
) -> MergedMoments:
    """Return the mean of what `flexrel-edge observe` wrote on several devices.

    Dropped are files that are damaged, hold a NaN or are not trusted, that count more than
    `most_samples`, those of another network or version of it than most are of (of as many, than the
    first), all but the last of a device, and those of a device whose counts went back: it was put
    back to an old state, or there are two of that name.

    Args:
        files: paths, or URLs as http(s) and fsspec have them.
        most_samples: that one may count.
        trust: PEM file of public keys, one of which must have signed each file; None: nobody need
            have.
        since: file that the last merge wrote: counts may not have gone back since then.

    Raises:
        UsageError: there is no file, or one named does not exist.
        PackError: none can be used; says why.
    """
    if not files:
        raise UsageError("there are no files of moments to merge; name at least one")
    keys = None if trust is None else read_keys(trust)
    latest = {} if since is None else read_moments(since).devices
    read: dict[str, Moments] = {}
    dropped: list[tuple[str, str]] = []
    seen: dict[bytes, str] = {}  # content -> the first file that has it
    for name in map(str, files):
        data = _content(name)
        try:
            if data in seen:
                raise UsageError(f"is the same as {seen[data]}")
            seen[data] = name
            read[name] = _checked(moments_in(Reader(InMemory(data), keys)), most_samples, latest)
        except FlexrelError as error:
            dropped.append((name, str(error)))
    for unfit in (_strangers, _conflicting):
        found = unfit(read)
        dropped += found.items()
        read = {name: one for name, one in read.items() if name not in found}
    if not read:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in dropped)
        raise PackError(f"no file of moments can be used: {reasons}")
    return MergedMoments(_mean(list(read.values())), tuple(read), tuple(dropped))


def _content(name: str) -> bytes:
    if len(urlsplit(name).scheme) > 1:
        return read_all(name)
    if not Path(name).is_file():
        raise UsageError(f"{name}: no such file of moments")
    return Path(name).read_bytes()


_Counts = tuple[int, int]  # of times written, and of requests


def _checked(found: Moments, most: float, latest: Mapping[str, _Counts]) -> Moments:
    if found.samples > most:
        raise UsageError(f"counts {found.samples:,.10g} samples; up to {most:,.10g} can be")
    for device, now in found.devices.items():
        then = latest.get(device, now)
        if now[0] < then[0] or now[1] < then[1]:
            raise UsageError(_went_back(device, then, now))
    return found


def _strangers(read: Mapping[str, Moments]) -> dict[str, str]:
    """Return the files that are of another network than most are, and why they are taken for it."""
    kinds = {
        name: (one.network, tuple((layer, len(both[0])) for layer, both in one.layers.items()))
        for name, one in read.items()
    }
    common = next((kind for kind, _ in Counter(kinds.values()).most_common(1)), None)
    found = {}
    for name, kind in kinds.items():
        if common is not None and kind != common:
            other = f"most are of {common[0][:8]}"
            other = other if kind[0] != common[0] else "has other layers than most"
            found[name] = f"is of network {kind[0][:8]}; {other}"
    return found


def _conflicting(read: Mapping[str, Moments]) -> dict[str, str]:
    """Return the files of devices that have several, but for the last of each, and why."""
    found: dict[str, str] = {}
    of_device: dict[str, list[str]] = {}
    for name, one in read.items():
        for device in one.devices:
            of_device.setdefault(device, []).append(name)
    for device, names in of_device.items():
        counts = {name: read[name].devices[device] for name in names}
        names.sort(key=counts.__getitem__)
        for early, late in itertools.pairwise(names):
            then, now = counts[early], counts[late]
            if now[0] == then[0] or now[1] < then[1]:
                found |= dict.fromkeys(names, _went_back(device, then, now))
            elif late not in found:
                found[early] = f"is of device {device[:8]}, which has written {late} later"
    return found


def _went_back(device: str, then: _Counts, now: _Counts) -> str:
    return (
        f"device {device[:8]} has counter {now[0]:,} after {then[0]:,}, and {now[1]:,} requests "
        f"after {then[1]:,}: it was put back to an old state, or two devices have one name"
    )


def _mean(read: Sequence[Moments]) -> Moments:
    layers: dict[str, Any] = {}
    samples = 0.0
    fleet: dict[str, _Counts] = {}
    for one in read:
        layers = added(layers, samples, one.layers, one.samples)
        samples += one.samples
        fleet |= one.devices
    layers = {name: both.astype(np.float32) for name, both in layers.items()}
    requests = sum(requests for _, requests in fleet.values())
    return Moments(read[0].network, "", 0, requests, samples, layers, fleet)


@dataclass(frozen=True, slots=True, eq=False)
class WeighedData:
    """Calibration data that stand for a fleet's requests.

    Attributes:
        batches: those samples that count, each with its weight, and no labels lost.
        samples: how many.
        balance: weights of all samples, and how close they come to what the fleet saw.
    """

    batches: tuple[Batch, ...]
    samples: int
    balance: BalancedWeights

    @property
    def notes(self) -> tuple[str, ...]:
        """What there is to know, a line each; the last warns where nothing is like the requests."""
        b = self.balance
        left = b.after / b.before if b.before else 0.0
        told = (
            f"{self.samples:,} of {len(b.weights):,} calibration samples are like the requests, "
            f"worth {b.worth:,.0f} of equal weight; {1 - left:.0%} of the distance between them "
            "is made up for"
        )
        unlike = (
            "the requests are unlike any mix of the calibration samples: relevance by them may "
            "mislead; add samples like the requests"
        )
        return (told,) if left <= _UNLIKE else (told, unlike)


def weighed(
    model: nn.Module, calibration: RawBatches, moments: Moments, network: str | Path
) -> WeighedData:
    """Return calibration samples weighed so that the network's layers take in what a fleet's did.

    What no mix of them comes to is not made up for; `WeighedData.notes` says how much that is.
    Relevance heeds the weights. Saliency and repair take those samples alone that hold 95 % of all
    weight, each once.

    Args:
        model: that the batches are for.
        calibration: batches of inputs, as `prune` takes them.
        moments: of devices, or merged.
        network: the packed file that the devices run, with a graph that can tell.

    Raises:
        UsageError: the moments are of another network, or there is no batch of its size.
        PackError: the file is damaged.
        FlexrelError: it can't tell, or onnxruntime is missing.
    """
    contents = inspect(network)
    if contents.sha256 != moments.network:
        raise UsageError(
            f"the moments are of network {moments.network[:8]}, {network} is "
            f"{contents.sha256[:8]}; name the file that the devices ran"
        )
    running = session(network, observing=True)
    size = graph_in(contents).samples or 1
    names = [node.name for node in running.get_inputs()]
    parts: list[Batch] = []
    features: list[Tensor] = []
    for batch in read_batches(collect(calibration), model):
        for at in range(0, batch.samples - size + 1, size):
            part = samples_in(batch, slice(at, at + size))
            given = zip(names, part.tensors, strict=True)
            feed = {name: tensor.detach().cpu().numpy() for name, tensor in given}
            found = told(run(running, feed).outputs)
            features.append(_feature(found, moments))
            parts.append(part)
    if not parts:
        raise UsageError(f"no calibration batch has the {size:,} samples that {network} takes")
    balance = balanced(
        torch.stack(features), _feature(moments.layers, moments), moments.samples / size
    )
    heavy = balance.weights.argsort(descending=True, stable=True)
    held = balance.weights[heavy].cumsum(0) < _HELD * balance.weights.sum()
    kept = heavy[: int(held.sum()) + 1].sort().values.tolist()
    weighted = (
        replace(parts[at], weights=balance.weights[at].float().expand(parts[at].samples))
        for at in kept
    )
    batches = tuple(joined(weighted, _BATCH))
    return WeighedData(batches, size * len(kept), balance)


def _feature(layers: Mapping[str, Any], moments: Moments) -> Tensor:
    """Return the means and mean squares of all layers, one after the other, float64."""
    try:
        parts = [layers[name].reshape(-1) for name in sorted(moments.layers)]
    except KeyError as error:
        raise UsageError(f"the moments have a layer {error}, the network has none") from error
    return torch.from_numpy(np.concatenate(parts).astype(np.float64))
