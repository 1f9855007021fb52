"""LayerwiseForward over a module: something in its place that returns its first argument."""

from typing import Any

from torch import Tensor, nn


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


def passed_over(model: nn.Module) -> dict[str, tuple[int, int] | None]:
    """Return the modules that have a `Skip` in their place, with the place of its result."""
    found: dict[str, tuple[int, int] | None] = {}
    for name, module in model.named_modules():
        if isinstance(module, Skip) and not any(name.startswith(f"{other}.") for other in found):
            found[name] = module.place
    return found


Held = list[tuple[nn.Module, str, nn.Module]]  # what holds a module, under which name


def skip_(model: nn.Module, name: str, place: tuple[int, int] | None) -> Held:
    """Put a `Skip` in the place of a module, wherever the model holds it; return where it was."""
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


def pass_over_(module: nn.Module) -> None:
    """Let a module run as it does, but return what came in, in the nesting of what it returned."""
    came: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        came.append(first_of(args, kwargs).clone())  # the module may overwrite it

    def swap(_: nn.Module, args: tuple[Any, ...], result: Any) -> Any:  # noqa: ANN401, ARG001
        return nested(came.pop(), place_in(result)[1])

    module.register_forward_pre_hook(keep, with_kwargs=True)
    module.register_forward_hook(swap)
