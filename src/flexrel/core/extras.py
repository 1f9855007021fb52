"""Libraries that only some uses need, imported when they are."""

import importlib
from typing import Any

from flexrel.errors import UsageError


def extra_module(name: str, extra: str, what: str) -> Any:  # noqa: ANN401 - its types are not ours
    """Return a module of a library that an extra of ours installs.

    Args:
        name: of the module.
        extra: that has it.
        what: needs it, in the error.

    Raises:
        UsageError: it is not installed, or can't be loaded.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(
            f"{what} takes the extra {extra!r}: pip install 'flexrel[{extra}]' ({error})"
        ) from error
