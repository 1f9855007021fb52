"""Stats of a fleet added up: what can't be used is dropped, and said."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flexrel.errors import FlexrelError, PackError, UsageError
from flexrel.relevance.stats import RelevanceStats

MOST_SAMPLES: Final = 1e8  # that one file may count: no device has seen more


@dataclass(frozen=True, slots=True)
class MergedStats:
    """The sum of a fleet's stats.

    Attributes:
        stats: so many samples of a device, so much it counts.
        used: the files that were added.
        dropped: those that were not, and why.
    """

    stats: RelevanceStats
    used: tuple[str, ...]
    dropped: tuple[tuple[str, str], ...]


def merge(files: Sequence[str | Path], most_samples: float = MOST_SAMPLES) -> MergedStats:
    """Return the sum of stats that `RelevanceStats.save` wrote on several devices.

    Dropped are files that are damaged or hold a NaN, that count no sample or more than
    `most_samples`, that were there already under another name, and those of another network, rule
    or output than most are of; of as many, than the first. One file a device: a later one of the
    same device holds the samples of the earlier.

    Args:
        files: their paths.
        most_samples: that one may count.

    Raises:
        UsageError: there is no file, or one named does not exist.
        PackError: none can be used; says why.
    """
    if not files:
        raise UsageError("there are no files of stats to merge; name at least one")
    missing = [str(path) for path in files if not Path(path).is_file()]
    if missing:
        raise UsageError(f"{missing[0]}: no such file of stats")
    dropped: list[tuple[str, str]] = []
    read: list[tuple[str, RelevanceStats]] = []
    seen: dict[str, str] = {}  # checksum -> the first file that has it
    for name in map(str, files):
        data = Path(name).read_bytes()
        checksum = hashlib.sha256(data).hexdigest()
        try:
            if checksum in seen:
                raise UsageError(f"is the same as {seen[checksum]}")
            seen[checksum] = name
            read.append((name, _checked(RelevanceStats.decode(data, name), most_samples)))
        except FlexrelError as error:
            dropped.append((name, str(error).removeprefix(f"{name}: ")))
    kinds = Counter(_kind(stats) for _, stats in read)
    common = next((kind for kind, _ in kinds.most_common(1)), None)  # of as many, the first
    total: RelevanceStats | None = None
    used: list[str] = []
    for name, stats in read:
        try:
            total = _added(total, stats, common)
            used.append(name)
        except UsageError as error:
            dropped.append((name, str(error)))
    if total is None:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in dropped)
        raise PackError(f"no file of stats can be used: {reasons}")
    return MergedStats(total, tuple(used), tuple(dropped))


def _checked(stats: RelevanceStats, most: float) -> RelevanceStats:
    if 0 < stats.samples <= most:
        return stats
    raise UsageError(f"counts {stats.samples:,.10g} samples; above 0 and up to {most:,.10g} can be")


_Kind = tuple[str, str, str]


def _kind(stats: RelevanceStats) -> _Kind:
    return stats.model, stats.rule, stats.output


def _added(
    total: RelevanceStats | None, stats: RelevanceStats, common: _Kind | None
) -> RelevanceStats:
    if _kind(stats) != common:
        raise UsageError(f"is of {_told(_kind(stats))}; most are of {_told(common)}")
    return stats if total is None else total + stats


def _told(kind: _Kind | None) -> str:
    model, rule, output = kind or ("", "", "")
    return f"network {model[:8] or 'unknown'}, rule {rule}, output {output}"
