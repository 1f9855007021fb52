"""What brings accuracy back, as `prune` asks for it: nothing, a repair, or what the caller has."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import nn

from flexrel.core.batches import RawBatch, read_batches
from flexrel.core.measurement import Progress, Training, silent
from flexrel.core.plan import Plan
from flexrel.core.running import duplicate
from flexrel.repair.closed_form import LATE, ROWS, reconstruct_
from flexrel.repair.layerwise import HELD_OUT, repair_parts


@dataclass(frozen=True, slots=True, eq=False)
class RepairResult:
    """A network, and what was done to it, in lines for a person."""

    name: str  # of what was done
    model: nn.Module
    notes: tuple[str, ...]
    training: Training | None = None  # what happened in it, if it was that


@runtime_checkable
class Recovery(Protocol):
    """Brings back accuracy that a cut cost."""

    @property
    def name(self) -> str:
        """Name in results."""

    def __call__(
        self,
        pruned: nn.Module,
        dense: nn.Module,
        plan: Plan,
        batches: Sequence[RawBatch],
        progress: Progress = silent,
    ) -> RepairResult:
        """Return a network of the same shapes, zeros and modes as the pruned one.

        Args:
            pruned: that the plan was carried out on; not changed.
            dense: the network before that, whose outputs are the goal; on the same device, and
                not changed.
            plan: of zeros, which stay zero, or of anything else.
            batches: for calibration.
            progress: told after each layer or epoch.
        """


def regrown_note(before: nn.Module, after: nn.Module) -> tuple[str, ...]:
    """Return a line on weights that were zero in a network and are not in a copy of it."""
    pairs = zip(before.parameters(), after.parameters(), strict=True)
    back = sum(int(((old == 0) & (new != 0)).sum()) for old, new in pairs if old.ndim > 1)
    return (f"{back:,} weights that were zero before the cut are other numbers now",)


@dataclass(frozen=True, slots=True)
class ClosedForm:
    """Repair by least squares, layer by layer, without labels or training.

    Attributes:
        samples: of the calibration data, at most.
        seed: of the rows that are drawn of each layer.
        rows: of each layer, samples and positions, at most; in proportion more of those with more
            than 750 inputs.
        regrow: let weights that were zero before the cut become other numbers.
    """

    samples: int = 1024
    seed: int = 0
    rows: int = ROWS
    regrow: bool = False
    name: str = "closed-form"

    def __call__(
        self,
        pruned: nn.Module,
        dense: nn.Module,
        plan: Plan,
        batches: Sequence[RawBatch],
        progress: Progress = silent,
    ) -> RepairResult:
        """Return a repaired copy of the network."""
        network = duplicate(pruned)
        samples = sum(map(repair_parts, read_batches(batches, dense)))
        if samples < HELD_OUT:
            note = (
                f"nothing refitted: of {samples} samples none can be held out to judge a refit by"
            )
            return RepairResult(self.name, network, (f"{note}; pass at least {HELD_OUT}",))
        repairs, refused = reconstruct_(
            *(network, dense, plan, batches, progress),
            samples=self.samples,
            rows=self.rows,
            seed=self.seed,
            regrow=self.regrow,
        )
        changed = sum(repair.changed for repair in repairs)
        notes = [f"{changed} layers refitted, {len(repairs) - changed} left as they were"]
        notes += [
            f"{repair.layer}: fitted to {repair.rows:,} rows, fewer than its {repair.inputs:,} "
            "inputs; more calibration data would help"
            for repair in repairs
            if repair.rows < repair.inputs
        ]
        notes += regrown_note(pruned, network) if self.regrow else ()
        late = sum(reason == LATE for reason in refused.values())
        notes += [f"{LATE}: the last {late} layers were not refitted"] if late else []
        notes += [
            f"{layer}: not repaired, {reason}"
            for layer, reason in refused.items()
            if reason != LATE
        ]
        return RepairResult(self.name, network, tuple(notes))
