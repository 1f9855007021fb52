"""From dependencies to groups: which indices go together as a unit, which units are alike.

Where an axis was flattened from several, one of them at most can be cut: position `(i, j)` of the
flat axis goes with `i`, or with `j`. A factor that is barred leaves the choice to the other;
where both could be cut it falls on attention heads, and else on the factor with more units.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch

from flexrel.core.graph import GroupKind, GroupMember, PruningGroup, layer_of
from flexrel.structure.dependencies import Axis, AxisDependencies, FlattenedAxis, Indices

Shrinkage = tuple[tuple[str, int], ...]  # group -> by how much with each unit of it that goes
IndexMask = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]

_FREE = np.iinfo(np.int64).max


# --- units --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class ResolvedUnits:
    """What every index belongs to.

    Attributes:
        of: index -> its unit, which has the number of its first index.
        heads: index -> whether its unit is an attention head.
    """

    of: Indices
    heads: IndexMask
    _reason: Indices
    _reasons: tuple[str, ...]

    def free(self, indices: Indices) -> IndexMask:
        """Return which of the indices can be cut."""
        free: IndexMask = self._reason[indices] == _FREE
        return free

    def reason(self, indices: Indices) -> str:
        """Return why the first of the indices that can't be cut must stay."""
        return self._reasons[int(self._reason[indices].min())]


def resolve(dependencies: AxisDependencies) -> ResolvedUnits:
    """Return the units of a network of which all rules have spoken."""
    units = _Components(dependencies)
    waiting = dependencies.flattened
    while waiting:
        undecided = [axis for axis in waiting if not units.decide(axis)]
        if len(undecided) == len(waiting):
            for axis in undecided:
                units.choose(axis)
                units.join()
            undecided = []
        units.join()
        waiting = undecided
    return units.found()


class _Components:
    """Connected components of indices, and which of them are barred."""

    def __init__(self, dependencies: AxisDependencies) -> None:
        self._root: Indices = np.arange(dependencies.count)
        self._reasons = list(dict.fromkeys(reason for _, reason in dependencies.barred))
        number = {reason: at for at, reason in enumerate(self._reasons)}
        self._reason = np.full(dependencies.count, _FREE)  # of each root
        for indices, reason in dependencies.barred:
            self._reason[indices] = np.minimum(self._reason[indices], number[reason])
        self._heads = np.zeros(dependencies.count, bool)
        for indices in dependencies.heads:
            self._heads[indices] = True
        self._chosen = np.zeros(dependencies.count, bool)
        self._pairs: list[tuple[Indices, Indices]] = list(dependencies.joined)
        self.join()

    def join(self) -> None:
        """Join what was decided since the last time."""
        if self._pairs:
            sides = zip(*(np.broadcast_arrays(*pair) for pair in self._pairs), strict=True)
            before = self._root
            self._root = _connected(
                before, *(np.concatenate([x.ravel() for x in s]) for s in sides)
            )
            moved = np.flatnonzero(self._root != before)
            old, new = before[moved], self._root[moved]
            np.minimum.at(self._reason, new, self._reason[old])
            for flags in (self._heads, self._chosen):
                flags[new[flags[old]]] = True
        self._pairs = []

    def decide(self, axis: FlattenedAxis) -> bool:
        """Decide which factor can be cut, if one or none is left; return whether it is so."""
        if not self._free(axis.flat).any():
            for factor in axis.factors:
                self._bar(factor, int(self._reason[self._root[axis.flat]].min()))
        free = [at for at, factor in enumerate(axis.factors) if self._free(factor).any()]
        if len(free) > 1:
            return False
        if free:
            self._take(axis, free[0])
        else:
            reasons = [self._reason[self._root[factor]].max() for factor in axis.factors]
            self._bar(axis.flat, int(min(reasons)))
        return True

    def choose(self, axis: FlattenedAxis) -> None:
        """Decide which factor can be cut, of several."""
        if self.decide(axis):
            return

        def worth(at: int) -> tuple[bool, bool, bool, int]:
            roots = self._root[axis.factors[at]]
            left = self._left(axis, at)
            return left > 0, bool(self._chosen[roots].any()), bool(self._heads[roots].any()), left

        self._take(axis, max(range(len(axis.factors)), key=worth))

    def found(self) -> ResolvedUnits:
        """Return the units as they are now."""
        return ResolvedUnits(
            self._root, self._heads[self._root], self._reason[self._root], tuple(self._reasons)
        )

    def _free(self, indices: Indices) -> IndexMask:
        free: IndexMask = self._reason[self._root[indices]] == _FREE
        return free

    def _left(self, axis: FlattenedAxis, at: int) -> int:
        """Return how many units could be cut if it were this factor that is cut."""
        factor, flat = self._root[axis.factors[at]], self._root[axis.flat]
        known, number = np.unique(np.concatenate([factor, flat]), return_inverse=True)
        one, two = number[: len(factor)], number[len(factor) :]
        told = [1] * len(axis.factors)
        told[at] = -1
        shape = tuple(map(len, axis.factors))
        pair = np.broadcast_arrays(two.reshape(shape), one.reshape(told))
        root = _connected(np.arange(len(known)), *(side.ravel() for side in pair))
        barred = np.zeros(len(known), bool)
        barred[root[self._reason[known] != _FREE]] = True
        return int((~barred[np.unique(root[one])]).sum())

    def _bar(self, indices: Indices, reason: int) -> None:
        roots = self._root[indices]
        self._reason[roots] = np.minimum(self._reason[roots], reason)

    def _take(self, axis: FlattenedAxis, chosen: int) -> None:
        shape = tuple(map(len, axis.factors))
        factor = axis.factors[chosen]
        told = [1] * len(shape)
        told[chosen] = -1
        self._pairs.append((axis.flat.reshape(shape), factor.reshape(told)))
        self._chosen[self._root[factor]] = True
        why = f"it is cut in {len(factor)} parts, across this"
        if why not in self._reasons:
            self._reasons.append(why)
        for at, other in enumerate(axis.factors):
            if at != chosen:
                self._bar(other, self._reasons.index(why))


