"""Plans from JSON: nothing in it is taken on trust. docs/format.md has the format."""

import json
from collections.abc import Mapping
from math import prod
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from flexrel.core.granularity import Pattern, WeightLayout
from flexrel.core.graph import (
    GroupKind,
    GroupMember,
    ProductMacs,
    Protected,
    PruningGraph,
    PruningGroup,
    ResidualBlock,
    Role,
    SizeAttribute,
    tensor_of,
)
from flexrel.core.plan.values import (
    MAX_COUNT,
    bits_in,
    count_in,
    fields_of,
    list_in,
    object_of,
    pair_in,
    run_in,
    text_in,
)
from flexrel.core.plan.write import FORMAT, VERSION, Whole
from flexrel_edge.records import show

_OF_GROUP = "name kind shape units kept keep constant members blocks layout"
_OF_MEMBER = "tensor axis role each by index values"
_POSITIONS = 2**28  # in all runs of a plan


Parts = tuple[PruningGraph, dict[str, Tensor], str]


def parse(data: bytes) -> list[Parts]:
    """Return the graph, the masks and the model's checksum of what `dump` wrote.

    Those of what follows come second, if something does.

    Raises:
        ValueError: it is something else; says what is wrong where.
    """
    content = json.loads(data, object_pairs_hook=object_of)
    then = content.pop("then", None) if isinstance(content, dict) else None
    return [_parts(content), *([] if then is None else [_parts(then)])]


def _parts(content: object) -> Parts:
    if not isinstance(content, dict) or "format" not in content:
        raise ValueError("it is not an object that names its format")
    found = content["format"], content.get("version")
    if found != (FORMAT, VERSION):
        raise ValueError(
            f"it is {show(found[0])} version {show(found[1])}, "
            f"expected {FORMAT!r} version {VERSION}"
        )
    model = text_in(content.pop("model", ""), "its model")
    _, _, network, granularity, groups, protected, attributes, shapes, uses, work = fields_of(
        content,
        "the plan",
        "format",
        "version",
        "network",
        "granularity",
        "groups",
        "protected",
        "attributes",
        "shapes",
        "uses",
        "work",
    )
    pattern = Pattern.of(text_in(granularity, "its granularity"))
    known = _shapes(shapes)
    reader = _Groups(known, pattern)
    read = [reader.group(group) for group in list_in(groups, "groups")]
    if len({group.name for group, _ in read}) != len(read):
        raise ValueError("two of its groups have one name")
    graph = PruningGraph(
        granularity,
        tuple(group for group, _ in read),
        tuple(_protected(entry) for entry in list_in(protected, "protected")),
        known,
        tuple(_use(entry, known) for entry in list_in(uses, "uses")),
        tuple(_work(entry) for entry in list_in(work, "work")),
        tuple(_attribute(entry) for entry in list_in(attributes, "attributes")),
        text_in(network, "its network"),
    )
    return graph, {group.name: mask for group, mask in read}, model


