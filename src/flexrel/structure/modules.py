"""What a cut changes in modules besides their tensors: numbers that size axes, and what is skipped.

A module's code may size axes by a number that the module holds, such as `num_heads`. A block that
is removed leaves a module in its place that returns its input.
"""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

from torch import Tensor, nn

from flexrel.errors import UsageError

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
TransposedConv = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
LinearOrConv = nn.Linear | Conv | TransposedConv
RecurrentLayer = nn.RNNBase | nn.RNNCellBase
_BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d

_OF_TORCH = ("groups", "num_groups", "num_features")  # numbers that modules of torch size axes by
_NOTE = "_flexrel_cut"  # on a module: what of it a cut changed that its state does not tell


# --- numbers that size axes ---------------------------------------------------------------------


class SizePlace(NamedTuple):
    """Where a number is that the code of a module sizes axes by."""

    module: str  # as in `model.named_modules()`
    name: str
    place: int | None  # in a tuple or list; None: it is the number itself

    def __str__(self) -> str:
        place = "" if self.place is None else f"[{self.place}]"
        return f"{self.module}.{self.name}{place}".removeprefix(".")


def module_numbers(module: nn.Module) -> Iterator[tuple[str, int | None, int]]:
    """Yield the whole numbers that a module holds: name, place in a tuple or list, the number."""
    of_torch = type(module).__module__.startswith("torch.") or isinstance(
        module, LinearOrConv | RecurrentLayer
    )  # their subclasses too
    for name, value in vars(module).items():
        if of_torch and name not in _OF_TORCH:
            continue
        if isinstance(value, int) and not isinstance(value, bool):
            yield name, None, value
        elif isinstance(value, tuple | list):
            for place, entry in enumerate(value):
                if isinstance(entry, int) and not isinstance(entry, bool):
                    yield name, place, entry


def module_lengths(module: nn.Module) -> frozenset[int]:
    """Return how long the axes may be that a module's code makes by its own numbers."""
    if isinstance(module, RecurrentLayer):
        return frozenset({module.hidden_size, getattr(module, "proj_size", 0)})
    return frozenset(number for _, _, number in module_numbers(module))


def size_at(model: nn.Module, size: SizePlace) -> int:
    """Return a number that a module of the model holds.

    Raises:
        UsageError: there is no such module, or it holds no such number.
    """
    held: Any = None
    with suppress(AttributeError):  # no such module
        held = vars(model.get_submodule(size.module)).get(size.name)
    if size.place is not None:
        inside = isinstance(held, tuple | list) and 0 <= size.place < len(held)
        held = held[size.place] if inside else None
    if not isinstance(held, int) or isinstance(held, bool):
        raise UsageError(f"the model holds no number {size}")
    return held


def set_size_(model: nn.Module, size: SizePlace, value: int) -> None:
    """Change a number that a module of the model holds, and note it there for `cut_changes`."""
    module = model.get_submodule(size.module)
    if not _told(module, size.name):
        note_(module, size.name, size.place)
    if size.place is None:
        setattr(module, size.name, value)
    else:
        held = getattr(module, size.name)
        entries = [*held[: size.place], value, *held[size.place + 1 :]]
        made = getattr(held, "_make", type(held))  # a named tuple takes its entries one by one
        setattr(module, size.name, made(entries))


def cut_changes(model: nn.Module) -> tuple[dict[SizePlace, int], dict[str, Tensor]]:
    """Return what cuts changed in a model that its state does not tell.

    Returns:
        Numbers by their place, as they are now; and buffers that no state dict has, by name.
    """
    numbers: dict[SizePlace, int] = {}
    buffers: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        for name, place in sorted(vars(module).get(_NOTE, ()), key=str):
            if name in module._buffers:  # noqa: SLF001 - as `named_buffers`, at no cost
                buffers[f"{path}.{name}".removeprefix(".")] = module.get_buffer(name)
            else:
                number = SizePlace(path, name, place)
                numbers[number] = size_at(model, number)
    return numbers, buffers


def note_(module: nn.Module, name: str, place: int | None = None) -> None:
    """Note that a cut changed a size or a buffer of the module, for `cut_changes`."""
    noted = vars(module).get(_NOTE, frozenset())
    setattr(module, _NOTE, noted | {(name, place)})  # copied with the module


def gates_of(layer: RecurrentLayer) -> int:
    """Return how many rows of its weights each unit of a recurrent layer has."""
    if isinstance(layer, nn.LSTM | nn.LSTMCell):
        return 4
    return 3 if isinstance(layer, nn.GRU | nn.GRUCell) else 1


