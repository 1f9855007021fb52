"""Which units never change, whatever the input, and what they are where a layer reads them.

A filter whose weights are all zero, or whose batch norm has weight zero, gives a constant. When
such a unit goes, the constant can go into the biases of its readers, and nothing is lost.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from flexrel.core.batches import Batch
from flexrel.core.graph import GroupMember, PruningGraph, PruningGroup, layer_of, weight_of
from flexrel.core.plan import Plan
from flexrel.core.running import call, duplicate, tensors_of, undisturbed
from flexrel.structure.modules import Conv, LinearOrConv, TransposedConv
from flexrel.structure.surgery import named_tensors, shrink_
from flexrel.structure.trace import is_made_of_others, run_as_others, slow_path
from flexrel.structure.verify import disagreement

_FORWARDS = tuple(kind.forward for kind in get_args(LinearOrConv))
_PRODUCTS = frozenset({"convolution", "mm", "addmm", "bmm", "baddbmm"})
_HALF = 0.5  # counts are whole numbers, but for rounding


def with_constants(model: nn.Module, example: Batch, graph: PruningGraph) -> PruningGraph:
    """Return the graph with `constant` of groups and `values` of what reads them filled in.

    Args:
        model: is run on the example and left as it was; a copy is cut and run if there are any.
        example: one or two samples.
        graph: of channels or heads.
    """
    tensors = named_tensors(model)
    if not any(_has_zeros(group, tensors) for group in graph.groups):
        return graph
    read = _read(model, example)
    found = replace(graph, groups=tuple(_with_values(group, read) for group in graph.groups))
    masks = {}
    for group in found.groups:
        mask = (
            torch.ones(group.units, dtype=torch.bool) if group.constant is None else ~group.constant
        )
        mask[0] |= not mask.any()
        masks[group.name] = mask
    plan = Plan(found, masks)
    if not plan.removed:
        return graph
    pruned = duplicate(model, share=True)
    shrink_(pruned, plan)
    return graph if disagreement(model, pruned, plan, example) else found


def _has_zeros(group: PruningGroup, tensors: Mapping[str, Tensor]) -> bool:
    """Return whether a weight that makes or passes on a unit has nothing but zeros for it."""
    for member in group.members:
        if not member.reads and member.tensor != layer_of(member.tensor):
            rows = tensors[member.tensor].detach().movedim(member.axis, 0)
            if bool((rows == 0).reshape(len(rows), -1).all(1).any()):
                return True
    return False


def _with_values(group: PruningGroup, read: Mapping[str, Tensor]) -> PruningGroup:
    """Return the group with what its readers take in of units that never change.

    Args:
        group: as the trace shows it.
        read: weight -> `[groups, axis]`, NaN for what changes or can't go into the bias.
    """
    readers = [member for member in group.members if member.reads]
    if not all(member.tensor in read for member in readers):
        return group
    taken = [read[member.tensor].T[member.index] for member in readers]  # [units, inner, groups]
    constant = torch.stack([values.isfinite().flatten(1).all(1) for values in taken]).all(0)
    if not constant.any():
        return group
    filled = {
        id(member): replace(member, values=values.where(constant[:, None, None], 0.0))
        for member, values in zip(readers, taken, strict=True)
    }
    members: tuple[GroupMember, ...] = tuple(
        filled.get(id(member), member) for member in group.members
    )
    return replace(group, members=members, constant=constant)


def _read(model: nn.Module, example: Batch) -> dict[str, Tensor]:
    """Return what each layer takes in that never changes: weight -> `[groups, axis]`, else NaN.

    A layer whose input is not seen, because its weight is used without it or it runs twice, is
    not there.
    """
    names = {id(tensor): name for name, tensor in model.named_parameters()}
    seen: dict[str, list[tuple[LinearOrConv, Tensor, Tensor]]] = {}
    variation = _Variation(example)

    def watch(name: str, layer: LinearOrConv, inputs: tuple[Any, ...]) -> None:
        for x in inputs[:1]:
            seen.setdefault(name, []).append((layer, x.clone(), variation.of(x)))

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if not isinstance(module, LinearOrConv) or type(module).forward not in _FORWARDS:
                continue
            weight = names.get(id(module.weight))
            bias = weight_of(name).removesuffix("weight") + "bias"
            if weight == weight_of(name) and names.get(id(module.bias), bias) == bias:
                stack.callback(module.register_forward_pre_hook(partial(watch, weight)).remove)
        stack.enter_context(undisturbed(model))
        stack.enter_context(torch.no_grad())
        stack.enter_context(slow_path())
        with variation:
            call(model, example)
    uses = variation.uses
    return {
        name: _constants(*calls[0])
        for name, calls in seen.items()
        if len(calls) == 1 and uses(model.get_parameter(name)) == 1
    }


def _constants(layer: LinearOrConv, x: Tensor, varies: Tensor) -> Tensor:
    """Return `[groups, axis]`: what the layer takes in that never changes, else NaN."""
    axis = -1 if isinstance(layer, nn.Linear) else 1
    rows, moving = (t.movedim(axis, 0).flatten(1) for t in (x, varies))
    same = (rows == rows[:, :1]).all(1) & ~moving.any(1)
    if not isinstance(layer, nn.Linear) and _has_border(layer):
        same &= rows[:, 0] == 0
    values = rows[:, 0].double().where(same, torch.nan).cpu()
    return values.reshape(layer.groups if isinstance(layer, Conv) else 1, -1)


def _has_border(layer: Conv | TransposedConv) -> bool:
    """Return whether outputs at the border add up fewer entries of the kernel."""
    if isinstance(layer, TransposedConv):
        return True
    padded = layer.padding != "valid" and any(side != 0 for side in layer.padding)
    return padded and layer.padding_mode == "zeros"


class _Variation(TorchDispatchMode):
    """Follows which entries of each tensor depend on the network's input."""

    def __init__(self, example: Batch) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._flags: dict[int, tuple[Tensor, int]] = {}  # which entries depend, known at a step
        self._written: dict[int, int] = {}  # storage -> the last step that overwrote it
        self._used: dict[int, int] = {}  # where a tensor begins -> products that read it
        self._alive: list[Tensor] = []  # so that no id is used twice
        self._step = 0
        for tensor in example.tensors:
            self._set(tensor, _all_of(tensor))

    def of(self, tensor: Tensor) -> Tensor:
        """Return which entries depend on the input."""
        flags, step = self._flags.get(id(tensor), (None, -1))
        if step < self._written.get(tensor.untyped_storage().data_ptr(), -1):
            return _all_of(tensor)
        return torch.zeros_like(tensor, dtype=torch.bool) if flags is None else flags

    def uses(self, weight: Tensor) -> int:
        """Return how many products and convolutions read the weight."""
        return self._used.get(weight.data_ptr(), 0)

    def _set(self, tensor: Tensor, flags: Tensor) -> None:
        self._alive.append(tensor)
        self._flags[id(tensor)] = flags, self._step

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - an OpOverload
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - as the operation
        kwargs = kwargs or {}
        if is_made_of_others(func):
            with self:
                return run_as_others(func, args, kwargs)
        given = tensors_of([args, kwargs])
        flags = [self.of(tensor) for tensor in given]  # before it runs: it may overwrite them
        result = func(*args, **kwargs)
        name = func.overloadpacket.__name__.rstrip("_")
        self._step += 1
        if name in _PRODUCTS:
            for tensor in given:
                self._used[tensor.data_ptr()] = self._used.get(tensor.data_ptr(), 0) + 1
        chance = torch.Tag.nondeterministic_seeded in func.tags
        if chance or any(bool(flag.any()) for flag in flags):
            made = tensors_of(result)
            plain = _pointwise if torch.Tag.pointwise in func.tags else _unknown
            follow = _unknown if chance else _FLOWS.get(name, plain)
            found = follow(func, args, kwargs, flags)
            for at, tensor in enumerate(made):
                known = at < len(found) and found[at].shape == tensor.shape
                self._set(tensor, found[at] if known else _all_of(tensor))
                if func._schema.is_mutable:  # noqa: SLF001
                    self._written[tensor.untyped_storage().data_ptr()] = self._step
        return result


