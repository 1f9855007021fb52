"""Criteria, rules and metadata as they are written on the command line."""

import re
from collections.abc import Sequence
from pathlib import Path

from flexrel.criteria import BLENDS, OBS, Criterion, FlexRel, Magnitude, Relevance
from flexrel.errors import UsageError
from flexrel.relevance import Attribution, RuleLike, rule_of

_PLAIN = re.compile(r"[0-9]*\.?[0-9]+")


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


def parse_criterion(text: str, attribution: Attribution) -> Criterion | None:
    """Return the criterion named, None for "auto"; relevance is measured as `attribution` says."""
    name, *rest = text.split(":")
    rule, output = attribution.rule, attribution.output
    if text == "auto":
        return None
    if text == "obs":
        return OBS()
    if text == "magnitude":
        return Magnitude()
    if text == "relevance":
        return Relevance(rule=rule, output=output)
    if name == "flexrel" and len(rest) in (1, 2) and _PLAIN.fullmatch(rest[0]):
        blend = rest[1] if len(rest) > 1 else "sum"
        for known in BLENDS:
            if known == blend:
                return FlexRel(float(rest[0]), blend=known, rule=rule, output=output)
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
