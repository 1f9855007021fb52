"""Stats of what goes on and on: they forget, in several blocks that say how much is chance."""

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError

from flexrel.errors import PackError, UsageError
from flexrel.relevance.rules import rule_of
from flexrel.relevance.stats import RelevanceStats
from flexrel.relevance.targets import Attribution

BLOCKS = 8
_CHECKSUM = 32  # bytes of SHA-256, before all else


class ForgettingBlocks:
    """Sums in which a sample counts half after so many further ones, in 8 blocks.

    What comes goes to the block that has the least, so that all are of the same time and of about
    as many samples, and what they differ by is chance.
    """

    def __init__(self, half_life: float) -> None:
        """Begin with nothing; the half-life is in samples."""
        self.half_life = half_life
        self._seen = 0.0  # samples
        self._blocks: dict[int, tuple[RelevanceStats, float]] = {}  # and what was seen by then

    def add(self, stats: RelevanceStats) -> None:
        """Add stats to the block that has the least; all that was there before is older by them.

        Raises:
            UsageError: they don't add to those of before.
        """
        seen = self._seen + stats.samples
        at = min(range(BLOCKS), key=self._samples)
        if (before := self._blocks.get(at)) is not None:
            stats = self._aged(*before, seen) + stats
        self._blocks[at] = stats, seen
        self._seen = seen

    def now(self) -> list[RelevanceStats]:
        """Return the blocks that have something, aged to now."""
        return [self._aged(*self._blocks[at], self._seen) for at in sorted(self._blocks)]

    def restore(self, blocks: Sequence[RelevanceStats]) -> None:
        """Go on from what `now` returned."""
        self._blocks = {at: (block, self._seen) for at, block in enumerate(blocks)}

    def _samples(self, at: int) -> float:
        if at not in self._blocks:
            return 0.0
        stats, then = self._blocks[at]
        return stats.samples * self._left(then, self._seen)

    def _aged(self, stats: RelevanceStats, then: float, now: float) -> RelevanceStats:
        return stats.scaled(self._left(then, now))

    def _left(self, then: float, now: float) -> float:
        """Return the share that is left now of what was whole then."""
        return math.pow(0.5, (now - then) / self.half_life)


def encode_blocks(blocks: Sequence[RelevanceStats]) -> bytes:
    """Return the blocks as a file has them: a SHA-256 of what follows, and safetensors of files."""
    files = {
        f"block {at}": torch.frombuffer(bytearray(block.encode()), dtype=torch.uint8)
        for at, block in enumerate(blocks)
    }
    content = safetensors.torch.save(files)
    return hashlib.sha256(content).digest() + content


def load_blocks(path: Path, model: str, wanted: Attribution) -> list[RelevanceStats]:
    """Return the blocks of a file that `encode_blocks` made.

    Args:
        path: of the file.
        model: fingerprint of the network that they have to be of.
        wanted: how they have to be measured.

    Raises:
        PackError: the file is damaged, or something else.
        UsageError: the blocks are of another network, or measured in another way.
    """
    data = path.read_bytes()
    content = data[_CHECKSUM:]
    if hashlib.sha256(content).digest() != data[:_CHECKSUM]:
        raise PackError(f"{path}: is no state of relevance in use, or it is damaged; remove it")
    try:
        files = safetensors.torch.load(content)
    except SafetensorError as error:
        raise PackError(f"{path}: is no state of relevance in use: {error}") from error
    if not set(files) <= {f"block {at}" for at in range(BLOCKS)}:
        raise PackError(f"{path}: is no state of relevance in use: it has {', '.join(files)}")
    blocks = [
        RelevanceStats.decode(files[name].numpy().tobytes(), f"{path}, {name}")
        for name in sorted(files)
    ]
    rule = rule_of(wanted.rule).name
    output = wanted.output
    if not isinstance(output, str):
        output = str(getattr(output, "__name__", "callable"))
    for block in blocks:
        if block.model != model:
            raise UsageError(
                f"{path}: is the state of another network of fingerprint {block.model[:8]}, this "
                f"one's is {model[:8]}; name another file"
            )
        if block.rule != rule or output not in ("auto", block.output):
            raise UsageError(
                f"{path}: was measured with rule {block.rule!r} from output {block.output!r}, but "
                f"asked for is {rule!r} from {output!r}; name another file"
            )
    return blocks
