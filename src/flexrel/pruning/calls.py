"""The call of `prune` that makes a network, as a text that can be run again."""

import re
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Final

from flexrel.pruning.options import PruneOptions

_NOTHING: Final = ("progress", "cache", "listeners")  # options that no network depends on
_USUAL: Final = {
    "criterion": "auto",
    "granularity": "channel",
    "recover": "closed-form",
    "values": "float32",
    "keep": [],
    "seed": 0,
}


def call_of(
    budget: str,
    *,
    criterion: object,
    granularity: str,
    recover: object,
    values: str,
    keep: Sequence[str],
    seed: int,
    options: PruneOptions,
) -> str:
    """Return the call for one budget, of a `model` and its data; what is as usual is left out."""
    asked = {
        "criterion": criterion,
        "granularity": granularity,
        "recover": recover,
        "values": values,
        "keep": list(keep),
        "seed": seed,
    }
    given = ["model", "calibration=calibration", "evaluate=evaluate", f"budgets=[{budget!r}]"]
    given += [f"{name}={told_of(one)}" for name, one in asked.items() if one != _USUAL[name]]
    if rare := unusual(options):
        named = ", ".join(f"{name}={told}" for name, told in rare.items())
        given.append(f"options=flexrel.PruneOptions({named})")
    return f"flexrel.prune({', '.join(given)})"


def unusual(options: PruneOptions) -> dict[str, str]:
    """Return the options that a network depends on and that are not as usual, as texts by name."""
    usual, names = PruneOptions(), [field.name for field in fields(options)]
    pairs = {name: (getattr(options, name), getattr(usual, name)) for name in names}
    return {
        name: told_of(one)
        for name, (one, other) in pairs.items()
        if name not in _NOTHING and one is not other and one != other
    }


def told_of(value: Any) -> str:  # noqa: ANN401 - of an argument
    """Return a value as a text that is the same in every process."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))
