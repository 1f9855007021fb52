"""Plans to JSON: all that is needed to carry one out.

docs/format.md has the format. Positions are written as runs, so that a channel's stripes in a
wide layer take one line; masks of single weights as packed bits.
"""

import json
import zlib
from base64 import b64encode
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from flexrel.core.graph import GroupMember, Masks, PruningGraph, PruningGroup

FORMAT, VERSION = "flexrel-plan", 1

Whole = np.ndarray[tuple[int], np.dtype[np.int64]]


def as_json(graph: PruningGraph, masks: Masks, model: str) -> dict[str, Any]:
    """Return the content of `plan.json`."""
    return {
        "format": FORMAT,
        "version": VERSION,
        **({"model": model} if model else {}),
        "network": graph.fingerprint,
        "granularity": graph.granularity,
        "groups": [_group(group, masks[group.name]) for group in graph.groups],
        "protected": [{"name": p.name, "reason": p.reason} for p in graph.protected],
        "attributes": [
            {
                "module": attribute.module,
                "name": attribute.name,
                "place": attribute.place,
                "units": [list(pair) for pair in attribute.units],
            }
            for attribute in graph.attributes
        ],
        "shapes": {name: list(shape) for name, shape in graph.shapes.items()},
        "uses": [list(use) for use in graph.uses],
        "work": [
            {
                "macs": work.macs,
                "axes": [[length, [list(pair) for pair in units]] for length, units in work.axes],
            }
            for work in graph.products
        ],
    }


def _group(group: PruningGroup, mask: Tensor) -> dict[str, Any]:
    kept = mask.flatten().cpu()
    return {
        "name": group.name,
        "kind": group.kind,
        "shape": list(group.shape),
        "units": group.units,
        "kept": int(kept.sum()),
        "keep": runs(kept.nonzero().flatten().numpy()) if group.members else _packed(kept.numpy()),
        "constant": [] if group.constant is None else runs(_places(group.constant)),
        "members": [_member(member, group.constant) for member in group.members],
        "blocks": [
            {
                "module": block.module,
                "tensors": list(block.tensors),
                "makers": list(block.makers),
                "macs": block.macs,
                "place": None if block.place is None else list(block.place),
            }
            for block in group.blocks
        ],
        "layout": None
        if group.layout is None
        else {"groups": group.layout.groups, "transposed": group.layout.transposed},
    }


def _places(mask: Tensor) -> Whole:
    places: Whole = mask.nonzero().flatten().cpu().numpy()
    return places


def _member(member: GroupMember, constant: Tensor | None) -> dict[str, Any]:
    index = member.index.cpu().numpy()
    forms = {"units": runs(index.flatten()), "places": runs(index.T.flatten())}
    by = min(forms, key=lambda form: len(forms[form]))
    return {
        "tensor": member.tensor,
        "axis": member.axis,
        "role": member.role,
        "each": index.shape[1],
        "by": by,
        "index": forms[by],
        "values": None
        if member.values is None or constant is None
        else member.values[constant].tolist(),
    }


def runs(values: Whole) -> list[list[int]]:
    """Return `[start, stop]` and `[start, stop, step]`, as of `range`, that give the values."""
    found: list[list[int]] = []
    steps = np.diff(values)
    turns = np.append(np.flatnonzero(np.diff(steps)) + 1, len(steps))
    at = 0
    while at < len(values):
        start, last = int(values[at]), at
        step = int(steps[at]) if at < len(steps) else 1
        if at < len(steps) and step:
            last = int(turns[np.searchsorted(turns, at, side="right")])
        if step == 1 or last - at < 2:  # noqa: PLR2004 - two far apart are no run
            last = last if step == 1 else at
            found.append([start, start + last - at + 1])
        else:
            found.append([start, start + (last - at + 1) * step, step])
        at = last + 1
    return found


def _packed(mask: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> str:
    return b64encode(zlib.compress(np.packbits(mask).tobytes(), 9)).decode()


def dump(content: Mapping[str, Any]) -> bytes:
    """Return JSON in which each group, member, layer and shape has its line."""
    return ("".join(_lines(content, "", 4)) + "\n").encode()


def _lines(value: object, indent: str, depth: int) -> Iterator[str]:
    inside = indent + " "
    entries = [*value.values()] if isinstance(value, Mapping) else value
    if not depth or not isinstance(entries, list) or not any(map(_nested, entries)):
        yield json.dumps(value, allow_nan=False)
        return
    keys = [f"{json.dumps(key)}: " for key in value] if isinstance(value, Mapping) else None
    yield "{" if keys else "["
    for at, entry in enumerate(entries):
        yield f"{',' if at else ''}\n{inside}{keys[at] if keys else ''}"
        yield from _lines(entry, inside, depth - 1)
    yield f"\n{indent}{'}' if keys else ']'}"


def _nested(entry: object) -> bool:
    return isinstance(entry, list | Mapping)
