"""Whole residual blocks: modules that add a branch to their input, and can be passed over."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import prod

import torch
from torch import nn

from flexrel.core.batches import Batch
from flexrel.core.graph import (
    ProductMacs,
    Protected,
    PruningGraph,
    PruningGroup,
    ResidualBlock,
    layer_of,
)
from flexrel.core.plan import Plan
from flexrel.core.running import duplicate, fingerprint
from flexrel.errors import ModelError
from flexrel.structure.dependencies import AxisDependencies
from flexrel.structure.modules import LinearOrConv
from flexrel.structure.surgery import shrink_
from flexrel.structure.trace import Call, Trace
from flexrel.structure.verify import disagreement, untrainable

_NAME = "blocks"  # of the group of all blocks


def blocks_of(
    model: nn.Module,
    example: Batch,
    traced: Trace,
    dependencies: AxisDependencies,
    keep: Sequence[str],
) -> PruningGraph:
    """Return the blocks of a network that can be passed over, and why other layers can't be.

    A block is a module called once whose output derives from the sum of its first argument and
    of something that it computes of that with weights of its own; of modules inside one another
    the innermost. It returns one tensor of that argument's shape, alone or in a tuple of Nones.

    Args:
        model: left as it was; copies without blocks are run.
        example: one or two samples.
        traced: the model on the example.
        dependencies: what the rules say of it: which weights each operation uses.
        keep: names of layers to leave alone, with the blocks that they are in.

    Raises:
        ModelError: there are not two blocks: one stays always.
    """
    found = _innermost(traced, dependencies)
    blocks = [_block(model, traced, dependencies, each, found) for each in found]
    layers = [name for name, module in model.named_modules() if isinstance(module, LinearOrConv)]
    refused = {
        b.module: "it is left alone with a layer in it, which is kept on request"
        for b in blocks
        if any(_within(layer, b.module) for layer in keep)
    }
    graph = PruningGraph(
        "depth",
        (_group([block for block in blocks if block.module not in refused]),)
        if len(blocks) > len(refused)
        else (),
        (),
        {name: tuple(tensor.shape) for name, tensor in model.named_parameters()},
        tuple(dependencies.uses),
        tuple(ProductMacs(macs, ()) for macs, _ in dependencies.products),
        fingerprint=fingerprint(model),
    )
    refused |= _failing(model, example, graph)
    good = [block for block in blocks if block.module not in refused]
    protected = [Protected(*pair) for pair in refused.items()]
    held = [block.module for block in blocks]
    for layer in layers:
        if not any(_within(layer, module) for module in held):
            why = (
                "kept on request" if layer in keep else "it is in no block that can be passed over"
            )
            protected.append(Protected(layer, why))
    if len(good) < 2:  # noqa: PLR2004 - one stays, so there is nothing to choose
        raise ModelError(_too_few(good, protected))
    return PruningGraph(
        "depth",
        (_group(good),),
        tuple(protected),
        graph.shapes,
        graph.uses,
        graph.products,
        fingerprint=graph.fingerprint,
    )


def _group(blocks: Sequence[ResidualBlock]) -> PruningGroup:
    return PruningGroup(_NAME, (len(blocks),), kind="block", blocks=tuple(blocks))


def _too_few(good: Sequence[ResidualBlock], protected: Sequence[Protected]) -> str:
    what = f"only {good[0].module!r} is" if good else "there is none"
    others = next((f" ({p.name}: {p.reason})" for p in protected if "tried" in p.reason), "")
    return (
        "the network can't be pruned by depth: that takes two modules that return their input "
        f"plus a branch, in its shape, and {what}{others}; use granularity='channel'"
    )


def _within(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


# --- which modules are blocks -------------------------------------------------------------------


def _innermost(traced: Trace, dependencies: AxisDependencies) -> list[Call]:
    times = Counter(each.module for each in traced.calls)
    found: list[Call] = []
    for each in traced.calls:  # those inside come before what they are in
        alone = each.module and times[each.module] == 1
        if not alone or any(_contains(each, other) for other in found):
            continue
        if _adds(traced, each) and _makers(traced, dependencies, each):
            found.append(each)
    return found


def _contains(outer: Call, inner: Call) -> bool:
    start, stop = outer.operations.start, outer.operations.stop
    return start <= inner.operations.start and inner.operations.stop <= stop


def _adds(traced: Trace, call: Call) -> bool:
    """Return whether what the module returns derives from the sum of its input and a branch."""
    given, made = call.given, call.made
    if given is None or made is None or given.shape != made.shape:
        return False
    branch: set[int] = set()  # what derives from the input, but for the input itself
    summed: set[int] = set()  # what derives from a sum
    for at in call.operations:
        operation = traced.operations[at]
        keys = {ref.key for ref in operation.inputs}
        outputs = {ref.key for ref in operation.outputs}
        adds = operation.name.rstrip("_") == "aten.add" and given.key in keys
        if keys & summed or (adds and keys & (branch - {given.key})):
            summed |= outputs
        if keys & (branch | {given.key}):
            branch |= outputs
    return made.key in summed


def _makers(traced: Trace, dependencies: AxisDependencies, call: Call) -> tuple[str, ...]:
    """Return the layers that make what a block adds: the last before the sums, going back."""
    spent = [(0, 0, 0), *dependencies.spent]
    made, given = call.made, call.given
    wanted = {made.key} if made else set()
    stop = {given.key} if given else set()
    makers: list[str] = []
    for at in reversed(call.operations):
        operation = traced.operations[at]
        outputs = {ref.key for ref in operation.outputs}
        if not outputs & wanted:
            continue
        before, after = spent[at], spent[at + 1]
        weights = [name for name, _ in dependencies.uses[before[0] : after[0]]]
        weights += dependencies.weights[before[2] : after[2]]
        makers += [layer_of(name) for name in weights]
        wanted -= outputs
        if not weights:
            wanted |= {ref.key for ref in operation.inputs} - stop
    return tuple(dict.fromkeys(reversed(makers)))


# --- what goes with them ------------------------------------------------------------------------


def _block(
    model: nn.Module,
    traced: Trace,
    dependencies: AxisDependencies,
    call: Call,
    blocks: Iterable[Call],
) -> ResidualBlock:
    modules = [each.module for each in blocks]
    holders: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        holders.setdefault(id(parameter), []).append(name)
    tensors = [
        name
        for name, parameter in model.named_parameters()
        if any(_within(other, call.module) for other in holders[id(parameter)])
        and all(any(_within(n, m) for m in modules) for n in holders[id(parameter)])
    ]
    spent = [(0, 0, 0), *dependencies.spent]
    macs = 0
    for before, after in pairwise(spent[call.operations.start : call.operations.stop + 1]):
        for name, times in dependencies.uses[before[0] : after[0]]:
            macs += times * prod(model.get_parameter(name).shape)
        macs += sum(work for work, _ in dependencies.products[before[1] : after[1]])
    return ResidualBlock(
        call.module, tuple(tensors), _makers(traced, dependencies, call), macs, call.place
    )


# --- trying it ----------------------------------------------------------------------------------


def _failing(model: nn.Module, example: Batch, graph: PruningGraph) -> dict[str, str]:
    """Return the blocks without which the network does not work, and what happens.

    Every other block is passed over, and the rest in their stead; where that fails, each alone.
    """
    count = graph.units
    if count < 2 or all(  # noqa: PLR2004
        _failure(model, example, graph, range(start, count, 2)) is None for start in (0, 1)
    ):
        return {}
    failed: dict[str, str] = {}
    for unit, block in enumerate(graph.groups[0].blocks):
        if why := _failure(model, example, graph, [unit]):
            failed[block.module] = f"passing it over was tried and failed: {why}"
    return failed


def _failure(
    model: nn.Module, example: Batch, graph: PruningGraph, gone: Sequence[int]
) -> str | None:
    mask = torch.ones(graph.units, dtype=torch.bool)
    mask[list(gone)] = False
    plan = Plan(graph, {_NAME: mask})
    try:
        pruned = duplicate(model, share=True)
        shrink_(pruned, plan)
        return disagreement(model, pruned, plan, example) or untrainable(pruned, example)
    except ModelError as error:
        return str(error)