def _all_of(tensor: Tensor) -> Tensor:
    return torch.ones_like(tensor, dtype=torch.bool)


# --- which entries of an operation's results depend on the input, if these of its tensors do -----

Varying = list[Tensor]
Flow = Callable[[Any, tuple[Any, ...], Mapping[str, Any], Varying], Varying]


def _unknown(_: Any, args: Any, kwargs: Any, flags: Varying) -> Varying:  # noqa: ANN401, ARG001
    """Say nothing, which stands for all entries."""
    return []


def _pointwise(_: Any, args: Any, kwargs: Any, flags: Varying) -> Varying:  # noqa: ANN401, ARG001
    return [torch.stack(torch.broadcast_tensors(*flags)).any(0)]


def _move(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], flags: Varying) -> Varying:  # noqa: ANN401
    try:
        return tensors_of(func(*_replaced(args, iter(flags)), **kwargs))
    except RuntimeError:  # the flags lie in memory in another way
        return []


def _replaced(value: Any, flags: Iterator[Tensor]) -> Any:  # noqa: ANN401
    """Return an argument with each tensor replaced by its flags."""
    if isinstance(value, Tensor):
        return next(flags)
    return [_replaced(v, flags) for v in value] if isinstance(value, list | tuple) else value


def _pool(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], flags: Varying) -> Varying:  # noqa: ANN401
    return [t > 0 for t in tensors_of(func(flags[0].float(), *args[1:], **kwargs))[:1]]


