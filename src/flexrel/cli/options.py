"""Budgets, targets, criteria and metadata as they are written on the command line."""

import re
from collections.abc import Sequence
from pathlib import Path

from flexrel.core.budgets import AccuracyDrop, Budget, Bytes, MACs, Parameters, Sparsity
from flexrel.criteria import BLENDS, OBS, Criterion, FlexRel, Magnitude, Relevance
from flexrel.errors import UsageError
from flexrel.relevance import RuleLike, rule_of

_NUMBER = re.compile(r"([0-9]*\.?[0-9]+)\s*(%|[kMG]?)")
_PLAIN = re.compile(r"[0-9]*\.?[0-9]+")
_FACTORS = {"k": 10**3, "M": 10**6, "G": 10**9}
_BUDGETS = "bytes=500kB, macs=50%, parameters=120k, sparsity=80%"


def parse_budget(text: str) -> Budget:
    """Return the budget that `resource=amount` asks for.

    An amount with "%" or a decimal fraction of at most 1 is a share of the dense network.

    Raises:
        UsageError: it can't be read; lists what can.
    """
    resource, _, amount = text.partition("=")
    if resource == "bytes":
        return Bytes(amount if amount.endswith("B") else _amount(text, amount))
    if resource == "macs":
        return MACs(_amount(text, amount))
    if resource == "parameters":
        return Parameters(_amount(text, amount))
    if resource == "sparsity":
        return Sparsity(_share(text, amount))
    raise UsageError(f"budget {text!r} is not known; write it like {_BUDGETS}")


def parse_rule(text: str) -> RuleLike:
    """Return the relevance rule that `gamma` or `features.*=gamma,classifier.*=epsilon` asks for.

    Raises:
        UsageError: no such rule; lists those that there are.
    """
    if "=" not in text:
        rule_of(text)
        return text
    rules: dict[str, str] = {}
    for part in text.split(","):
        pattern, _, rule = part.partition("=")
        rules[pattern.strip()] = rule.strip()
    rule_of(rules)
    return rules


def parse_target(text: str) -> AccuracyDrop:
    """Return the target that `accuracy-drop=1%` asks for."""
    name, _, amount = text.partition("=")
    if name != "accuracy-drop":
        raise UsageError(f"target {text!r} is not known; write it like accuracy-drop=1%")
    share = _share(text, amount)
    if share >= 1 and not amount.endswith("%"):
        raise UsageError(f"target {text!r} is unclear; write one point as 1% or as 0.01")
    return AccuracyDrop(share)


def parse_criterion(text: str) -> Criterion | None:
    """Return the criterion named, or None for "auto"."""
    name, *rest = text.split(":")
    if text == "auto":
        return None
    if text == "obs":
        return OBS()
    if text == "magnitude":
        return Magnitude()
    if text == "relevance":
        return Relevance()
    if name == "flexrel" and len(rest) in (1, 2) and _PLAIN.fullmatch(rest[0]):
        blend = rest[1] if len(rest) > 1 else "sum"
        for known in BLENDS:
            if known == blend:
                return FlexRel(float(rest[0]), blend=known)
    raise UsageError(
        f"criterion {text!r} is not known; there are: auto, magnitude, relevance, obs, "
        "flexrel:DELTA and flexrel:DELTA:product with DELTA in [0, 1]"
    )


def parse_metadata(texts: Sequence[str]) -> dict[str, str]:
    """Return the metadata that each `name=text`, or `name=@file` with the text in a file, gives."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals or name in found:
            raise UsageError(f"metadata {text!r} is not NAME=TEXT or NAME=@FILE, each name once")
        found[name] = Path(value[1:]).read_text() if value.startswith("@") else value
    return found


def _amount(text: str, amount: str) -> float:
    found = _NUMBER.fullmatch(amount)
    if found is None:
        raise UsageError(f"{text!r} has no amount that can be read; write it like {_BUDGETS}")
    number, unit = found.groups()
    if unit == "%":
        return float(number) / 100
    if unit or "." not in number:
        return round(float(number) * _FACTORS.get(unit, 1))
    return float(number)


def _share(text: str, amount: str) -> float:
    return float(_amount(text, amount))
