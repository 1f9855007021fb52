"""What was measured in use, as it is named on the command line: stats of relevance, or moments."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from flexrel.core.batches import RawBatch
from flexrel.errors import UsageError
from flexrel.observed import merge_moments, read_moments, weighed
from flexrel.relevance import MOST_SAMPLES, RelevanceStats, merge
from flexrel_edge import FlexrelError, inspect


@dataclass(frozen=True, slots=True)
class MergedFile:
    """What files were merged to.

    Attributes:
        data: bytes of the file.
        used: how many files were added.
        dropped: those that were not, and why.
        layers: how many.
        samples: likewise.
    """

    data: bytes
    used: int
    dropped: tuple[tuple[str, str], ...]
    layers: int
    samples: float


def merged_file(
    files: Sequence[str], most: float | None, trust: Path | None, since: Path | None
) -> MergedFile:
    """Return what files come to: those of moments if there is one, else those of stats."""
    limit = MOST_SAMPLES if most is None else most
    if trust or since or any("://" in name or _are_moments(name) for name in files):
        found = merge_moments(files, limit, trust=trust, since=since)
        m = found.moments
        return MergedFile(m.encode(), len(found.used), found.dropped, len(m.layers), m.samples)
    added = merge(files, limit)
    s = added.stats
    return MergedFile(s.encode(), len(added.used), added.dropped, len(s), s.samples)


@dataclass(frozen=True, slots=True)
class Statistics:
    """What a request to prune takes from a file.

    Attributes:
        batches: calibration data, weighed if the file has moments.
        stats: relevance, if the file has that.
        notes: what there is to know, a line each.
    """

    batches: Iterable[RawBatch]
    stats: RelevanceStats | None = None
    notes: tuple[str, ...] = ()


def with_statistics(
    model: nn.Module, batches: Iterable[RawBatch], path: Path | None, network: Path | None
) -> Statistics:
    """Return what a file of stats or of moments makes of a request to prune.

    Args:
        model: that is pruned.
        batches: calibration data.
        path: of the file; None: none is given.
        network: packed file that devices ran; moments need it, stats don't.

    Raises:
        UsageError: there are moments without a network, or a network without moments.
        FlexrelError: a file is damaged or of something else.
    """
    if path is None or not _are_moments(path):
        if network is not None:
            raise UsageError(
                f"--observed-with {network} goes with --statistics and a file of moments"
            )
        return Statistics(batches, None if path is None else RelevanceStats.load(path))
    if network is None:
        raise UsageError(
            f"{path}: holds moments of layers in the network that devices ran; name its packed "
            "file with --observed-with"
        )
    data = weighed(model, batches, read_moments(path), network)
    return Statistics(list(data.batches), notes=data.notes)


def _are_moments(path: str | Path) -> bool:
    """Return whether it is a packed file, as moments are, and not one of safetensors alone."""
    try:
        inspect(path)
    except (FlexrelError, OSError):
        return False
    return True