def tell_sizes_(module: nn.Module) -> None:
    """Set the size attributes of a standard module to what its tensors are."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, Conv):
        if module.groups == module.in_channels == module.out_channels:  # depthwise stays so
            module.groups = len(module.weight)
        module.out_channels = module.weight.shape[0]
        module.in_channels = module.weight.shape[1] * module.groups
    elif isinstance(module, TransposedConv):
        module.in_channels = module.weight.shape[0]
        module.out_channels = module.weight.shape[1] * module.groups
    elif isinstance(module, _BatchNorm):
        module.num_features = len(_vectors(module)[0])
    elif isinstance(module, nn.GroupNorm) and module.weight is not None:
        module.num_channels = len(module.weight)
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = module.weight.shape
    elif isinstance(module, RecurrentLayer):
        first = "_l0" if isinstance(module, nn.RNNBase) else ""
        module.input_size = module.get_parameter(f"weight_ih{first}").shape[1]
        state = module.get_parameter(f"weight_hh{first}")
        module.hidden_size = len(state) // gates_of(module)
        if getattr(module, "proj_size", 0):
            module.proj_size = state.shape[1]


def _told(module: nn.Module, name: str) -> bool:
    """Return whether `tell_sizes_` will set the number."""
    if isinstance(module, Conv):
        return name == "groups" and module.groups == module.in_channels == module.out_channels
    return isinstance(module, _BatchNorm) and name == "num_features" and bool(_vectors(module))


def _vectors(norm: _BatchNorm) -> list[Tensor]:
    vectors = (norm.weight, norm.bias, norm.running_mean)
    return [vector for vector in vectors if vector is not None]


# --- modules that are passed over ---------------------------------------------------------------


class Skip(nn.Module):
    """Returns its first argument, in the nesting that the module in whose place it is returned.

    Numbers and names that code elsewhere reads of that module, or of modules in it, are still
    there.
    """

    def __init__(self, instead_of: nn.Module, place: tuple[int, int] | None = None) -> None:
        super().__init__()
        for name, value in vars(instead_of).items():
            if not name.startswith("_") and isinstance(value, bool | int | float | str | None):
                setattr(self, name, value)
        for name, child in instead_of.named_children():
            self.add_module(name, Skip(child))
        self.place = place

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as the module's
        """Return the first argument."""
        return nested(first_of(args, kwargs), self.place)


def skip_(
    model: nn.Module, name: str, place: tuple[int, int] | None
) -> list[tuple[nn.Module, str, nn.Module]]:
    """Put a `Skip` in the place of a module, wherever the model holds it.

    Returns:
        Where it was: what held it, under which name, and the module itself.
    """
    block = model.get_submodule(name)
    instead = Skip(block, place)
    holders = [
        (holder, key, block)
        for holder in model.modules()
        for key, child in holder.named_children()
        if child is block
    ]
    for holder, key, _ in holders:
        setattr(holder, key, instead)
    return holders


def passed_over(model: nn.Module) -> dict[str, tuple[int, int] | None]:
    """Return the modules that have a `Skip` in their place, with the place of its result."""
    found: dict[str, tuple[int, int] | None] = {}
    for name, module in model.named_modules():
        if isinstance(module, Skip) and not any(name.startswith(f"{other}.") for other in found):
            found[name] = module.place
    return found


def pass_over_(module: nn.Module) -> None:
    """Let a module run as it does, but return what came in, in the nesting of what it returned."""
    came: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        came.append(first_of(args, kwargs).clone())  # the module may overwrite it

    def swap(_: nn.Module, args: tuple[Any, ...], result: Any) -> Any:  # noqa: ANN401, ARG001
        return nested(came.pop(), place_in(result)[1])

    module.register_forward_pre_hook(keep, with_kwargs=True)
    module.register_forward_hook(swap)


def first_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
    """Return the first argument of a call."""
    return args[0] if args else next(iter(kwargs.values()), None)


def nested(tensor: Tensor, place: tuple[int, int] | None) -> Any:  # noqa: ANN401
    """Return the tensor, or a tuple of so many entries, all None but it, with it in its place."""
    if place is None:
        return tensor
    at, length = place
    return tuple(tensor if entry == at else None for entry in range(length))


def place_in(result: Any) -> tuple[Tensor | None, tuple[int, int] | None]:  # noqa: ANN401
    """Return the tensor in what a module returned, and where; None if `nested` can't make it."""
    if isinstance(result, Tensor):
        return result, None
    if type(result) is tuple:
        found = [at for at, value in enumerate(result) if value is not None]
        if len(found) == 1 and isinstance(result[found[0]], Tensor):
            return result[found[0]], (found[0], len(result))
    return None, None
