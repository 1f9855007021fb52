"""A plan as its user holds it: explained, written down, read again."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Bool
from torch import Tensor

from flexrel.core.graph import PruningGraph
from flexrel.core.plan.explain import GroupChange, changes, explain, named, totals
from flexrel.core.plan.read import parse
from flexrel.core.plan.write import as_json, dump
from flexrel.errors import PackError, UsageError
from flexrel_edge.files import replace_file

__all__ = ["GroupChange", "Plan", "changes", "named", "totals"]


@dataclass(frozen=True, slots=True)
class Plan:
    """What goes and what stays, and how to do it again without another look at the network.

    `flexrel.apply(model, plan)` carries it out on any copy of the network that it was made for.

    Attributes:
        graph: what could be pruned, with what goes along, and what was left alone.
        masks: one for each group of the graph, of the group's shape, on the CPU; True = keep.

    Raises:
        UsageError: a mask is missing or of another shape, or keeps no unit.
    """

    graph: PruningGraph
    masks: Mapping[str, Bool[Tensor, "..."]]

    def __post_init__(self) -> None:
        for group in self.graph.groups:
            mask = self.masks.get(group.name)
            if mask is None or tuple(mask.shape) != group.shape:
                found = "no mask" if mask is None else f"a mask of shape {tuple(mask.shape)}"
                raise UsageError(f"plan has {found} for {group.name!r}, expected {group.shape}")
            if not mask.any():
                raise UsageError(f"plan keeps none of the {group.units} units of {group.name!r}")

    @property
    def removed(self) -> int:
        """How many units go."""
        kept = sum(int(self.masks[group.name].sum()) for group in self.graph.groups)
        return self.graph.units - kept

    def explain(self) -> str:
        """Return the plan as text: every group, every layer left alone, and what it comes to."""
        return explain(self.graph, self.masks)

    def as_json(self) -> dict[str, Any]:
        """Return the content of `plan.json`; docs/format.md says what is in it."""
        return as_json(self.graph, self.masks)

    def save(self, path: str | Path) -> None:
        """Write the plan to a JSON file, whole or not at all."""
        replace_file(Path(path), self.encode())

    def encode(self) -> bytes:
        """Return what `save` writes."""
        return dump(self.as_json())

    @staticmethod
    def load(path: str | Path) -> "Plan":
        """Read a plan that `save` wrote.

        Raises:
            UsageError: there is no such file.
            PackError: the file is damaged, or holds something else.
        """
        if not Path(path).is_file():
            raise UsageError(f"{path}: no such file of a plan")
        try:
            return Plan(*parse(Path(path).read_bytes()))
        except (ValueError, UsageError, RecursionError) as error:
            raise PackError(f"{path}: is no plan, or it is damaged: {error}") from error
