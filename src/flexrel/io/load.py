"""Packed files back into networks."""

import json
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

import flexrel_edge
from flexrel.core.folding import folded_in_place
from flexrel.core.graph import weight_of
from flexrel.core.network import check_tensors
from flexrel.core.running import unwrapped
from flexrel.errors import PackError, UsageError
from flexrel.io.recurrent import check_recurrent
from flexrel.io.state import Numbers, check_casts, read, state_of
from flexrel.structure import (
    LinearOrConv,
    SizePlace,
    TransposedConv,
    resize_,
    set_size_,
    size_at,
    skip_,
)
from flexrel_edge.files import read_packed
from flexrel_edge.records import Array

_NO_NUMBERS: Numbers = {}
_SHOWN = 3  # names in an error


def load(
    path: str | Path, into: nn.Module | None = None, *, trust: str | Path | None = None
) -> nn.Module:
    """Return `into` with the packed weights: its shapes are cut to fit, then the weights copied.

    Args:
        path: of a packed file.
        into: the dense architecture, without which there is an error; changed in place. What is on
            the meta device gets its values on the CPU, and a buffer of it that no file has does not
            fit; of a network in `DataParallel` or `torch.compile` the one inside is loaded. Masks,
            norms and parametrizations that are constant in evaluation mode are taken off: its
            weights are plain ones then, as in the file.
        trust: file of public keys, one of which must have signed it.

    Raises:
        UsageError: no `into`, no such file, or tensors that do not fit the model: names, shapes, or
            values that a dtype of the model can't hold; `into` is as it was.
        ModelError: a tensor of the model is sparse, of a class of its own or not initialised.
        PackError: the file is damaged, or not trusted.
    """
    if into is None:
        raise UsageError(
            f"load needs into=, a network of the architecture that {path} was made of, dense or "
            "cut: a packed file has weights and no code. For the arrays alone, "
            "flexrel_edge.read(path); to run its ONNX graph, flexrel_edge.session(path)"
        )
    if not Path(path).is_file():
        raise UsageError(f"{path}: no such file")
    packed = read_packed(path, trust)
    tensors = {name: _tensor(array) for name, array in packed.tensors.items()}
    restore_(into, tensors, packed.metadata, str(path))
    return into


def restore_(
    model: nn.Module, tensors: Mapping[str, Tensor], notes: Mapping[str, str], source: str
) -> None:
    """Make a model what was saved: cut in place to fit, then the weights copied.

    Args:
        model: as `into` of `load`.
        tensors: that were saved, tied ones once.
        notes: that `cut_notes` made, perhaps among others.
        source: said in errors.

    Raises:
        UsageError: tensors do not fit the model, which is as it was.
        ModelError: a tensor of the model can't be written to, as `load` has it.
        PackError: the notes are damaged.
    """
    network = unwrapped(model)
    check_tensors(network)
    if notes.get("form") == "exported" and not isinstance(network, fx.GraphModule):
        raise UsageError(
            f"{source} is of an exported program, whose code was cut too, which no class can take; "
            "use torch.export.load on the model.pt2 beside it"
        )
    try:
        tied = json.loads(notes.get("tied", "{}"))
        tensors = {**tensors, **{name: tensors[first] for name, first in tied.items()}}
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise PackError(f"{source}: its list of tied tensors is damaged: {error}") from error
    try:
        numbers = read(notes.get("attributes", "{}"))
    except (ValueError, AttributeError, RecursionError) as error:
        raise PackError(f"{source}: its list of attributes is damaged: {error}") from error
    try:
        over = _places(json.loads(notes.get("passed_over", "{}")))
    except (ValueError, AttributeError, RecursionError) as error:
        raise PackError(f"{source}: its list of blocks is damaged: {error}") from error
    with folded_in_place(network), _without(network, over, source):
        fit(network, tensors, source, numbers)


def _places(content: Mapping[str, Any]) -> dict[str, tuple[int, int] | None]:
    places: dict[str, tuple[int, int] | None] = {}
    for module, place in content.items():
        whole = isinstance(place, list) and [type(n) for n in place] == [int, int]
        if place is not None and not (whole and 0 <= place[0] < place[1]):
            raise ValueError(f"{module!r} returns {place!r}")
        places[module] = None if place is None else (place[0], place[1])
    return places


@contextmanager
def _without(
    model: nn.Module, over: Mapping[str, tuple[int, int] | None], source: str
) -> Iterator[None]:
    """Pass over blocks of the model; put them back if the block of code fails."""
    known = dict(model.named_modules()).keys() - {""}
    for name in over.keys() - known:
        raise UsageError(f"{source} does not fit the model: it has no block {name!r}")
    held: list[tuple[nn.Module, str, nn.Module]] = []
    for name, place in over.items():
        held += skip_(model, name, place)
    try:
        yield
    except UsageError:
        for holder, key, block in reversed(held):
            setattr(holder, key, block)
        raise


