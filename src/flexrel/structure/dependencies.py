"""Which tensor axes stand or fall together: indices, and what rules say of them.

An *index* is one position along one axis of one tensor, such as channel 5 of a weight's outputs.
Indices are numbered through the whole network, so that an array of numbers stands for an axis, and
those that must be cut together are joined. An axis is written as the *factors* that it was
flattened from, most of the time one: an array of indices for each, and position `(i, j, ...)` in
mixed radix is gone when the index `i` of the first factor is, or `j` of the second, and so on.
Taking an axis apart, as attention does with heads, or flattening several into one leaves a
`FlattenedAxis`, whose side it is that can be cut is decided when all is known (`groups.resolve`).
An operation without a rule bars what it touches, with the reason: nothing is ever cut on a guess.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import prod

import numpy as np

from flexrel.core.graph import Role
from flexrel.structure.trace import Operation, Ref, Trace

Indices = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
Axis = tuple[Indices, ...]  # factors, the slowest first; () is an axis of length 1


_MOVES = (  # operations that make no new entries
    "detach alias clone contiguous _to_copy view _unsafe_view reshape _reshape_alias squeeze "
    "unsqueeze flatten unflatten permute transpose t swapaxes movedim numpy_T expand repeat split "
    "split_with_sizes chunk unbind select slice narrow"
)


@dataclass(frozen=True, slots=True, eq=False)
class FlattenedAxis:
    """A flat axis and the factors that it is made of."""

    flat: Indices
    factors: Axis


@dataclass(slots=True)
class AxisDependencies:
    """All that the rules said of a traced network."""

    parameters: dict[str, tuple[Axis, ...]]  # parameter or buffer -> its axes
    count: int = 0  # of indices
    joined: list[tuple[Indices, Indices]] = field(default_factory=list)
    barred: list[tuple[Indices, str]] = field(default_factory=list)
    flattened: list[FlattenedAxis] = field(default_factory=list)
    heads: list[Indices] = field(default_factory=list)
    roles: dict[tuple[str, int], Role] = field(default_factory=dict)
    uses: list[tuple[str, int]] = field(default_factory=list)  # weight, multiply-adds an entry
    rows: list[tuple[Axis, ...]] = field(default_factory=list)  # that each use runs over
    products: list[tuple[int, tuple[Axis, ...]]] = field(default_factory=list)  # of no parameter
    weights: list[str] = field(default_factory=list)  # whose own entries a product multiplies by
    spent: list[tuple[int, int, int]] = field(default_factory=list)  # uses, products, weights then
    sizes: dict[str, list[Axis]] = field(default_factory=dict)  # module -> axes its code sizes
    nodes: dict[str, list[list[Axis]]] = field(default_factory=dict)  # of a graph -> what it makes
    tensors: dict[int, list[Axis]] = field(default_factory=dict)  # key of a Ref -> its axes


class DependencyBuilder:
    """What rules speak to; it fills an `AxisDependencies`."""

    def __init__(self, traced: Trace) -> None:
        self._samples = traced.samples
        self._parameters = traced.trained
        self._flattened: dict[tuple[int, ...], FlattenedAxis] = {}
        self._split: dict[tuple[int, int], tuple[Indices, Indices]] = {}
        self._origin: dict[int, str] = {}  # a tensor made of parameters alone -> the one it is
        self._entries: dict[int, str] = {}  # a tensor -> the one whose entries it has, and no other
        self._starts: list[int] = []  # first index of each parameter's axis, and
        self._slots: list[tuple[str, int]] = []  # which axis that is
        self.said = AxisDependencies({})
        self._axes = self.said.tensors
        self.program = bool(traced.nodes)  # so that numbers in its code can be rewritten
        self.lengths = traced.lengths
        for ref in traced.owned:
            name = traced.parameters[ref.key]
            axes: list[Axis] = []
            for at, size in enumerate(ref.shape):
                self._starts.append(self.said.count)
                self._slots.append((name, at))
                axes.append(self.fresh(size))
            self._origin[ref.key] = name
            self._entries[ref.key] = name
            self._axes[ref.key] = axes
            self.said.parameters[name] = tuple(axes)
        for ref in traced.inputs:
            self.set(
                ref, [self.fresh(n, "it goes together with the network's input") for n in ref.shape]
            )

    # --- what rules ask -------------------------------------------------------------------

    def axes(self, ref: Ref) -> list[Axis]:
        """Return the ref's axes; of a tensor seen for the first time they are barred."""
        if ref.key not in self._axes:
            reason = "it goes together with a tensor that is no parameter, buffer or input"
            self._axes[ref.key] = [self.fresh(size, reason) for size in ref.shape]
        return self._axes[ref.key]

    def is_weight(self, ref: Ref) -> bool:
        """Return whether the tensor is made of parameters alone."""
        return ref.key in self._origin

    # --- what rules say -------------------------------------------------------------------

    def fresh(self, size: int, reason: str = "") -> Axis:
        """Return a new axis, barred if there is a reason."""
        if size <= 1:
            return ()
        first, self.said.count = self.said.count, self.said.count + size
        axis = (np.arange(first, self.said.count),)
        if reason:
            self.bar(axis, reason)
        return axis

    def fixed(self, reason: str) -> Indices:
        """Return a single index, barred: for an axis of length 1 that becomes a part of another."""
        index = np.array([self.said.count])
        self.said.count += 1
        self.bar((index,), reason)
        return index

    def set(self, ref: Ref, axes: list[Axis]) -> None:
        """Say what the axes of a result are; if they don't fit its shape, all are barred."""
        if tuple(prod(map(len, axis)) for axis in axes) != tuple(max(n, 1) for n in ref.shape):
            reason = f"a tensor of shape {list(ref.shape)} is not what its operation's rule expects"
            for axis in axes:
                self.bar(axis, reason)
            axes = [self.fresh(size, reason) for size in ref.shape]
        self._axes[ref.key] = axes

    def made_of_weights(self, operation: Operation) -> None:
        """Note results that are made of parameters alone, and which one they stand for."""
        inputs = operation.inputs
        if not inputs or not all(self.is_weight(ref) for ref in inputs):
            return
        for ref in operation.outputs:
            same = [self._origin[i.key] for i in inputs if prod(i.shape) == prod(ref.shape)]
            trained = (name for name in same if name in self._parameters)
            self._origin[ref.key] = next(trained, next(filter(None, same), ""))
            if (
                inputs[0].key in self._entries
                and operation.name.removeprefix("aten.") in _MOVES.split()
            ):
                self._entries[ref.key] = self._entries[inputs[0].key]

    def join(self, one: Axis, two: Axis) -> Axis:
        """Say that two axes of equal length are cut together; return the finer of them."""
        if list(map(len, one)) == list(map(len, two)):
            self.said.joined += [(a, b) for a, b in zip(one, two, strict=True) if a is not b]
            return one
        self.said.joined.append((self.flat(one), self.flat(two)))
        return max(one, two, key=len)

    def bar(self, axis: Axis, reason: str) -> None:
        """Forbid cutting the axis."""
        self.said.barred += [(factor, reason) for factor in axis]

    def bar_all(self, refs: Iterable[Ref], reason: str) -> None:
        """Forbid cutting any axis of the tensors."""
        for ref in refs:
            for axis in self.axes(ref):
                self.bar(axis, reason)

    def flat(self, axis: Axis) -> Indices:
        """Return the axis as one array of indices."""
        if len(axis) == 1:
            return axis[0]
        key = tuple(map(id, axis))
        if key not in self._flattened:
            (flat,) = self.fresh(prod(map(len, axis)))
            self._flattened[key] = FlattenedAxis(flat, axis)
            self.said.flattened.append(self._flattened[key])
        return self._flattened[key].flat

    def split(self, factor: Indices, first: int) -> tuple[Axis, Axis]:
        """Return the factor as two, the slower of length `first`."""
        rest = len(factor) // first
        if first == 1 or rest == 1:
            return ((), (factor,)) if first == 1 else ((factor,), ())
        if (id(factor), first) not in self._split:
            (slow,), (fast,) = self.fresh(first), self.fresh(rest)
            self._split[id(factor), first] = slow, fast
            self.said.flattened.append(FlattenedAxis(factor, (slow, fast)))
        slow, fast = self._split[id(factor), first]
        return (slow,), (fast,)

    def halves(self, axis: Axis, first: int) -> tuple[Axis, Axis] | None:
        """Return the axis as two, the slower of length `first`; None if factors don't fit."""
        slow: Axis = ()
        rest = list(axis)
        while first > 1:
            factor = rest.pop(0)
            if first % len(factor) == 0:
                slow += (factor,)
                first //= len(factor)
            elif len(factor) % first == 0:
                head, tail = self.split(factor, first)
                slow += head
                rest = [*tail, *rest]
                first = 1
            else:
                return None
        return slow, tuple(rest)

    def role(self, axis: Axis, role: Role) -> None:
        """Say what a parameter's axis is to the operation, if it is a parameter's."""
        for factor in axis:
            at = int(np.searchsorted(self._starts, factor[0], side="right")) - 1
            if at >= 0:
                name, index = self._slots[at]
                if any(factor[0] <= own[-1] for own in self.said.parameters[name][index]):
                    before = self.said.roles.setdefault((name, index), role)
                    if {before, role} >= {"producer", "consumer"}:
                        self.said.roles[name, index] = "both"

    def head(self, axis: Axis) -> None:
        """Say that the axis is one of attention heads."""
        self.said.heads += axis

    def count(self, weight: Ref, multiply_adds: int, *rows: Axis) -> None:
        """Count the multiply-adds that a weight takes part in, for all samples of the trace.

        A weight that is no parameter, nor stands for one, has its own axes for its size.
        `rows` are axes that it runs over and that may be cut too, as in a mixer.
        """
        self.multiplied(weight)
        name = self._origin.get(weight.key)
        times, rest = divmod(multiply_adds, max(prod(weight.shape), 1) * self._samples)
        if name in self._parameters and not rest:
            self.said.uses.append((name, times))
            self.said.rows.append(rows)
        else:
            self.multiply(multiply_adds, *rows, *self.axes(weight))

    def multiplied(self, weight: Ref) -> None:
        """Note that a product multiplies by a tensor: by a parameter's entries, if it has those."""
        if self._entries.get(weight.key) in self._parameters:
            self.said.weights.append(self._entries[weight.key])

    def multiply(self, multiply_adds: int, *axes: Axis) -> None:
        """Count multiply-adds of no parameter, for all samples, and the axes they are along."""
        self.said.products.append((multiply_adds // self._samples, axes))

    def sized(self, operation: Operation, axes: Iterable[Axis] | None = None) -> None:
        """Note axes whose lengths the module's code may hold as numbers; None: all there are.

        The factors that an axis is made of are noted with it.
        """
        noted = self.said.sizes.setdefault(operation.module, [])
        refs = (*operation.inputs, *operation.outputs)
        for axis in [axis for ref in refs for axis in self.axes(ref)] if axes is None else axes:
            noted += [axis] if len(axis) <= 1 else [axis, *((factor,) for factor in axis)]
