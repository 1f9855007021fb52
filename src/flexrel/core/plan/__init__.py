"""A plan as its user holds it: explained, written down, read again."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flexrel.core import records
from flexrel.core.plan.explain import Part, explain, named, parts, totals
from flexrel.core.plan.read import parse
from flexrel.core.plan.written import as_json, dump
from flexrel.errors import PackError, UsageError
from flexrel_edge.files import replace_file

__all__ = ["Part", "Plan", "named", "parts", "totals"]


@dataclass(frozen=True, slots=True)
class Plan(records.Plan):
    """What goes and what stays, and how to do it again without another look at the network.

    `flexrel.apply(model, plan)` carries it out on any copy of the network that it was made for.

    Attributes:
        graph: what could be pruned, with what goes along, and what was left alone.
        masks: one for each group of the graph, of the group's shape; True = keep.
    """

    def explain(self) -> str:
        """Return the plan as text: every group, every layer left alone, and what it comes to."""
        return explain(self)

    def as_json(self) -> dict[str, Any]:
        """Return the content of `plan.json`; docs/format.md says what is in it."""
        return as_json(self)

    def save(self, path: str | Path) -> None:
        """Write the plan to a JSON file, whole or not at all."""
        replace_file(Path(path), self.encode())

    def encode(self) -> bytes:
        """Return what `save` writes."""
        return dump(as_json(self))

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
