"""Numbers as a person reads them."""

from collections.abc import Mapping
from typing import Any, Final

_LONG: Final = 10_000  # from which on counts that stand side by side are shortened


def percent(share: float | None) -> str:
    """Return a share in [0, 1] as a percentage, "not measured" for None."""
    return "not measured" if share is None else f"{100 * share:.2f} %"


def points(share: float) -> str:
    """Return a difference of two shares in hundredths, without its sign."""
    return f"{abs(100 * share):.2f} points"


def size(number: float | None) -> str:
    """Return bytes as a person reads them."""
    if number is None:
        return ""
    for unit, factor in (("MB", 10**6), ("kB", 10**3)):
        if number >= factor:
            return f"{number / factor:,.2f} {unit}"
    return f"{number:,.0f} B"


def round_size(number: float) -> str:
    """Return a round number of bytes without decimals that say nothing: "25 kB"."""
    for unit, factor in (("MB", 10**6), ("kB", 10**3)):
        if number >= factor:
            return f"{number / factor:g} {unit}"
    return f"{number:g}"


def count(number: float | None) -> str:
    """Return a whole number with separators, "" for None."""
    return "" if number is None else f"{number:,.0f}"


def amount(number: float | None) -> str:
    """Return whole numbers with separators, others with four digits, "" for None."""
    if number is None or number == int(number):
        return count(number)
    return figure(number)


def figure(number: float | None) -> str:
    """Return a number with four digits, "infinite" for None."""
    return "infinite" if number is None else f"{number:.4g}"


def change(dense: float, now: float) -> str:
    """Return two counts in one unit, one where they are the same: "24 → 14", "38.2 → 25.1 M"."""
    units = (("G", 10**9), ("M", 10**6), ("k", 10**3))
    known = (pair for pair in units if dense >= max(pair[1], _LONG))
    unit, factor = next(known, ("", 1))
    both = [f"{one / factor:.3g}" if unit else count(one) for one in (dense, now)]
    return " → ".join(dict.fromkeys(both)) + (f" {unit}" if unit else "")


def granularities(result: Mapping[str, Any]) -> str:
    """Return what went, of the content of `result.json`: "channel", or "channel, then element"."""
    kinds = (result["granularity"], result.get("then"))
    return ", then ".join(filter(None, kinds))
