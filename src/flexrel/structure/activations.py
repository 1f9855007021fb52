"""Which tensors a forward pass holds at once, and how they shrink as units go."""

from math import prod

from torch import Tensor, nn

from flexrel.core.batches import Batch, first_samples
from flexrel.core.graph import PruningGraph, ShrinkingAxes
from flexrel.core.memory import Activation, Activations
from flexrel.errors import ModelError
from flexrel.structure.dependencies import AxisDependencies
from flexrel.structure.groups import ResolvedUnits, group_of_units, groups_of, resolve, shrinkage
from flexrel.structure.rules import dependencies_of
from flexrel.structure.trace import Ref, Trace, trace


def activations_of(network: nn.Module, example: Batch, graph: PruningGraph) -> Activations:
    """Return all tensors of one sample's forward pass that are no weights, and while they live.

    A tensor lives from the operation that makes it to the last that reads it, or a view of it;
    the network's inputs and outputs to the end. What is written in place takes nothing more.

    Args:
        network: is run on one sample, in evaluation mode, and left as it was; if it can't be, on
            the whole example, of which one sample has its share.
        example: that the graph was read on.
        graph: what can be pruned of the network.

    Raises:
        ModelError: the network does not run on the example.
    """
    try:
        traced = trace(network, _alone(first_samples(example, 1)))
    except ModelError:
        traced = trace(network, _alone(example))
    dependencies = dependencies_of(traced)
    units = resolve(dependencies)
    known = {group.name: group.units for group in graph.groups if group.members}
    every = [g for g in groups_of(dependencies, units) if known.get(g.name) == g.units]
    owner = {unit: name for unit, (name, _) in group_of_units(dependencies, units, every).items()}
    weights = {traced.memory[ref.key][0] for ref in traced.owned if ref.key in traced.memory}
    first: dict[int, tuple[int, Ref]] = {}  # storage -> the operation that makes it, and as what
    last: dict[int, int] = {}
    end = len(traced.operations)
    for at, read, made in _steps(traced):
        for ref in (*read, *made):
            storage, size = traced.memory.get(ref.key, (0, 0))
            if size and storage not in weights:
                first.setdefault(storage, (at, ref))
                last[storage] = at
    for ref in (*traced.inputs, *traced.outputs):
        if (storage := traced.memory.get(ref.key, (0, 0))[0]) in last:
            last[storage] = end
    sizes = dict(traced.memory.values())
    return Activations(
        tuple(
            Activation(
                -(-sizes[storage] // traced.samples),
                made,
                last[storage],
                _shrinking(dependencies, units, owner, ref),
            )
            for storage, (made, ref) in first.items()
        )
    )


def _alone(batch: Batch) -> Batch:
    """Return the batch with tensors that have memory of their own, and no more than they fill."""
    return batch.mapped(lambda value: value.clone() if isinstance(value, Tensor) else value)


def _steps(traced: Trace) -> list[tuple[int, tuple[Ref, ...], tuple[Ref, ...]]]:
    """Return what each operation reads and makes, before them the inputs, by its number."""
    steps = [(at, op.inputs, op.outputs) for at, op in enumerate(traced.operations)]
    return [(0, (), traced.inputs), *steps]


def _shrinking(
    dependencies: AxisDependencies, units: ResolvedUnits, owner: dict[int, str], ref: Ref
) -> ShrinkingAxes:
    """Return how the axes of a tensor shrink, each factor of a flattened one by itself."""
    axes = dependencies.tensors.get(ref.key, [])
    whole = prod(len(factor) for axis in axes for factor in axis) == max(prod(ref.shape), 1)
    factors = [(factor,) for axis in axes for factor in axis] if whole else []
    pairs = ((len(axis[0]), shrinkage(axis, units, owner)) for axis in factors)
    return tuple((length, by) for length, by in pairs if by)
