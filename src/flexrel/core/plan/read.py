"""Plans from JSON: nothing in it is taken on trust. docs/format.md has the format."""

import json
import zlib
from base64 import b64decode
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, get_args

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
    weight_of,
)
from flexrel.core.plan.write import FORMAT, VERSION, Whole
from flexrel_edge.records import is_text, show

_OF_GROUP = "name kind shape units kept keep constant members blocks layout"
_LARGEST = 2**40  # of any length or count
_POSITIONS = 2**28  # in all runs of a plan
_ZLIB_RATIO = 1032  # no zlib stream expands further


def parse(data: bytes) -> tuple[PruningGraph, dict[str, Tensor]]:
    """Return the graph and the masks of what `dump` wrote.

    Raises:
        ValueError: it is something else; says what is wrong where.
    """
    content = json.loads(data, object_pairs_hook=_without_twins)
    if not isinstance(content, dict) or "format" not in content:
        raise ValueError("it is not an object that names its format")
    found = content["format"], content.get("version")
    if found != (FORMAT, VERSION):
        raise ValueError(
            f"it is {show(found[0])} version {show(found[1])}, "
            f"expected {FORMAT!r} version {VERSION}"
        )
    _, _, network, granularity, groups, protected, attributes, shapes, uses, work = _fields(
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
    pattern = Pattern.of(_text(granularity, "its granularity"))
    known = _shapes(shapes)
    reader = _Groups(known, pattern)
    read = [reader.group(group) for group in _list(groups, "groups")]
    if len({group.name for group, _ in read}) != len(read):
        raise ValueError("two of its groups have one name")
    graph = PruningGraph(
        granularity,
        tuple(group for group, _ in read),
        tuple(_protected(entry) for entry in _list(protected, "protected")),
        known,
        tuple(_use(entry, known) for entry in _list(uses, "uses")),
        tuple(_work(entry) for entry in _list(work, "work")),
        tuple(_attribute(entry) for entry in _list(attributes, "attributes")),
        _text(network, "its network"),
    )
    return graph, {group.name: mask for group, mask in read}


class _Groups:
    """Reads groups; all of them together may not be larger than a network is."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], pattern: Pattern) -> None:
        self._shapes = shapes
        self._pattern = pattern
        self._left = _POSITIONS

    def group(self, value: object) -> tuple[PruningGroup, Tensor]:
        name, kind, shape, units, kept, keep, constant, members, blocks, layout = _fields(
            value, "a group", *_OF_GROUP.split()
        )
        what = f"group {show(_text(name, 'the name of a group'))}"
        if kind not in get_args(GroupKind):
            raise ValueError(f"{what} is of kind {show(kind)}")
        sizes = tuple(_count(size, f"the shape of {what}", 1) for size in _list(shape, what))
        if units != prod(sizes) or isinstance(units, bool) or prod(sizes) > _LARGEST:
            raise ValueError(f"{what} has {show(units)} units and the shape {show(list(sizes))}")
        fixed = self._kept(constant, units, what) if constant != [] else None
        listed = _list(members, f"the members of {what}")
        found = tuple(self._member(member, what, sizes, fixed) for member in listed)
        mask = self._kept(keep, units, what) if found else _unpacked(keep, units, what)
        if kept != int(mask.sum()) or isinstance(kept, bool):
            raise ValueError(f"{what} says that it keeps {show(kept)}, but {int(mask.sum())} do")
        over = tuple(self._block(block, what) for block in _list(blocks, f"the blocks of {what}"))
        if over and sizes != (len(over),):
            raise ValueError(f"{what} has {len(over)} blocks and the shape {show(list(sizes))}")
        lies = self._layout(layout, name, sizes, what)
        return PruningGroup(name, sizes, found, kind, fixed, over, lies), mask.view(sizes)

    def _block(self, value: object, what: str) -> ResidualBlock:
        module, tensors, makers, macs, place = _fields(
            value, f"a block of {what}", "module", "tensors", "makers", "macs", "place"
        )
        where = f"block {show(_text(module, f'the module of a block of {what}'))}"
        known = tuple(_text(name, f"a tensor of {where}") for name in _list(tensors, where))
        if strange := [name for name in known if name not in self._shapes]:
            raise ValueError(f"{where} has {show(strange[0])}, which is no parameter")
        at = None
        if place is not None:
            sizes = [_count(n, f"the place of {where}") for n in _list(place, where)]
            if len(sizes) != 2 or sizes[0] >= sizes[1]:  # noqa: PLR2004 - an entry of how many
                raise ValueError(f"{where} returns {show(sizes)}, expected an entry and a length")
            at = sizes[0], sizes[1]
        return ResidualBlock(
            module,
            known,
            tuple(_text(name, f"a maker of {where}") for name in _list(makers, where)),
            _count(macs, f"the multiply-adds of {where}"),
            at,
        )

    def _layout(
        self, value: object, name: str, sizes: tuple[int, ...], what: str
    ) -> WeightLayout | None:
        """Return the layout of a group's weight; its shape and blocks are told elsewhere."""
        if self._pattern.unit not in ("n:m", "block"):
            if value is not None:
                raise ValueError(f"{what} has a layout {show(value)}, but no groups or blocks")
            return None
        groups, transposed = _fields(value, f"the layout of {what}", "groups", "transposed")
        shape = self._shapes.get(weight_of(name))
        if shape is None or not isinstance(transposed, bool):
            raise ValueError(f"{what} has weight {shape}, and a layout {show(value)}")
        block = self._pattern.size if self._pattern.unit == "block" else None
        layout = WeightLayout(shape, _count(groups, f"the groups of {what}", 1), transposed, block)
        if layout.grid != sizes:
            raise ValueError(f"{what} has shape {list(sizes)}, expected {list(layout.grid)}")
        return layout

    def _member(
        self, value: object, what: str, shape: tuple[int, ...], fixed: Tensor | None
    ) -> GroupMember:
        tensor, axis, role, each, by, index, values = _fields(
            value, f"a member of {what}", "tensor", "axis", "role", "each", "by", "index", "values"
        )
        where = f"member {show(_text(tensor, f'the tensor of {what}'))} of {what}"
        if role not in get_args(Role) or by not in ("units", "places") or len(shape) != 1:
            raise ValueError(f"{where} is a {show(role)} by {show(by)}, of shape {list(shape)}")
        known = self._shapes.get(tensor)
        at = _count(axis, f"the axis of {where}")
        if known is not None and at >= len(known):
            raise ValueError(f"{where} is along axis {at} of a tensor of shape {list(known)}")
        positions = self._positions(index, known[at] if known else _LARGEST, where)
        if len(positions) != shape[0] * _count(each, f"the positions of {where}", 1):
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
        found = [_run(run, below, what) for run in _list(value, f"the positions of {what}")]
        self._left -= sum(map(len, found))
        if self._left < 0:
            raise ValueError(f"it has more than {_POSITIONS} positions")
        arrays = [np.arange(r.start, r.stop, r.step, dtype=np.int64) for r in found]
        return np.concatenate([np.zeros(0, np.int64), *arrays])


def _values(value: object, fixed: Tensor | None, each: int, where: str) -> Tensor:
    """Return `[units, each, groups]`: what is read of the units that never change, else 0."""
    try:
        found = np.array(value, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the values of {where} are no table of numbers") from error
    count = 0 if fixed is None else int(fixed.sum())
    if fixed is None or found.ndim != 3 or found.shape[:2] != (count, each) or not found.size:  # noqa: PLR2004
        raise ValueError(f"{where} has values of shape {found.shape} for {count} x {each}")
    if not np.isfinite(found).all():
        raise ValueError(f"{where} has a value that is not finite")
    table = torch.zeros(len(fixed), *found.shape[1:], dtype=torch.float64)
    table[fixed] = torch.from_numpy(found)
    return table


def _run(value: object, below: int, what: str) -> range:
    entries = _list(value, f"a run of {what}")
    whole = all(type(entry) is int and abs(entry) <= _LARGEST for entry in entries)
    if not whole or len(entries) not in (2, 3) or entries[2:] == [0]:
        raise ValueError(f"{what} has a run {show(value)}")
    run = range(*entries)
    if not run or min(run[0], run[-1]) < 0 or max(run[0], run[-1]) >= below:
        raise ValueError(f"{what} has a run {show(value)}, of {below} positions")
    return run


def _unpacked(value: object, units: int, what: str) -> Tensor:
    wanted = -(-units // 8)
    try:
        data = b64decode(_text(value, f"the mask of {what}"), validate=True)
        inflater = zlib.decompressobj()
        bits = inflater.decompress(data, min(wanted, len(data) * _ZLIB_RATIO) + 1)
    except (ValueError, zlib.error) as error:
        raise ValueError(f"the mask of {what} is damaged: {error}") from error
    if len(bits) != wanted or not inflater.eof or inflater.unused_data:
        raise ValueError(f"the mask of {what} has not the bits of {units} units")
    mask = np.unpackbits(np.frombuffer(bits, np.uint8)).astype(np.bool_)
    if mask[units:].any():
        raise ValueError(f"the mask of {what} has more bits than {units} units")
    return torch.from_numpy(mask[:units].copy())


def _protected(value: object) -> Protected:
    name, reason = _fields(value, "a protected layer", "name", "reason")
    return Protected(_text(name, "a protected layer"), _text(reason, "a reason"))


def _shapes(value: object) -> dict[str, tuple[int, ...]]:
    if not isinstance(value, dict):
        raise ValueError(f"its shapes are {show(value)}")  # noqa: TRY004 - of what is read
    shapes = {
        _text(name, "a parameter"): tuple(
            _count(n, f"the shape of {show(name)}")
            for n in _list(shape, f"the shape of {show(name)}")
        )
        for name, shape in value.items()
    }
    if sum(prod(shape) for shape in shapes.values()) > _LARGEST:
        raise ValueError("its shapes are larger than any network")
    return shapes


def _use(value: object, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, int]:
    weight, times = _pair(value, "a use")
    if weight not in shapes:
        raise ValueError(f"it uses {show(weight)}, which has no shape")
    return weight, times


def _work(value: object) -> ProductMacs:
    macs, axes = _fields(value, "work", "macs", "axes")
    found = []
    for axis in _list(axes, "the axes of work"):
        entries = _list(axis, "an axis of work")
        if len(entries) != 2:  # noqa: PLR2004 - length and units
            raise ValueError(f"an axis of work is {show(axis)}")
        found.append((_count(entries[0], "the length of work", 1), _units(entries[1], "work")))
    return ProductMacs(_count(macs, "the multiply-adds of work"), tuple(found))


def _attribute(value: object) -> SizeAttribute:
    module, name, place, units = _fields(value, "an attribute", "module", "name", "place", "units")
    return SizeAttribute(
        _text(module, "the module of an attribute"),
        _text(name, "the name of an attribute"),
        None if place is None else _count(place, "the place of an attribute"),
        _units(units, "an attribute"),
    )


def _units(value: object, what: str) -> tuple[tuple[str, int], ...]:
    return tuple(
        _pair(entry, f"a group of {what}") for entry in _list(value, f"the groups of {what}")
    )


def _pair(value: object, what: str) -> tuple[str, int]:
    entries = _list(value, what)
    if len(entries) != 2:  # noqa: PLR2004 - it is a pair
        raise ValueError(f"{what} is {show(value)}, expected a name and a count")
    return _text(entries[0], what), _count(entries[1], what)


def _fields(value: object, what: str, *names: str) -> Sequence[Any]:
    if not isinstance(value, dict) or sorted(value) != sorted(names):
        found = sorted(value) if isinstance(value, dict) else value
        raise ValueError(f"{what} is {show(found)}, expected {', '.join(names)}")
    return [value[name] for name in names]


def _list(value: object, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{what} is {show(value)}, expected a list")  # noqa: TRY004 - as all
    return value


def _text(value: object, what: str) -> str:
    if not isinstance(value, str) or not is_text(value):
        raise ValueError(f"{what} is {show(value)}, expected a text")
    return value


def _count(value: object, what: str, least: int = 0) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= _LARGEST:
        raise ValueError(f"{what} is {show(value)}, expected a whole number from {least}")
    return value


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("it has a key twice")
    return found