def _norm(_: Any, args: tuple[Any, ...], kwargs: Any, flags: Varying) -> Varying:  # noqa: ANN401, ARG001
    weight, training = args[1], args[5]
    if weight is None or training is True or any(bool(flag.any()) for flag in flags[1:]):
        return []
    return [flags[0] & (weight != 0).view(-1, *[1] * (flags[0].ndim - 2))]


def _convolution(
    func: Any,  # noqa: ANN401
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    flags: Varying,
) -> Varying:
    if any(bool(flag.any()) for flag in flags[1:]):
        return []
    return [func(flags[0].float(), (args[1] != 0).float(), None, *args[3:], **kwargs) > _HALF]


def _product(_: Any, args: tuple[Any, ...], kwargs: Any, flags: Varying) -> Varying:  # noqa: ANN401, ARG001
    """Follow a matrix that varies through one that does not, which may be behind a bias."""
    *bias, left, right = flags
    if right.any() or any(bool(flag.any()) for flag in bias):
        return []
    return [left.float() @ (args[len(flags) - 1] != 0).float() > _HALF]


def _flows() -> dict[str, Flow]:
    pointwise = "_to_copy clone contiguous masked_fill copysign hardswish _prelu_kernel where"
    moves = (
        "view _unsafe_view reshape _reshape_alias squeeze unsqueeze flatten unflatten permute "
        "transpose t expand repeat cat stack select unbind split split_with_sizes slice alias "
        "constant_pad_nd detach flip roll native_channel_shuffle pixel_shuffle pixel_unshuffle"
    )
    pools = (
        "mean sum amax max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d "
        "avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d upsample_nearest1d "
        "upsample_nearest2d upsample_nearest3d"
    )
    norms = "native_batch_norm cudnn_batch_norm _native_batch_norm_legit_no_training"
    groups: list[tuple[str, Flow]] = [
        (pointwise, _pointwise),
        (moves, _move),
        (pools, _pool),
        (norms, _norm),
        ("convolution", _convolution),
        ("mm addmm", _product),
    ]
    return {name: flow for names, flow in groups for name in names.split()}


_FLOWS = _flows()
