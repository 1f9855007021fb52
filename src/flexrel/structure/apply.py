"""From a plan to a network: zeros for weights and blocks, smaller tensors for channels."""

from collections.abc import Mapping

from torch import nn

from flexrel.core.batches import Batch
from flexrel.core.fingerprint import fingerprint
from flexrel.core.graph import Attribute, PruningGraph, PruningGroup, weight_of
from flexrel.core.plan import Plan
from flexrel.core.running import duplicate, unwrapped
from flexrel.errors import ModelError, UsageError
from flexrel.structure.cut import Number, mask_, named_tensors, number_in, shrink_
from flexrel.structure.probe import disagreement


def apply(model: nn.Module, plan: Plan) -> nn.Module:
    """Return a copy of the model with the plan carried out; the model itself is not changed.

    Args:
        model: that the plan's graph was read from, or another of the same architecture.
        plan: weights and blocks of them become zeros; channels, heads and residual blocks are
            removed for real.

    Raises:
        UsageError: the plan is of another network; says where they differ.
        ModelError: the model can't be copied.
    """
    model = unwrapped(model)
    _check_fit(model, plan.graph)
    pruned = duplicate(model)
    if plan.graph.pattern.zeros:
        mask_(pruned, plan)
    else:
        shrink_(pruned, plan)
    return pruned


def _check_fit(model: nn.Module, graph: PruningGraph) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in named_tensors(model).items()}
    modules = {name for name, _ in model.named_modules()}
    parameters = {name: shapes[name] for name, _ in model.named_parameters()}
    for name in sorted(parameters.keys() ^ graph.shapes.keys()):
        lacks = "the model lacks" if name in graph.shapes else "the plan does not know"
        raise _stranger(f"{lacks} {name}")
    for name, shape in graph.shapes.items():
        if parameters[name] != shape:
            raise _stranger(f"{name} is {list(parameters[name])}, the plan's is {list(shape)}")
    for group in graph.groups:
        shape = group.layout.shape if group.layout else group.shape
        if graph.pattern.zeros and shapes.get(weight_of(group.name)) != shape:
            raise _stranger(f"the model has no layer {group.name!r} of shape {list(shape)}")
        _check_slices(group, shapes)
        for block in group.blocks:
            if block.module not in modules:
                raise _stranger(f"the model has no module {block.module!r}")
    for attribute in graph.attributes:
        _check_number(model, graph, attribute)
    if graph.fingerprint and fingerprint(model) != graph.fingerprint:
        raise _stranger("its tensors have the same shapes, but its modules are others")


def _check_slices(group: PruningGroup, shapes: Mapping[str, tuple[int, ...]]) -> None:
    for part in group.members:
        shape, last = shapes.get(part.tensor), int(part.index.max())
        if shape is None:
            raise _stranger(f"the model lacks {part.tensor}")
        if part.axis >= len(shape) or last >= shape[part.axis]:
            place = f"position {last} along axis {part.axis}"
            raise _stranger(f"{part.tensor} is {list(shape)}, without {place}")


def _check_number(model: nn.Module, graph: PruningGraph, attribute: Attribute) -> None:
    number = Number(attribute.module, attribute.name, attribute.place)
    units = {group.name: group.units for group in graph.groups}
    least = sum(each * units.get(group, 0) for group, each in attribute.units)
    have = number_in(model, number)
    if have < least:
        raise _stranger(f"{number} is {have}, but units for {least} can go")


def _stranger(why: str) -> UsageError:
    return UsageError(f"the plan is of another network: {why}")


def verify(model: nn.Module, pruned: nn.Module, plan: Plan, example: Batch) -> None:
    """Check that the pruned network computes what the model with zeroed units computes.

    Raises:
        ModelError: it does not, or it does not run; says by how much they differ.
    """
    reason = disagreement(model, pruned, plan, example)
    if reason is not None:
        raise ModelError(
            f"{reason}; nothing was returned. Leave layers alone with keep= to find the cause"
        )
