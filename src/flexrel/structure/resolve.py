"""From what the rules said to units: which atoms go together, and which must stay, with why.

Where an axis is a product of several, one of them at most can be cut: position `(i, j)` of a
flat axis goes with `i`, or with `j`. A factor that is barred leaves the choice to the other;
where both could be cut it falls on attention heads, and else on the factor with more units.
"""

from dataclasses import dataclass

import numpy as np

from flexrel.structure.dependencies import Atoms, AxisDependencies, Product

Flags = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
Pairs = list[tuple[Atoms, Atoms]]

_FREE = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True, eq=False)
class Units:
    """What every atom belongs to.

    Attributes:
        of: atom -> its unit, which has the number of its first atom.
        heads: atom -> whether its unit is an attention head.
    """

    of: Atoms
    heads: Flags
    _reason: Atoms
    _reasons: tuple[str, ...]

    def free(self, atoms: Atoms) -> Flags:
        """Return which of the atoms can be cut."""
        free: Flags = self._reason[atoms] == _FREE
        return free

    def reason(self, atoms: Atoms) -> str:
        """Return why the first of the atoms that can't be cut must stay."""
        return self._reasons[int(self._reason[atoms].min())]


def resolve(coupling: AxisDependencies) -> Units:
    """Return the units of a network of which all rules have spoken."""
    units = _Units(coupling)
    waiting = coupling.products
    while waiting:
        undecided = [product for product in waiting if not units.decide(product)]
        if len(undecided) == len(waiting):
            for product in undecided:
                units.choose(product)
                units.join()
            undecided = []
        units.join()
        waiting = undecided
    return units.found()


class _Units:
    """Connected components of atoms, and which of them are barred."""

    def __init__(self, coupling: AxisDependencies) -> None:
        self._root: Atoms = np.arange(coupling.atoms)
        self._reasons = list(dict.fromkeys(reason for _, reason in coupling.barred))
        number = {reason: at for at, reason in enumerate(self._reasons)}
        self._reason = np.full(coupling.atoms, _FREE)  # of each root
        for atoms, reason in coupling.barred:
            self._reason[atoms] = np.minimum(self._reason[atoms], number[reason])
        self._heads = np.zeros(coupling.atoms, bool)
        for atoms in coupling.heads:
            self._heads[atoms] = True
        self._chosen = np.zeros(coupling.atoms, bool)
        self._pairs: Pairs = list(coupling.joined)
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

    def decide(self, product: Product) -> bool:
        """Decide which factor can be cut, if one or none is left; return whether it is so."""
        if not self._free(product.flat).any():
            for factor in product.factors:
                self._bar(factor, int(self._reason[self._root[product.flat]].min()))
        free = [at for at, factor in enumerate(product.factors) if self._free(factor).any()]
        if len(free) > 1:
            return False
        if free:
            self._take(product, free[0])
        else:
            reasons = [self._reason[self._root[factor]].max() for factor in product.factors]
            self._bar(product.flat, int(min(reasons)))
        return True

    def choose(self, product: Product) -> None:
        """Decide which factor can be cut, of several."""
        if self.decide(product):
            return

        def worth(at: int) -> tuple[bool, bool, bool, int]:
            roots = self._root[product.factors[at]]
            left = self._left(product, at)
            return left > 0, bool(self._chosen[roots].any()), bool(self._heads[roots].any()), left

        self._take(product, max(range(len(product.factors)), key=worth))

    def found(self) -> Units:
        """Return the units as they are now."""
        return Units(
            self._root, self._heads[self._root], self._reason[self._root], tuple(self._reasons)
        )

    def _free(self, atoms: Atoms) -> Flags:
        free: Flags = self._reason[self._root[atoms]] == _FREE
        return free

    def _left(self, product: Product, at: int) -> int:
        """Return how many units could be cut if it were this factor that is cut."""
        factor, flat = self._root[product.factors[at]], self._root[product.flat]
        known, number = np.unique(np.concatenate([factor, flat]), return_inverse=True)
        one, two = number[: len(factor)], number[len(factor) :]
        told = [1] * len(product.factors)
        told[at] = -1
        shape = tuple(map(len, product.factors))
        pair = np.broadcast_arrays(two.reshape(shape), one.reshape(told))
        root = _connected(np.arange(len(known)), *(side.ravel() for side in pair))
        barred = np.zeros(len(known), bool)
        barred[root[self._reason[known] != _FREE]] = True
        return int((~barred[np.unique(root[one])]).sum())

    def _bar(self, atoms: Atoms, reason: int) -> None:
        roots = self._root[atoms]
        self._reason[roots] = np.minimum(self._reason[roots], reason)

    def _take(self, product: Product, chosen: int) -> None:
        shape = tuple(map(len, product.factors))
        factor = product.factors[chosen]
        told = [1] * len(shape)
        told[chosen] = -1
        self._pairs.append((product.flat.reshape(shape), factor.reshape(told)))
        self._chosen[self._root[factor]] = True
        why = f"it is cut in {len(factor)} parts, across this"
        if why not in self._reasons:
            self._reasons.append(why)
        for at, other in enumerate(product.factors):
            if at != chosen:
                self._bar(other, self._reasons.index(why))


def _connected(root: Atoms, a: Atoms, b: Atoms) -> Atoms:
    """Return the roots once atoms `a` and `b` are joined: the lowest of each component."""
    root = root.copy()
    while True:
        one, two = root[a], root[b]
        if np.array_equal(one, two):
            return root
        np.minimum.at(root, np.maximum(one, two), np.minimum(one, two))
        while not np.array_equal(root, above := root[root]):
            root = above
