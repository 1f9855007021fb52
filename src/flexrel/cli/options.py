"""Rules, names and metadata as they are written on the command line."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from flexrel.core.budgets import budget_of
from flexrel.core.latency import Latency
from flexrel.core.resources import Budget
from flexrel.errors import UsageError
from flexrel.relevance import RuleLike, rule_of
from flexrel.tracking import JsonLines


def parse_names(text: str | None) -> tuple[str, ...]:
    """Return the names in "ids,mask"; none for None."""
    return tuple(part.strip() for part in text.split(",")) if text else ()


def parse_budgets(texts: Sequence[str], profile: Path | None) -> list[Budget]:
    """Return the budgets of texts, one on latency by the times of another device if given.

    Raises:
        UsageError: one can't be read, or there are times and no budget on latency.
    """
    budgets = [budget_of(text) for text in texts]
    if profile is None:
        return budgets
    if not any(isinstance(one, Latency) for one in budgets):
        raise UsageError(
            f"--latency-profile {profile} is for a budget on latency; give --budget latency=5ms"
        )
    for at, (text, one) in enumerate(zip(texts, budgets, strict=True)):
        if isinstance(one, Latency):
            runtime = one.runtime if "@" in text else "onnxruntime"
            budgets[at] = replace(one, runtime=runtime, profile=str(profile))
    return budgets


def parse_log(path: Path | None) -> tuple[JsonLines, ...]:
    """Return what writes events to a file; nothing for None."""
    return () if path is None else (JsonLines(path),)


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


def parse_class_names(path: Path | None) -> tuple[str, ...]:
    """Return the names in a file, by the number of the class: one a line, or a list in JSON.

    In JSON also names by their numbers, {"0": "cat"}, as Hugging Face has them, or
    {"0": ["n01440764", "tench"]}, as ImageNet's are found. No file, no names.

    Raises:
        UsageError: it has none, or a number without a name.
    """
    if path is None:
        return ()
    try:
        text = path.read_text(encoding="utf-8")
        told = json.loads(text) if path.suffix == ".json" else text.splitlines()
        if isinstance(told, dict):
            told = [told[str(number)] for number in range(len(told))]
        names = tuple(one[-1] if isinstance(one, list) else one.strip() for one in told)
    except (ValueError, AttributeError, LookupError, TypeError) as error:
        raise UsageError(
            f"{path}: has no names of classes that can be read ({type(error).__name__}: {error}); "
            'write one a line, or as JSON ["cat", "dog"] or {"0": "cat", "1": "dog"}'
        ) from error
    while names and not names[-1]:  # the end of the file
        names = names[:-1]
    if not names or "" in names:
        raise UsageError(f"{path}: {'line without a name' if names else 'is empty'}; one a line")
    return names


def parse_metadata(texts: Sequence[str]) -> dict[str, str]:
    """Return the metadata that each `name=text`, or `name=@file` with the text in a file, gives."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals or name in found:
            raise UsageError(f"metadata {text!r} is not NAME=TEXT or NAME=@FILE, each name once")
        found[name] = Path(value[1:]).read_text() if value.startswith("@") else value
    return found
