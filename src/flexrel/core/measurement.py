"""What was measured of networks and units, and how progress is told."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

Scores = Mapping[
    str, Tensor
]  # group name -> one score per unit, of the group's shape; higher = keep
Saliency = Mapping[str, Tensor]  # group name -> what the removal of each unit costs, likewise
Progress = Callable[[str, int, int | None], None]  # stage, steps done, steps in all if known


def silent(stage: str, done: int, total: int | None) -> None:
    """Report progress to nobody."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one network costs and how well it does its job.

    Attributes:
        criterion: its name; "dense" for the network as it came.
        removed: share of the units that can be pruned: those that the plan takes out or zeroes.
        parameters: that the plan leaves.
        macs: multiply-adds for one sample.
        bytes: of the packed file. In a result's own are some 200 for what `flexrel inspect` shows,
            inputs, accuracy and widths, where a budget leaves room; not in those of others.
        accuracy: what `evaluate` said, in [0, 1], if it tells that.
        divergence: from dense, on calibration data; lower is better.
        weights_removed: share of all weights of the dense network that this one has no more, or
            has as a zero, prunable or not: weights are its parameters of two axes or more, tied
            ones counted once. Counted in the values of the packed file, so zeros of before and
            those that rounding makes are among them; of the dense network it is its own zeros.
        metrics: all that `evaluate` said, by name, accuracy included.
    """

    criterion: str
    removed: float
    parameters: int
    macs: int
    bytes: int
    accuracy: float | None = None
    divergence: float | None = None
    weights_removed: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class RecoveryStep:
    """What one way to bring accuracy back did to a pruned network."""

    name: str
    before: float  # divergence from dense, on held-out calibration data; lower is better
    after: float
    kept: bool  # False: it brought nothing, and was undone
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Training:
    """What happened while a pruned network was trained."""

    validation: tuple[float, ...]  # loss on the validation batches: before, and after each epoch
    best: int  # the epoch whose network was taken; 0: the network as it was given
    stopped: str  # why it ended
    validated_on: str
    distillation: float  # share of the loss that came from the dense network
