"""Callbacks for trainers of other libraries, of classes made where they are installed."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any, Final

from flexrel.errors import UsageError

_BASES: Final[Mapping[str, tuple[str, ...]]] = {
    "lightning": ("lightning.pytorch.Callback", "pytorch_lightning.Callback"),
    "transformers": ("transformers.TrainerCallback",),
}


def trainer_callback(
    package: str,
    name: str,
    methods: Mapping[str, Callable[..., Any]],
) -> Any:  # noqa: ANN401 - the packages are not installed for types
    """Return a callback for a trainer of a package.

    Args:
        package: "lightning" or "transformers".
        name: of the callback's class, by which checkpoints know it.
        methods: name -> function of what the trainer passes, without `self`.

    Raises:
        UsageError: the package is not installed.
    """
    for path in _BASES[package]:
        module, _, base = path.rpartition(".")
        try:
            found = getattr(importlib.import_module(module), base)
        except ImportError:
            continue
        return type(name, (found,), {key: staticmethod(call) for key, call in methods.items()})()
    raise UsageError(f"this callback needs {package}; install it with: pip install {package}")
