"""What a plan says, in words: what goes, what goes along, what stays and why."""

from collections.abc import Iterable
from dataclasses import dataclass

from flexrel.core import cost
from flexrel.core.graph import GroupMember, Masks, PruningGraph, PruningGroup, SizeAttribute

_OF_LAYERS = ("weight", "bias", "running_mean", "running_var")  # tensors told by their module
_GOES_WITHOUT_SAYING = ("num_features",)  # how wide a norm is that goes along


@dataclass(frozen=True, slots=True)
class GroupChange:
    """What a plan does to one group.

    Attributes:
        name: of the group.
        unit: what its units are: "channels", "groups of 8 channels", "heads", or, where it is a
            mask over a layer, "weights" or "blocks of 4 x 4".
        units: how many there are.
        kept: how many of them stay.
        makers: layers, and parameters of no layer, that make the units.
        followers: what is in between and goes along, such as norms and biases.
        readers: layers that read the units.
        passed: modules that are passed over.
        numbers: in modules, that become smaller, with by how much: "attention.num_heads -2".
    """

    name: str
    unit: str
    units: int
    kept: int
    makers: tuple[str, ...]
    followers: tuple[str, ...]
    readers: tuple[str, ...]
    numbers: tuple[str, ...]
    passed: tuple[str, ...] = ()


def changes(graph: PruningGraph, masks: Masks) -> list[GroupChange]:
    """Return what the plan does to each group, in the order of the network."""
    return [_change(graph, masks, group) for group in graph.groups]


def _change(graph: PruningGraph, masks: Masks, group: PruningGroup) -> GroupChange:
    kept = int(masks[group.name].sum())
    makers = _layers(member for member in group.members if member.makes)
    return GroupChange(
        name=group.name,
        unit=_unit(group),
        units=group.units,
        kept=kept,
        makers=makers if group.members else (named(group.name),),
        followers=tuple(
            name
            for name in _layers(member for member in group.members if member.role == "follower")
            if name not in makers
        ),
        readers=_layers(member for member in group.members if member.reads),
        numbers=tuple(
            f"{_place(attribute)} -{each * (group.units - kept)}"
            for attribute in graph.attributes
            for name, each in attribute.units
            if name == group.name
            and kept < group.units
            and attribute.name not in _GOES_WITHOUT_SAYING
        ),
        passed=tuple(
            block.module for unit, block in enumerate(group.blocks) if not masks[group.name][unit]
        ),
    )


def _unit(group: PruningGroup) -> str:
    together = min((p.index.shape[1] for p in group.members if p.makes), default=1)
    if group.kind == "channel" and together > 1:
        return f"groups of {together} channels"
    if group.layout and group.layout.block:
        return f"blocks of {' x '.join(map(str, group.layout.block))}"
    return f"{group.kind}s" if group.members or group.blocks else "weights"


def _layers(members: Iterable[GroupMember]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_owner(member.tensor) for member in members))


def _owner(tensor: str) -> str:
    module, _, name = tensor.rpartition(".")
    return named(module) if name in _OF_LAYERS else tensor


def _place(attribute: SizeAttribute) -> str:
    place = "" if attribute.place is None else f"[{attribute.place}]"
    return f"{attribute.module}.{attribute.name}{place}".removeprefix(".")


def named(layer: str) -> str:
    """Return the name of a layer, also of one that is the whole network."""
    return layer or "the model itself"


def totals(graph: PruningGraph, masks: Masks) -> list[str]:
    """Return what the plan comes to, a line each: units, parameters and multiply-adds."""
    gone = sum(int((~mask).sum()) for mask in masks.values())
    lines = [f"{gone:,} of {graph.units:,} units go"]
    for name, count in (("parameters", cost.parameters), ("multiply-adds", cost.macs)):
        dense, now = count(graph), count(graph, masks)
        share = f" ({100 * now / dense:.1f} %)" if dense else ""
        lines.append(f"{name} {dense:,} -> {now:,}{share}")
    return lines


def explain(graph: PruningGraph, masks: Masks) -> str:
    """Return the plan as text: what it comes to, every group, every layer left alone and why."""
    lines = [f"Plan by {graph.granularity}", *(f"  {line}" for line in totals(graph, masks))]
    for change in changes(graph, masks):
        lines += [
            "",
            f"{named(change.name)}: keeps {change.kept:,} of {change.units:,} {change.unit}",
        ]
        for what, names in (
            ("passed over", change.passed),
            ("made by", change.makers if change.readers else ()),
            ("along go", change.followers),
            ("read by", change.readers),
            ("numbers", change.numbers),
        ):
            lines += [f"  {what} {_listed(names)}"] if names else []
    if graph.protected:
        lines += ["", f"Left alone: {len(graph.protected)}"]
        lines += [f"  {named(p.name)}: {p.reason}" for p in graph.protected]
    return "\n".join(lines)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