class _Groups:
    """Reads groups; all of them together may not be larger than a network is."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], pattern: Pattern) -> None:
        self._shapes = shapes
        self._pattern = pattern
        self._left = _POSITIONS

    def group(self, value: object) -> tuple[PruningGroup, Tensor]:
        name, kind, shape, units, kept, keep, constant, members, blocks, layout = fields_of(
            value, "a group", *_OF_GROUP.split()
        )
        what = f"group {show(text_in(name, 'the name of a group'))}"
        if kind not in get_args(GroupKind):
            raise ValueError(f"{what} is of kind {show(kind)}")
        sizes = tuple(count_in(size, f"the shape of {what}", 1) for size in list_in(shape, what))
        if units != prod(sizes) or isinstance(units, bool) or prod(sizes) > MAX_COUNT:
            raise ValueError(f"{what} has {show(units)} units and the shape {show(list(sizes))}")
        fixed = self._kept(constant, units, what) if constant != [] else None
        listed = list_in(members, f"the members of {what}")
        found = tuple(self._member(member, what, sizes, fixed) for member in listed)
        mask = self._kept(keep, units, what) if found else bits_in(keep, units, what)
        if kept != int(mask.sum()) or isinstance(kept, bool):
            raise ValueError(f"{what} says that it keeps {show(kept)}, but {int(mask.sum())} do")
        over = tuple(self._block(block, what) for block in list_in(blocks, f"the blocks of {what}"))
        if over and sizes != (len(over),):
            raise ValueError(f"{what} has {len(over)} blocks and the shape {show(list(sizes))}")
        lies = self._layout(layout, name, sizes, what)
        return PruningGroup(name, sizes, found, kind, fixed, over, lies), mask.view(sizes)

    def _block(self, value: object, what: str) -> ResidualBlock:
        module, tensors, makers, macs, place = fields_of(
            value, f"a block of {what}", "module", "tensors", "makers", "macs", "place"
        )
        where = f"block {show(text_in(module, f'the module of a block of {what}'))}"
        known = tuple(text_in(name, f"a tensor of {where}") for name in list_in(tensors, where))
        if strange := [name for name in known if name not in self._shapes]:
            raise ValueError(f"{where} has {show(strange[0])}, which is no parameter")
        at = None
        if place is not None:
            sizes = [count_in(n, f"the place of {where}") for n in list_in(place, where)]
            if len(sizes) != 2 or sizes[0] >= sizes[1]:  # noqa: PLR2004 - an entry of how many
                raise ValueError(f"{where} returns {show(sizes)}, expected an entry and a length")
            at = sizes[0], sizes[1]
        return ResidualBlock(
            module,
            known,
            tuple(text_in(name, f"a maker of {where}") for name in list_in(makers, where)),
            count_in(macs, f"the multiply-adds of {where}"),
            at,
        )

    def _layout(
        self, value: object, name: str, sizes: tuple[int, ...], what: str
    ) -> WeightLayout | None:
        """Return the layout of a group's weight; its shape and blocks are told elsewhere."""
        if self._pattern.unit not in ("n:m", "block"):
            if value is not None:
                raise ValueError(f"{what} has a layout {show(value)}, but no groups or blocks")
            if self._pattern.zeros and self._shapes.get(tensor_of(name, self._shapes)) != sizes:
                raise ValueError(f"{what} has shape {list(sizes)}, and no weight is of this one")
            return None
        groups, transposed = fields_of(value, f"the layout of {what}", "groups", "transposed")
        shape = self._shapes.get(tensor_of(name, self._shapes))
        if shape is None or not isinstance(transposed, bool):
            raise ValueError(f"{what} has weight {shape}, and a layout {show(value)}")
        block = self._pattern.size if self._pattern.unit == "block" else None
        layout = WeightLayout(
            shape, count_in(groups, f"the groups of {what}", 1), transposed, block
        )
        if layout.grid != sizes:
            raise ValueError(f"{what} has shape {list(sizes)}, expected {list(layout.grid)}")
        return layout

    def _member(
        self, value: object, what: str, shape: tuple[int, ...], fixed: Tensor | None
    ) -> GroupMember:
        tensor, axis, role, each, by, index, values = fields_of(
            value, f"a member of {what}", *_OF_MEMBER.split()
        )
        where = f"member {show(text_in(tensor, f'the tensor of {what}'))} of {what}"
        if role not in get_args(Role) or by not in ("units", "places") or len(shape) != 1:
            raise ValueError(f"{where} is a {show(role)} by {show(by)}, of shape {list(shape)}")
        known = self._shapes.get(tensor)
        at = count_in(axis, f"the axis of {where}")
        if known is not None and at >= len(known):
            raise ValueError(f"{where} is along axis {at} of a tensor of shape {list(known)}")
        positions = self._positions(index, known[at] if known else MAX_COUNT, where)
        if len(positions) != shape[0] * count_in(each, f"the positions of {where}", 1):
            raise ValueError(f"{where} has {len(positions)} positions for {shape[0]} x {each}")
        if len(np.unique(positions)) != len(positions):
            raise ValueError(f"{where} has a position twice")
        table = positions.reshape((shape[0], each) if by == "units" else (each, shape[0]))
        entries = table if by == "units" else np.ascontiguousarray(table.T)
        read = None if values is None else _values(values, fixed, each, where)
        return GroupMember(tensor, at, torch.from_numpy(entries), role, read)

    def _kept(self, value: object, units: int, what: str) -> Tensor:
        mask = torch.zeros(units, dtype=torch.bool)
        mask[torch.from_numpy(self._positions(value, units, what))] = True
        return mask

    def _positions(self, value: object, below: int, what: str) -> Whole:
        found = [run_in(run, below, what) for run in list_in(value, f"the positions of {what}")]
        self._left -= sum(map(len, found))
        if self._left < 0:
            raise ValueError(f"it has more than {_POSITIONS} positions")
        arrays = [np.arange(r.start, r.stop, r.step, dtype=np.int64) for r in found]
        return np.concatenate([np.zeros(0, np.int64), *arrays])


