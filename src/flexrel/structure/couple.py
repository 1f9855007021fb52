"""Which tensor axes stand or fall together: a union-find over axes, one small rule an operation.

Every axis of every tensor belongs to a *space*: a set of units that must be cut together. A
rule says, for one operation, which spaces its tensors share. An operation without a rule
protects the spaces it touches, with the reason: nothing is ever cut on a guess.
"""

from dataclasses import dataclass, field
from math import prod

from flexrel.records import Role, Slice
from flexrel.structure.trace import Ref, Trace


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a tensor: each unit of the space is `inner` entries in a row."""

    space: int
    inner: int = 1


@dataclass(slots=True)
class Space:
    """Units that must be cut together, and what is cut with them."""

    units: int
    slices: dict[tuple[str, int], Slice] = field(default_factory=dict)  # by (tensor, axis)
    reasons: list[str] = field(default_factory=list)  # why it must not be cut


class Coupler:
    """The union-find while it is being filled; rules speak to it."""

    def __init__(self, traced: Trace) -> None:
        self.uses: list[tuple[str, int]] = []
        self._samples = traced.samples
        self._parameters = traced.parameters
        self._spaces: list[Space] = []
        self._parent: list[int] = []
        self._axes: dict[int, list[Axis]] = {}
        self._owned: set[tuple[str, int]] = set()  # (parameter, axis)
        self._former: list[tuple[str, Axis, Axis]] = []  # parameter, axis before owned, and since
        self._transposed: dict[int, Ref] = {}
        for ref in traced.inputs:
            self.set_axes(ref, [self.fresh(size) for size in ref.shape])
            self.protect(ref, "it is the network's input")

    # --- what rules ask -------------------------------------------------------------------

    def parameter(self, ref: Ref) -> str | None:
        """Return the name of the parameter or buffer that the ref is, or None."""
        return self._parameters.get(ref.key)

    def axes(self, ref: Ref) -> list[Axis]:
        """Return the ref's axes; a tensor seen for the first time gets spaces of its own."""
        if ref.key not in self._axes:
            self._axes[ref.key] = [self.fresh(size) for size in ref.shape]
            if self.parameter(ref) is None:
                self.protect(ref, "it comes from a tensor made on the way")
        return self._axes[ref.key]

    def size(self, axis: Axis) -> int:
        """Return the axis's length."""
        return self._spaces[self.find(axis.space)].units * axis.inner

    # --- what rules say -------------------------------------------------------------------

    def fresh(self, size: int) -> Axis:
        """Return a new axis with a space of its own."""
        self._spaces.append(Space(size))
        self._parent.append(len(self._parent))
        return Axis(len(self._spaces) - 1)

    def set_axes(self, ref: Ref, axes: list[Axis]) -> None:
        """Say what the axes of a result are."""
        self._axes[ref.key] = axes

    def own(self, ref: Ref, index: int, axis: Axis, role: Role) -> None:
        """Say that axis `index` of a parameter is `axis`: it is cut with that space."""
        name = self.parameter(ref)
        current = self.axes(ref)[index]
        if name is None:
            reason = "a weight or bias that fits it is computed on the way"
            self.protect_axis(axis, reason)
            self.protect(ref, reason)
        elif self.size(current) != self.size(axis):
            self.protect_axis(axis, f"{name} is broadcast over it")
        elif (name, index) in self._owned:  # used before: both uses must agree
            self.share(current, axis, f"{name} is used twice, in ways that don't agree")
        else:
            self._owned.add((name, index))
            self._former.append((name, current, axis))
            self.axes(ref)[index] = axis
            self._space(axis).slices[name, index] = Slice(name, index, axis.inner, role)

    def share(self, one: Axis, two: Axis, conflict: str, reason: str = "") -> None:
        """Say that two axes are cut together; `reason`, if any, forbids cutting them so far."""
        a, b = self.find(one.space), self.find(two.space)
        if a == b:
            if one.inner != two.inner:
                self._spaces[a].reasons.append(conflict)
            return
        keep, gone = self._spaces[a], self._spaces[b]
        if one.inner != two.inner or keep.units != gone.units:
            keep.reasons.append(conflict)
            gone.reasons.append(conflict)
            return
        keep.slices |= gone.slices
        keep.reasons += [*gone.reasons, *([reason] if reason else [])]
        self._parent[b] = a

    def protect(self, ref: Ref, reason: str) -> None:
        """Forbid cutting any axis of the tensor."""
        for axis in self.axes(ref):
            self.protect_axis(axis, reason)

    def protect_axis(self, axis: Axis, reason: str) -> None:
        """Forbid cutting the axis."""
        self._space(axis).reasons.append(reason)

    def transpose(self, result: Ref, matrix: Ref) -> None:
        """Say that `result` is `matrix` with its two axes swapped."""
        self._transposed[result.key] = matrix
        self.set_axes(result, list(reversed(self.axes(matrix))))

    def transposed(self, ref: Ref) -> Ref | None:
        """Return the matrix that the ref is the transpose of, or None."""
        return self._transposed.get(ref.key)

    def count(self, weight: Ref, multiply_adds: int) -> None:
        """Count the multiply-adds that a weight takes part in, for all samples of the trace."""
        name = self.parameter(weight)
        if name is not None:
            per_entry = multiply_adds // prod(weight.shape) // self._samples
            self.uses.append((name, per_entry))

    # --- the union-find -------------------------------------------------------------------

    def find(self, space: int) -> int:
        """Return the representative of the space's set."""
        root = space
        while self._parent[root] != root:
            root = self._parent[root]
        while self._parent[space] != root:
            self._parent[space], space = root, self._parent[space]
        return root

    def owned_spaces(self) -> tuple[Space, ...]:
        """Return every set that owns a part of a parameter, in order of appearance.

        A parameter that was used before it was owned, where no rule said what that use cuts
        with it, is protected here.
        """
        for name, before, since in self._former:
            old, new = self._space(before), self._space(since)
            if old is not new and (old.reasons or old.slices):
                new.reasons += old.reasons or [f"{name} is used twice, in ways that don't agree"]
        self._former.clear()
        roots = dict.fromkeys(self.find(index) for index in range(len(self._spaces)))
        return tuple(self._spaces[root] for root in roots if self._spaces[root].slices)

    def _space(self, axis: Axis) -> Space:
        return self._spaces[self.find(axis.space)]
