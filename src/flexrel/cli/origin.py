"""The words of a command, as a result tells them, and those that ask for another point of it."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from flexrel.pruning import Origin

_ASKED: Final = ("--target", "--budget", "--criterion", "--out", "--export")  # each with a value
_HOW: Final = ("--assured", "--compare", "--overwrite", "--json", "--quiet", "-q")


def origin_of(words: Sequence[str], named: Mapping[str, Any]) -> Origin:
    """Return where a result of `flexrel prune` came from.

    Args:
        words: of the command, without "flexrel".
        named: its arguments and options, by name.
    """
    again = without(words, _ASKED, _HOW)
    data = named["calibration"], named["evaluation"]
    return Origin(("flexrel", *words), ("flexrel", *again), named["model"], *data)


def demo_origin(words: Sequence[str], seed: int) -> Origin:
    """Return where the demo's result came from, and how to prune its network otherwise."""
    digits = "demo:digits"
    again = ("prune", digits, "--calibration", digits, "--evaluation", digits)
    seeded = ("--seed", str(seed)) if seed else ()
    return Origin(("flexrel", *words), ("flexrel", *again, *seeded), digits, digits, digits)


def without(
    words: Sequence[str], options: Collection[str], flags: Collection[str]
) -> tuple[str, ...]:
    """Return words without some options, which have a value each, and flags."""
    left: list[str] = []
    skipped = False  # the value of an option that is left out
    for word in words:
        if skipped:
            skipped = False
        elif word in options:
            skipped = True
        elif word not in flags and word.partition("=")[0] not in options:
            left.append(word)
    return tuple(left)