def _connected(root: Indices, a: Indices, b: Indices) -> Indices:
    """Return the roots once indices `a` and `b` are joined: the lowest of each component."""
    root = root.copy()
    while True:
        one, two = root[a], root[b]
        if np.array_equal(one, two):
            return root
        np.minimum.at(root, np.maximum(one, two), np.minimum(one, two))
        while not np.array_equal(root, above := root[root]):
            root = above


# --- groups of units ----------------------------------------------------------------------------


def groups_of(dependencies: AxisDependencies, units: ResolvedUnits) -> list[PruningGroup]:
    """Return the groups of a network, in the order of their parameters."""
    slots: list[tuple[str, int]] = []
    owned: list[Indices] = []
    for name, axes in dependencies.parameters.items():
        for at, axis in enumerate(axes):
            slots += [(name, at)] * len(axis)
            owned += axis
    groups = []
    names: dict[str, int] = {}
    for alike, index in _alike(owned, units):
        members = tuple(
            GroupMember(
                *slots[at], torch.from_numpy(where), dependencies.roles.get(slots[at], "follower")
            )
            for at, where in index
        )
        if _obstacle(members, len(alike)):
            continue
        name = layer_of(next(member.tensor for member in members if member.makes))
        names[name] = names.get(name, 0) + 1
        if names[name] > 1:
            name = f"{name}#{names[name]}"
        kind: GroupKind = "head" if units.heads[alike].any() else "channel"
        groups.append(PruningGroup(name, (len(alike),), members, kind))
    return groups


def _alike(
    owned: list[Indices], units: ResolvedUnits
) -> Iterator[tuple[Indices, list[tuple[int, Indices]]]]:
    """Yield units that are in the same slots, as often, and where: `[units, times]` a slot."""
    if not any(units.free(indices).any() for indices in owned):
        return
    slot = np.repeat(np.arange(len(owned)), list(map(len, owned)))
    place = np.concatenate([np.arange(len(indices)) for indices in owned])
    indices = np.concatenate(owned)
    free = units.free(indices)
    slot, place, unit = slot[free], place[free], units.of[indices[free]]
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


def _obstacle(members: Sequence[GroupMember], units: int) -> str:
    """Return why units with these members can't be cut, or nothing."""
    if not any(member.makes for member in members):
        return "no layer makes its channels"
    if not any(member.reads for member in members):
        return "no layer reads it"
    return "" if units > 1 else "it has one channel"


def group_of_units(
    dependencies: AxisDependencies, units: ResolvedUnits, groups: Sequence[PruningGroup]
) -> dict[int, tuple[str, int]]:
    """Return of each unit that can be cut its group, and its place there."""
    owner: dict[int, tuple[str, int]] = {}
    for group in groups:
        member = group.members[0]
        (indices,) = dependencies.parameters[member.tensor][member.axis]
        alike = units.of[indices[member.index[:, 0].numpy()]].tolist()
        owner |= {unit: (group.name, at) for at, unit in enumerate(alike)}
    return owner


def reason_for(dependencies: AxisDependencies, units: ResolvedUnits, weight: str, axis: int) -> str:
    """Return why no unit of an axis of a parameter, of which no group has a member, can be cut."""
    indices = np.concatenate([np.zeros(0, np.int64), *dependencies.parameters[weight][axis]])
    if not len(indices):
        return "it has one channel"
    free = units.free(indices)
    if not free.any():
        return units.reason(indices)
    unit = units.of[indices[free]][0]
    members = [
        GroupMember(
            name,
            at,
            torch.zeros(1, 1, dtype=torch.long),
            dependencies.roles.get((name, at), "follower"),
        )
        for name, axes in dependencies.parameters.items()
        for at, axis in enumerate(axes)
        for factor in axis
        if (units.of[factor] == unit).any()
    ]
    return _obstacle(members, 1)


def shrinkage(axis: Axis, units: ResolvedUnits, owner: Mapping[int, str]) -> Shrinkage:
    """Return by how much an axis shrinks with each unit of a group that goes; () if not evenly."""
    length = prod(map(len, axis))
    found: dict[str, int] = {}
    for factor in axis:
        alike, counts = np.unique(units.of[factor], return_counts=True)
        for unit, count in zip(alike.tolist(), counts.tolist(), strict=True):
            if unit in owner:
                amount = count * length // len(factor)
                if found.setdefault(owner[unit], amount) != amount:
                    return ()
    return tuple(sorted(found.items()))
