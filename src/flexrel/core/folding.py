"""Weights that a network makes of other parameters, the same at each call: made plain ones.

Masks of `torch.nn.utils.prune`; weight norm and spectral norm, as hooks and as parametrizations;
all else of `torch.nn.utils.parametrize` that is constant in evaluation mode.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils import prune as torch_prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from flexrel.core.running import reason, tensors_of, undisturbed
from flexrel.errors import ModelError

MASK = "mask"
_WORDS = {  # of torch's own parametrizations; another is called by its class
    "_WeightNorm": "weight norm",
    "_SpectralNorm": "spectral norm",
    "_Orthogonal": "orthogonal parametrization",
}


@dataclass(frozen=True, slots=True)
class FoldedWeight:
    """A weight that was made of other parameters.

    Attributes:
        name: of the tensor, once it is plain.
        by: what made it: "mask", "weight norm", the class of a parametrization.
        constant: whether it was the same at each call; if not, it is left as it was.
    """

    name: str
    by: str
    constant: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class _Made:
    """Tensors of a module that can be plain.

    Attributes:
        values: attribute -> what it is in evaluation mode.
        sources: attribute -> all parameters and buffers that it is made of.
        by: attribute -> what makes it.
        constant: whether the values are the same at each call.
        remove: takes all that makes them off the module.
    """

    values: dict[str, Tensor]
    sources: dict[str, tuple[Tensor, ...]]
    by: dict[str, str]
    constant: bool
    remove: Callable[[], None]


def fold_(model: nn.Module) -> tuple[FoldedWeight, ...]:
    """Make the weights that the model makes of other parameters plain, as in evaluation mode.

    Weights made of the same parameters that are equal become one tensor.

    Raises:
        ModelError: one can't be made.
    """
    modules = list(model.named_modules())
    if not any(is_foldable(module) for _, module in modules):
        return ()
    found: list[FoldedWeight] = []
    left: set[str] = set()  # of the modules whose weights are no constants
    tied: dict[tuple[int, ...], list[nn.Parameter]] = {}
    with undisturbed(model), torch.inference_mode(mode=False), torch.no_grad():
        while True:
            before = len(found)
            hooked = ((path, module, _hooked(module)) for path, module in modules)
            others = ((p, m, _parametrized(p, m)) for p, m in modules if p not in left)
            for path, module, makers in chain(hooked, others):
                for made in makers:
                    prefix = f"{path}." if path else ""
                    found += [
                        FoldedWeight(f"{prefix}{name}", by, made.constant)
                        for name, by in made.by.items()
                    ]
                    if made.constant:
                        _set_(module, made, tied)
                    else:
                        left.add(path)
            if len(found) == before:  # a mask may be on what a norm makes, or the other way round
                return tuple(found)


def is_foldable(module: nn.Module) -> bool:
    """Return whether a weight of the module itself is made of other parameters."""
    kinds = (torch_prune.BasePruningMethod, SpectralNorm, WeightNorm)
    hooks = module._forward_pre_hooks.values()  # noqa: SLF001 - as torch's own `is_pruned`
    return parametrize.is_parametrized(module) or any(isinstance(hook, kinds) for hook in hooks)


def kept_results(model: nn.Module) -> dict[int, Tensor]:
    """Return a copy for the `id` of each weight that hooks made, which torch does not copy."""
    return {
        id(value): value.detach().clone()
        for module in model.modules()
        if is_foldable(module)
        for value in tensors_of(vars(module))
        if not value.is_leaf
    }


@contextmanager
def folded_in_place(model: nn.Module) -> Iterator[None]:
    """Run the block with the model's weights plain, which they stay; if it fails, put all back."""
    if not any(map(is_foldable, model.modules())):
        yield
        return
    held = [(module, type(module), _content(module)) for module in model.modules()]
    try:
        fold_(model)
        yield
    except BaseException:
        for module, kind, content in held:
            module.__class__ = kind
            _put_back_(vars(module), content)
        raise


