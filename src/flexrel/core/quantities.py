"""Amounts as people write them: shares, counts, bytes, times and rates, read exactly."""

import math
import re
from collections.abc import Mapping
from fractions import Fraction

from flexrel.errors import UsageError

_NUMBER = re.compile(r"([0-9]*\.?[0-9]+)\s*(%|[kMG]?)")
_AMOUNT = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-z/]+)\s*")
_FACTORS = {"k": 10**3, "M": 10**6, "G": 10**9}
_BYTES = {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_BYTES |= {"KiB": 2**10, "kiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_SECONDS = {"us": Fraction(1, 10**6), "ms": Fraction(1, 10**3)}
_SECONDS |= {"s": Fraction(1), "min": Fraction(60), "h": Fraction(3600)}
_BITS = {"bit/s": 1, "kbit/s": 10**3, "Mbit/s": 10**6, "Gbit/s": 10**9}
_RATES = {**_BITS, "B/s": 8, "kB/s": 8 * 10**3, "MB/s": 8 * 10**6, "GB/s": 8 * 10**9}


def is_number(text: str) -> bool:
    """Return whether a text is a share or a count, as "50%", "0.5", "500" and "120k" are."""
    return _NUMBER.fullmatch(text) is not None


def number_of(given: object) -> float:
    """Return a share for "50%" and "0.5", a whole number for "500", "120k" and "1.5M".

    Numbers are what they are, and NaN what is none.

    Raises:
        UsageError: it is a text that can't be read.
    """
    if isinstance(given, bool) or not isinstance(given, str | int | float):
        return math.nan
    if not isinstance(given, str):
        return given
    found = _NUMBER.fullmatch(given)
    if found is None:
        raise UsageError(f"amount {given!r} can't be read; write it like 500, 120k, 0.5 or 50%")
    number, unit = found.groups()
    if unit == "%":
        return float(number) / 100
    if unit or "." not in number:
        return round(float(number) * _FACTORS.get(unit, 1))
    return float(number)


def is_share(number: float) -> bool:
    """Return whether a number that was read is a share of the dense network's, and no count."""
    return isinstance(number, float)


def asked_share(given: object) -> float | None:
    """Return the share of the dense network's that is asked for; None if it is no share."""
    if isinstance(given, str) and not is_number(given):
        return None
    number = number_of(given)
    return number if is_share(number) else None


def share_or_count(amount: float | str, dense: float) -> int:
    """Return the limit, rounded down: 0.29 of 100 is 29, though the product of floats is less."""
    number = number_of(amount)
    return math.floor(Fraction(str(number)) * Fraction(dense)) if is_share(number) else int(number)


def check_share_or_count(resource: str, given: float | str) -> None:
    """Refuse what is no share in (0, 1] and no count.

    Raises:
        UsageError: it is neither.
    """
    number = number_of(given)
    if not (0 < number <= 1 if is_share(number) else number > 0):
        raise UsageError(
            f"{resource} budget is {given!r}; give a share of the dense network in (0, 1] "
            "as a float, or a count of at least 1 as an int"
        )


def bytes_of(text: str) -> Fraction | None:
    """Return the bytes that "500 kB" or "1.5 MiB" says; None if it says none."""
    return _read(text, _BYTES)


def bytes_limit(resource: str, amount: float | str, dense: float) -> int:
    """Return the bytes that "500 kB", 500_000, "50%" or 0.5 allows; 0 for a text that says none.

    Raises:
        UsageError: a number that is no share in (0, 1] and no count.
    """
    if not isinstance(amount, str):
        check_share_or_count(resource, amount)
        return share_or_count(amount, dense)
    if is_number(amount):  # "500", "500k", "50%"
        return share_or_count(amount, dense)
    return math.floor(bytes_of(amount) or 0)


def bytes_unread(resource: str, amount: float | str) -> UsageError:
    """Return the refusal of an amount of bytes that can't be read."""
    return UsageError(
        f'{resource} budget is {amount!r}; write it like "500 kB", "1.5 MiB" or 500000'
    )


def seconds_of(text: str) -> Fraction | None:
    """Return the seconds that "8 s", "500 ms" or "2 min" says; None if it says none."""
    return _read(text, _SECONDS)


def bits_per_second_of(text: str) -> Fraction | None:
    """Return the bits a second that "1 Mbit/s" or "125 kB/s" says; None if it says none."""
    return _read(text, _RATES)


def _read(text: str, units: Mapping[str, Fraction] | Mapping[str, int]) -> Fraction | None:
    found = _AMOUNT.fullmatch(text)
    if found is None or found[2] not in units:
        return None
    return Fraction(found[1]) * units[found[2]]
