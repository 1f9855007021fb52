"""From units to groups: units that take the same parts of the same tensors with them."""

from collections.abc import Iterable, Iterator, Mapping
from math import prod

import numpy as np
import torch
from torch import nn

from flexrel.core.graph import Attribute, GroupMember, Kind, PruningGroup, Role, Work, layer_of
from flexrel.structure.dependencies import Atoms, Axis, AxisDependencies
from flexrel.structure.resolve import Units

Slot = tuple[str, int]  # a parameter or buffer, and one of its axes

_OF_TORCH = ("groups", "num_groups", "num_features")  # numbers that modules of torch size axes by


def groups_of(coupling: AxisDependencies, units: Units) -> list[PruningGroup]:
    """Return the groups of a network, in the order of their parameters."""
    slots: list[Slot] = []
    owned: list[Atoms] = []
    for name, axes in coupling.parameters.items():
        for at, axis in enumerate(axes):
            slots += [(name, at)] * len(axis)
            owned += axis
    groups = []
    names: dict[str, int] = {}
    for alike, index in _alike(owned, units):
        members = tuple(
            GroupMember(*slots[at], torch.from_numpy(where), _role(coupling, slots[at]))
            for at, where in index
        )
        if _obstacle(members, len(alike)):
            continue
        name = layer_of(next(part.tensor for part in members if part.makes))
        names[name] = names.get(name, 0) + 1
        if names[name] > 1:
            name = f"{name}#{names[name]}"
        kind: Kind = "head" if units.heads[alike].any() else "channel"
        groups.append(PruningGroup(name, (len(alike),), members, kind))
    return groups


def _alike(owned: list[Atoms], units: Units) -> Iterator[tuple[Atoms, list[tuple[int, Atoms]]]]:
    """Yield units that are in the same slots, as often, and where: `[units, times]` a slot."""
    if not any(units.free(atoms).any() for atoms in owned):
        return
    slot = np.repeat(np.arange(len(owned)), [len(atoms) for atoms in owned])
    place = np.concatenate([np.arange(len(atoms)) for atoms in owned])
    atoms = np.concatenate(owned)
    free = units.free(atoms)
    slot, place, unit = slot[free], place[free], units.of[atoms[free]]
    order = np.lexsort((place, slot, unit))
    slot, place, unit = slot[order], place[order], unit[order]
    starts = np.flatnonzero(np.diff(unit, prepend=-1))
    ends = np.append(starts[1:], len(unit))
    groups: dict[bytes, list[int]] = {}
    for at, (start, end) in enumerate(zip(starts, ends, strict=True)):
        groups.setdefault(slot[start:end].tobytes(), []).append(at)
    for alike in groups.values():
        first, length = starts[alike], ends[alike[0]] - starts[alike[0]]
        rows = first[:, None] + np.arange(length)
        columns = slot[rows[0]]
        yield unit[first], [(int(s), place[rows[:, columns == s]]) for s in np.unique(columns)]


def _obstacle(members: Iterable[GroupMember], units: int) -> str:
    members = list(members)
    if not any(part.makes for part in members):
        return "no layer makes its channels"
    if not any(part.reads for part in members):
        return "no layer reads it"
    return "" if units > 1 else "it has one channel"


def reason_for(coupling: AxisDependencies, units: Units, weight: str, axis: int) -> str:
    """Return why no unit of an axis of a parameter, of which no group has a part, can be cut."""
    atoms = np.concatenate([np.zeros(0, np.int64), *coupling.parameters[weight][axis]])
    if not len(atoms):
        return "it has one channel"
    free = units.free(atoms)
    if not free.any():
        return units.reason(atoms)
    unit = units.of[atoms[free]][0]
    members = [
        GroupMember(name, at, torch.zeros(1, 1, dtype=torch.long), _role(coupling, (name, at)))
        for name, axes in coupling.parameters.items()
        for at, axis in enumerate(axes)
        for factor in axis
        if (units.of[factor] == unit).any()
    ]
    return _obstacle(members, 1)


def _role(coupling: AxisDependencies, slot: Slot) -> Role:
    return coupling.roles.get(slot, "follower")


def attributes_of(
    model: nn.Module, coupling: AxisDependencies, units: Units, groups: list[PruningGroup]
) -> list[Attribute]:
    """Return numbers in modules that look like the lengths of axes that are cut.

    A number is taken for such a length if the module's own code sizes an axis of that length,
    and no two axes of that length are cut differently. Whether it is one shows in a trial.
    """
    owner = _owners(coupling, units, groups)
    found = []
    for path, axes in coupling.sizes.items():
        forms: dict[int, set[tuple[tuple[str, int], ...]]] = {}
        for axis in axes:
            if form := _shrinks(axis, units, owner):
                forms.setdefault(prod(map(len, axis)), set()).add(form)
        for name, place, number in _numbers(model.get_submodule(path)):
            if len(forms.get(number, ())) == 1:
                (form,) = forms[number]
                found.append(Attribute(path, name, place, form))
    return found


def work_of(
    coupling: AxisDependencies, units: Units, groups: list[PruningGroup]
) -> tuple[list[tuple[str, int]], list[Work]]:
    """Return what weights do, and all products that shrink by more than their weights do."""
    owner = _owners(coupling, units, groups)

    def shrinking(axes: Iterable[Axis]) -> Iterator[tuple[int, tuple[tuple[str, int], ...]]]:
        for axis in axes:
            if form := _shrinks(axis, units, owner):
                yield prod(map(len, axis)), form

    uses = []
    work = [Work(macs, tuple(shrinking(axes))) for macs, axes in coupling.work]
    for (weight, times), rows in zip(coupling.uses, coupling.rows, strict=True):
        if any(shrinking(rows)):
            axes = coupling.parameters[weight]
            entries = prod(prod(map(len, axis)) for axis in axes)
            work.append(Work(times * entries, tuple(shrinking((*rows, *axes)))))
        else:
            uses.append((weight, times))
    return uses, work


def _owners(
    coupling: AxisDependencies, units: Units, groups: list[PruningGroup]
) -> Mapping[int, str]:
    """Return the group of each unit."""
    owner: dict[int, str] = {}
    for group in groups:
        part = group.members[0]
        (atoms,) = coupling.parameters[part.tensor][part.axis]
        alike = units.of[atoms[part.index[:, 0].numpy()]]
        owner |= dict.fromkeys(alike.tolist(), group.name)
    return owner


def _shrinks(axis: Axis, units: Units, owner: Mapping[int, str]) -> tuple[tuple[str, int], ...]:
    """Return by how much an axis shrinks with each unit of a group that goes; () if not evenly."""
    times = prod(map(len, axis))
    form: dict[str, int] = {}
    for factor in axis:
        found, counts = np.unique(units.of[factor], return_counts=True)
        for unit, count in zip(found.tolist(), counts.tolist(), strict=True):
            if unit in owner:
                amount = count * times // len(factor)
                if form.setdefault(owner[unit], amount) != amount:
                    return ()
    return tuple(sorted(form.items()))


def _numbers(module: nn.Module) -> Iterator[tuple[str, int | None, int]]:
    of_torch = type(module).__module__.startswith("torch.") or isinstance(
        module,
        nn.Linear | nn.modules.conv._ConvNd,  # noqa: SLF001 - their subclasses too
    )
    for name, value in vars(module).items():
        if of_torch and name not in _OF_TORCH:
            continue
        if isinstance(value, int) and not isinstance(value, bool):
            yield name, None, value
        elif isinstance(value, tuple | list):
            for place, entry in enumerate(value):
                if isinstance(entry, int) and not isinstance(entry, bool):
                    yield name, place, entry
