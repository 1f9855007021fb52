"""A plan as its user holds it: explained, written down, read again."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from jaxtyping import Bool
from torch import Tensor

from flexrel.core.graph import PruningGraph
from flexrel.core.plan.explain import GroupChange, changes, explain, named, totals
from flexrel.core.plan.layers import LayerRow, layer_rows, owner_of
from flexrel.core.plan.read import parse
from flexrel.core.plan.write import as_json, dump
from flexrel.errors import PackError, UsageError
from flexrel_edge.container import announced
from flexrel_edge.files import replace_file
from flexrel_edge.source import OnDisk

__all__ = [
    "GroupChange",
    "LayerRow",
    "Plan",
    "changes",
    "check_alone",
    "check_model",
    "check_plan",
    "dump",
    "layer_rows",
    "named",
    "owner_of",
    "totals",
]


_MODEL: Final = "model.flexrel"  # of the folder that `Result.save` writes, and beside it
_THEN: Final = "Of the network that this leaves:"
_RECORDS: Final = ("plan.json", "result.json")


@dataclass(frozen=True, slots=True)
class Plan:
    """What goes and what stays, and how to do it again without another look at the network.

    `flexrel.apply(model, plan)` carries it out on any copy of the network that it was made for.

    Attributes:
        graph: what could be pruned, with what goes along, and what was left alone.
        masks: one for each group of the graph, of the group's shape, on the CPU; True = keep.
        model: checksum of the packed file that it was saved beside; empty: none is known.
        then: what goes of the network that this leaves, as zeros where channels went; None:
            nothing.

    Raises:
        UsageError: a mask is missing or of another shape, or keeps no unit.
    """

    graph: PruningGraph
    masks: Mapping[str, Bool[Tensor, "..."]]
    model: str = ""
    then: "Plan | None" = None

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
        """How many units go, without those of `then`."""
        kept = sum(int(self.masks[group.name].sum()) for group in self.graph.groups)
        return self.graph.units - kept

    def explain(self) -> str:
        """Return the plan as text: every group, every layer left alone, and what it comes to."""
        told = explain(self.graph, self.masks)
        return told if self.then is None else f"{told}\n\n{_THEN}\n\n{self.then.explain()}"

    @property
    def zeros(self) -> "Plan | None":
        """The plan, or that which follows it, that sets weights to zero; None: none does."""
        if self.graph.pattern.zeros:
            return self
        return None if self.then is None else self.then.zeros

    def as_json(self) -> dict[str, Any]:
        """Return the content of `plan.json`; docs/format.md says what is in it."""
        told = as_json(self.graph, self.masks, self.model)
        return told if self.then is None else {**told, "then": self.then.as_json()}

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
            PackError: the file is damaged, or holds something else; or a `model.flexrel` that
                it was not saved with lies beside it.
        """
        if not Path(path).is_file():
            raise UsageError(f"{path}: no such file of a plan")
        try:
            first, *rest = [Plan(*parts) for parts in parse(Path(path).read_bytes())]
            plan = replace(first, then=rest[0]) if rest else first
        except (ValueError, UsageError, RecursionError) as error:
            raise PackError(f"{path}: is no plan, or it is damaged: {error}") from error
        check_model(Path(path), plan.model)
        return plan


def check_model(record: Path, sha256: str) -> None:
    """Refuse a record beside a `model.flexrel` that it was not saved with.

    Args:
        record: a file of the folder that `Result.save` wrote.
        sha256: checksum of the packed file, as the record has it; empty: none is known.

    Raises:
        PackError: the checksums differ.
    """
    model = record.with_name(_MODEL)
    if not sha256 or not model.is_file():
        return
    with model.open("rb") as file:
        try:
            found = announced(OnDisk(file)).sha256
        except PackError as error:
            raise PackError(f"{model}: {error}") from error
    if found != sha256:
        raise PackError(
            f"{record}: was saved with a {_MODEL} of checksum {sha256[:16]}..., the one "
            f"beside it has {found[:16]}...: saving was cut off, or one of them was replaced; "
            f"save the result again, or move {record.name} to a folder of its own"
        )


def check_plan(given: object) -> None:
    """Raise a UsageError for what is no plan, such as the path of one."""
    if isinstance(given, Plan):
        return
    if isinstance(given, str | Path):
        raise UsageError(f"the plan is a path; read it with flexrel.Plan.load({str(given)!r})")
    raise UsageError(
        f"the plan is a {type(given).__name__}; pass result.plan, or flexrel.Plan.load(path)"
    )


def check_alone(path: Path) -> None:
    """Refuse to write a packed file in the place of a result's, whose records it would not fit.

    Args:
        path: of the file to be written.

    Raises:
        UsageError: a record that carries a model's checksum lies beside it.
    """
    for record in map(path.with_name, _RECORDS if path.name == _MODEL else ()):
        try:
            content = json.loads(record.read_bytes())
        except (OSError, ValueError, RecursionError):  # none, or no record
            continue
        if isinstance(content, dict) and content.get("model"):
            raise UsageError(
                f"{path}: {record.name} beside it belongs to the {_MODEL} that it was saved with, "
                "and would be refused beside another; write to another name or folder"
            )