def _content(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Return each attribute, and a copy of those that are changed in place."""
    return {
        key: (value, copy.copy(value) if isinstance(value, dict | list) else None)
        for key, value in vars(module).items()
    }


def _put_back_(attributes: dict[str, Any], content: dict[str, tuple[Any, Any]]) -> None:
    attributes.clear()
    for key, (value, entries) in content.items():
        if isinstance(value, dict):
            value.clear()
            value.update(entries)
        elif isinstance(value, list):
            value[:] = entries
        attributes[key] = value


def _set_(module: nn.Module, made: _Made, tied: dict[tuple[int, ...], list[nn.Parameter]]) -> None:
    """Put plain tensors in a module in place of what makes them."""
    made.remove()
    for name, value in made.values.items():
        sources = made.sources[name]
        trained = [tensor for tensor in sources if isinstance(tensor, nn.Parameter)]
        if not trained:
            module.register_buffer(name, value)
            continue
        alike = tied.setdefault(tuple(map(id, trained)), [])
        parameter = next((p for p in alike if _equal(p, value)), None)
        if parameter is None:
            wants = any(tensor.requires_grad for tensor in trained)
            parameter = nn.Parameter(value, requires_grad=wants)
            alike.append(parameter)
        setattr(module, name, parameter)  # recurrent layers note it in their list


def _equal(one: Tensor, other: Tensor) -> bool:
    if one.is_meta:
        return one.shape == other.shape
    return one.shape == other.shape and torch.allclose(one, other, 0, 0, equal_nan=True)


# --- hooks --------------------------------------------------------------------------------------


def _hooked(module: nn.Module) -> Iterator[_Made]:
    """Yield what each mask, weight norm and spectral norm makes, if all it is made of is there."""
    own = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers("", False))}
    for key, hook in list(module._forward_pre_hooks.items()):  # noqa: SLF001 - as torch's own
        if isinstance(hook, torch_prune.BasePruningMethod):
            name, by, ends = str(hook._tensor_name), MASK, ["_orig", "_mask"]  # noqa: SLF001
        elif isinstance(hook, WeightNorm):
            name, by, ends = hook.name, "weight norm", ["_g", "_v"]
        elif isinstance(hook, SpectralNorm):
            name, by, ends = hook.name, "spectral norm", ["_orig", "_u", "_v"]
        else:
            continue
        names = [name + end for end in ends]
        if all(each in own for each in names):
            yield _Made(
                values={name: _made_by(hook, module)},
                sources={name: tuple(own[each] for each in names)},
                by={name: by},
                constant=True,
                remove=partial(_unhook_, module, key, [*names, name]),
            )


def _made_by(
    hook: torch_prune.BasePruningMethod | WeightNorm | SpectralNorm, module: nn.Module
) -> Tensor:
    if isinstance(hook, torch_prune.BasePruningMethod):
        masked: Tensor = hook.apply_mask(module)
        return masked + 0.0  # no minus zeros
    if isinstance(hook, SpectralNorm):
        return hook.compute_weight(module, do_power_iteration=False).clone()
    weight: Tensor = hook.compute_weight(module)
    return weight.clone()


def _unhook_(module: nn.Module, key: int, names: list[str]) -> None:
    hook = module._forward_pre_hooks.pop(key)  # noqa: SLF001
    for table in (module._state_dict_hooks, module._load_state_dict_pre_hooks):  # noqa: SLF001
        for other, entry in list(table.items()):
            if getattr(getattr(entry, "hook", entry), "fn", None) is hook:
                del table[other]
    for name in names:
        delattr(module, name)


# --- parametrizations ---------------------------------------------------------------------------


def _parametrized(path: str, module: nn.Module) -> Iterator[_Made]:
    """Yield what the parametrizations of a module make.

    Raises:
        ModelError: they can't.
    """
    if not parametrize.is_parametrized(module):
        return
    lists = dict(module.get_submodule("parametrizations").named_children())
    by = {
        name: " and ".join(_word(each) for each in made.children()) for name, made in lists.items()
    }
    values: dict[str, Tensor] = {}
    constant = True
    for name, made in lists.items():
        try:
            values[name] = made().clone()
            constant &= _equal(made(), values[name])
        except Exception as error:  # of the user's code
            shown = f"{path}.{name}".removeprefix(".")
            raise ModelError(f"{shown} can't be made by {by[name]}: {reason(error)}") from error
    sources = {name: (*made.parameters(), *made.buffers()) for name, made in lists.items()}
    yield _Made(values, sources, by, constant, partial(_unparametrize_, module))


def _word(parametrization: nn.Module) -> str:
    name = type(parametrization).__name__
    return _WORDS.get(name, name)


def _unparametrize_(module: nn.Module) -> None:
    """Take all parametrizations off a module, whose class its copies and its model share."""
    delattr(module, "parametrizations")
    module.__class__ = type(module).__bases__[0]