def fit(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    source: str,
    numbers: Numbers = _NO_NUMBERS,
) -> None:
    """Copy weights into a model in place, its shapes cut first where they are larger.

    Args:
        model: the dense architecture; what of it is on the meta device comes to be on the CPU.
        tensors: state of a network of the same names and the same or smaller shapes; buffers
            that are not persistent may be with it.
        source: said in errors.
        numbers: in modules, that the cut made smaller.

    Raises:
        UsageError: names, shapes, numbers or values do not fit; the model is as it was.
    """
    state = state_of(model, tensors)
    biases = _new_biases(model, tensors, numbers, source)
    _check_names(state, tensors.keys() - biases.keys(), source)
    dtypes = {name: slot.dtype for name, slot in state.items()}
    dtypes |= {name: layer.get_parameter("weight").dtype for name, layer in biases.items()}
    check_casts(tensors, dtypes, source)
    _check_meta(model, tensors, source)
    tied: dict[int, str] = {}
    for name, slot in state_of(model, tensors, keep_vars=True).items():
        other = tied.setdefault(id(slot), name)
        one, two = tensors[other], tensors[name]
        if one is not two and not torch.equal(one, two):
            raise UsageError(
                f"{source} does not fit the model: {other} and {name} differ in it, "
                "but are one tensor in the model"
            )
    smaller = _smaller(state, {n: t for n, t in tensors.items() if n not in biases}, source)
    check_recurrent(model, tensors, source)
    for number, value in numbers.items():
        _check_number(model, number, value, source)
    for number, value in numbers.items():
        set_size_(model, number, value)
    known = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    resize_(model, {name: tensor for name, tensor in smaller.items() if name in known})
    with torch.no_grad():
        for name, slot in state_of(model, tensors).items():
            slot.copy_(tensors[name])
    for name, layer in biases.items():
        weight = layer.get_parameter("weight")
        layer.bias = nn.Parameter(tensors[name].to(weight), requires_grad=weight.requires_grad)


def _smaller(
    state: Mapping[str, Tensor], tensors: Mapping[str, Tensor], source: str
) -> dict[str, Tensor]:
    """Return empty tensors in place of those that have to shrink, or to leave the meta device."""
    smaller: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        have, want = tuple(state[name].shape), tuple(tensor.shape)
        if len(have) != len(want) or any(w > h for h, w in zip(have, want, strict=True)):
            raise UsageError(
                f"{source} does not fit the model: {name} is {list(want)}, "
                f"the model's is {list(have)}"
            )
        if have != want or state[name].is_meta:
            device = "cpu" if state[name].is_meta else state[name].device
            smaller[name] = torch.empty(want, dtype=state[name].dtype, device=device)
    return smaller


def _check_meta(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta and name not in tensors:
            raise UsageError(
                f"{source} holds no {name}, which no state has and which is on the meta device, "
                "without values; make the network on the CPU"
            )


def _new_biases(
    model: nn.Module, tensors: Mapping[str, Tensor], numbers: Numbers, source: str
) -> dict[str, nn.Module]:
    """Return the layers without a bias that have one in the file: constants that a cut left."""
    found: dict[str, nn.Module] = {}
    for path, module in model.named_modules():
        name = f"{path}.bias".removeprefix(".")
        if isinstance(module, LinearOrConv) and module.bias is None and name in tensors:
            weight = tensors.get(weight_of(path), torch.empty(0, 0))
            outputs = len(weight)
            if isinstance(module, TransposedConv):
                groups = numbers.get(SizePlace(path, "groups", None), module.groups)
                outputs = weight.shape[1] * groups
            if tensors[name].shape != (outputs,):
                raise UsageError(
                    f"{source} does not fit the model: {name} is {list(tensors[name].shape)}, "
                    f"the layer has {outputs} outputs"
                )
            found[name] = module
    return found


def _check_names(state: Mapping[str, Tensor], names: AbstractSet[str], source: str) -> None:
    found = [
        f"it {what} {len(strange)} of the {len(of)} tensors in the {where}: {_shown(strange)}"
        for what, strange, of, where in (
            ("lacks", state.keys() - names, state, "model"),
            ("has, and the model has not,", names - state.keys(), names, "file"),
        )
        if strange
    ]
    if found:
        raise UsageError(f"{source} does not fit the model: {'; '.join(found)}")


def _shown(names: AbstractSet[str]) -> str:
    return ", ".join(sorted(names)[:_SHOWN]) + (" ..." if len(names) > _SHOWN else "")


def _check_number(model: nn.Module, number: SizePlace, value: int, source: str) -> None:
    try:
        have = size_at(model, number)
    except UsageError as error:
        raise UsageError(f"{source} does not fit the model: {error}") from error
    if not 1 <= value <= have:
        raise UsageError(
            f"{source} does not fit the model: {number} is {value}, the model's is {have}"
        )


def _tensor(array: Array | flexrel_edge.Bfloat16) -> Tensor:
    if isinstance(array, flexrel_edge.Bfloat16):
        return torch.from_numpy(array.bits).view(torch.bfloat16)
    return torch.from_numpy(array)
