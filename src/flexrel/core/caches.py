"""What generating networks return besides their answer: keys and values for their next call.

Hugging Face's models do so while their configuration has `use_cache` on. It is no output that a
pruned network has to keep, and neither torch's programs nor ONNX can hold the objects it comes in.
"""

from torch import nn

from flexrel.core.running import duplicate


def caching(model: nn.Module) -> list[str]:
    """Return the names of the modules whose configuration has `use_cache` on."""
    return [
        name
        for name, module in model.named_modules()
        if getattr(getattr(module, "config", None), "use_cache", None) is True
    ]


def uncached(model: nn.Module) -> nn.Module:
    """Return a copy, of the same tensors, that caches nothing; the model if it does not anyway."""
    names = caching(model)
    if not names:
        return model
    twin = duplicate(model, share=True)
    _switch_(twin, names, on=False)
    return twin


def cache_again_(network: nn.Module, like: nn.Module) -> None:
    """Turn `use_cache` on in the modules of a network that have it on in another."""
    having = [name for name, module in network.named_modules() if hasattr(module, "config")]
    _switch_(network, [name for name in caching(like) if name in having], on=True)


def _switch_(network: nn.Module, names: list[str], *, on: bool) -> None:
    for name in names:
        setattr(network.get_submodule(name).config, "use_cache", on)  # noqa: B010 - of any class


def cache_note(name: str, model: nn.Module) -> list[str]:
    """Return a line on what was exported of a model that caches; none of one that does not."""
    if not caching(model):
        return []
    return [f"{name} returns no cache: config.use_cache was turned off for it"]