def _values(value: object, fixed: Tensor | None, each: int, where: str) -> Tensor:
    """Return `[units, each, groups]`: what is read of the units that never change, else 0."""
    try:
        found = np.array(value, np.float64)
    except (OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"the values of {where} are no table of numbers") from error
    count = 0 if fixed is None else int(fixed.sum())
    if fixed is None or found.ndim != 3 or found.shape[:2] != (count, each) or not found.size:  # noqa: PLR2004
        raise ValueError(f"{where} has values of shape {found.shape} for {count} x {each}")
    if not np.isfinite(found).all():
        raise ValueError(f"{where} has a value that is not finite")
    table = torch.zeros(len(fixed), *found.shape[1:], dtype=torch.float64)
    table[fixed] = torch.from_numpy(found)
    return table


def _protected(value: object) -> Protected:
    name, reason = fields_of(value, "a protected layer", "name", "reason")
    return Protected(text_in(name, "a protected layer"), text_in(reason, "a reason"))


def _shapes(value: object) -> dict[str, tuple[int, ...]]:
    if not isinstance(value, dict):
        raise ValueError(f"its shapes are {show(value)}")  # noqa: TRY004 - of what is read
    shapes = {
        text_in(name, "a parameter"): tuple(
            count_in(n, f"the shape of {show(name)}")
            for n in list_in(shape, f"the shape of {show(name)}")
        )
        for name, shape in value.items()
    }
    if sum(prod(shape) for shape in shapes.values()) > MAX_COUNT:
        raise ValueError("its shapes are larger than any network")
    return shapes


def _use(value: object, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, int]:
    weight, times = pair_in(value, "a use")
    if weight not in shapes:
        raise ValueError(f"it uses {show(weight)}, which has no shape")
    return weight, times


def _work(value: object) -> ProductMacs:
    macs, axes = fields_of(value, "work", "macs", "axes")
    found = []
    for axis in list_in(axes, "the axes of work"):
        entries = list_in(axis, "an axis of work")
        if len(entries) != 2:  # noqa: PLR2004 - length and units
            raise ValueError(f"an axis of work is {show(axis)}")
        found.append((count_in(entries[0], "the length of work", 1), _units(entries[1], "work")))
    return ProductMacs(count_in(macs, "the multiply-adds of work"), tuple(found))


def _attribute(value: object) -> SizeAttribute:
    module, name, place, units = fields_of(
        value, "an attribute", "module", "name", "place", "units"
    )
    return SizeAttribute(
        text_in(module, "the module of an attribute"),
        text_in(name, "the name of an attribute"),
        None if place is None else count_in(place, "the place of an attribute"),
        _units(units, "an attribute"),
    )


def _units(value: object, what: str) -> tuple[tuple[str, int], ...]:
    return tuple(
        pair_in(entry, f"a group of {what}") for entry in list_in(value, f"the groups of {what}")
    )
