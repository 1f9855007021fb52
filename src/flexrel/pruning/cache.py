"""What was measured of networks on data, kept in a folder for the next call.

A file a measurement, safetensors, named by a hash of all that it depends on: whatever changes, it
is measured anew. A file that can't be read counts as none.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from flexrel.core.batches import RawBatch, RawBatches, read_batches
from flexrel.core.deadline import OutOfTimeError
from flexrel.core.graph import Protected, PruningGraph
from flexrel.core.measurement import Progress, Saliency
from flexrel.core.running import fingerprint
from flexrel.criteria import SaliencyTarget
from flexrel.errors import FlexrelError, UsageError
from flexrel.relevance import Attribution, RelevanceStats
from flexrel_edge.files import replace_file

MeasuredSaliency = tuple[Saliency, Sequence[Protected]]
_UNKNOWN: Final = "unknown"  # key of what a file of saliency says besides


@dataclass(slots=True)
class _Watched:
    """A progress that remembers whether it ended a stage early."""

    progress: Progress
    ended: bool = False

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        try:
            self.progress(stage, done, total)
        except OutOfTimeError:
            self.ended = True
            raise


@dataclass(frozen=True, slots=True)
class SignalCache:
    """What was measured of one network on some batches, in a folder.

    Attributes:
        folder: of the files; made when the first is written.
        subject: hash of the network, its values, the batches and FlexRel's version.
    """

    folder: Path
    subject: str

    @staticmethod
    def of(folder: str | Path, model: nn.Module, batches: Sequence[RawBatch]) -> "SignalCache":
        """Return the cache of what is measured of a network on batches.

        Raises:
            UsageError: the folder is a file.
        """
        folder = Path(folder)
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"cache={str(folder)!r} is a file; name a folder")
        parts = (version("flexrel"), network_digest(model), data_digest(batches, model))
        digest = hashlib.sha256("|".join(parts).encode())
        return SignalCache(folder, digest.hexdigest())

    def relevance(
        self,
        wanted: Attribution,
        measure: Callable[[Progress], RelevanceStats],
        progress: Progress,
    ) -> RelevanceStats:
        """Return relevance: as it lies there, or measured, and kept if it was to the end.

        That by rules or from outputs of the caller's own is always measured.
        """
        if not (isinstance(wanted.rule, str) and isinstance(wanted.output, str)):
            return measure(progress)
        path = self._path("relevance", wanted.rule, wanted.output)
        try:
            return RelevanceStats.load(path)
        except FlexrelError:
            watched = _Watched(progress)
            found = measure(watched)
        if not watched.ended:
            self._write(path, found.encode())
        return found

    def saliency(
        self,
        wanted: SaliencyTarget,
        graph: PruningGraph,
        seed: int,
        measure: Callable[[Progress], MeasuredSaliency],
        progress: Progress,
    ) -> MeasuredSaliency:
        """Return saliency: as it lies there, or measured, and kept if it was to the end."""
        if not isinstance(wanted.output, str):
            return measure(progress)
        groups = [[group.name, list(group.shape)] for group in graph.groups]
        path = self._path("saliency", wanted.output, graph.granularity, seed, groups)
        if (known := _read_saliency(path)) is not None:
            return known
        watched = _Watched(progress)
        found = measure(watched)
        if not watched.ended:
            costs, unknown = found
            told = json.dumps([[one.name, one.reason] for one in unknown])
            tensors = {name: tensor.contiguous() for name, tensor in costs.items()}
            self._write(path, safetensors.torch.save(tensors, {_UNKNOWN: told}))
        return found

    def _path(self, kind: str, *by: object) -> Path:
        digest = hashlib.sha256(json.dumps([self.subject, kind, *by]).encode()).hexdigest()
        return self.folder / f"{kind}-{digest[:32]}.safetensors"

    def _write(self, path: Path, content: bytes) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_file(path, content)


def network_digest(model: nn.Module) -> str:
    """Return 64 hex digits that are the same for two models of the same structure and values."""
    digest = hashlib.sha256(fingerprint(model).encode())
    tensors = [*model.named_parameters(), *model.named_buffers()]
    _add(digest.update, (tensor for _, tensor in sorted(tensors, key=lambda one: one[0])))
    return digest.hexdigest()


def data_digest(batches: RawBatches, model: nn.Module) -> str:
    """Return 64 hex digits of all inputs, labels and weights, in their order.

    Args:
        batches: gone through once.
        model: that they are read for.
    """
    digest = hashlib.sha256()
    for batch in read_batches(batches, model):
        extra = {k: v for k, v in batch.kwargs.items() if not isinstance(v, Tensor)}
        digest.update(repr((sorted(batch.kwargs), extra)).encode())
        _add(digest.update, [*batch.tensors, batch.labels, batch.weights])
    return digest.hexdigest()


def _add(update: Callable[[bytes | memoryview], None], tensors: Iterable[Tensor | None]) -> None:
    for tensor in tensors:
        if tensor is None:
            continue
        update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().view(-1)
        update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")


def _read_saliency(path: Path) -> MeasuredSaliency | None:
    try:
        with safe_open(path, "pt") as file:
            unknown = json.loads(file.metadata()[_UNKNOWN])
            costs = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return costs, [Protected(name, reason) for name, reason in unknown]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None
