"""The model card of a pruned network: Markdown, with the evidence for it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flexrel.io import compared, count, granularities, percent


@dataclass(frozen=True, slots=True)
class CardNotes:
    """What a card says that no record of the result has.

    Attributes:
        name: of the network's class.
        loading: code that loads it.
        base: name of the network that it was made of, as on a hub; "": not known.
        transformers: whether its class is one of transformers.
        data: what it was calibrated and evaluated on, in the caller's words.
        command: that pruned it, likewise.
    """

    name: str
    loading: str
    base: str = ""
    transformers: bool = False
    data: str = ""
    command: str = ""


def model_card(result: Mapping[str, Any], asked: Sequence[str], notes: CardNotes) -> str:
    """Return the card.

    Args:
        result: content of `result.json`.
        asked: each limit, in words.
        notes: what else there is to say.
    """
    done, options = result["achieved"], result["options"]
    head = [f"library_name: {'transformers' if notes.transformers else 'flexrel'}"]
    head += [f"base_model: {json.dumps(notes.base)}"] if notes.base else []
    head.append("tags: [flexrel, pruned]")
    rows = [f"| {one.name} | {one.dense} | {one.now} | {one.share} |" for one in compared(result)]
    parts = [
        "\n".join(["---", *head, "---"]),
        f"# {notes.name}, pruned",
        (
            f"Pruned with FlexRel {result['versions']['flexrel']}: scored by "
            f"{result['criterion']}, by {granularities(result)}, repaired by "
            f"{options['recover']}, seed {result['seed']}."
        ),
        "## How to load it",
        f"```python\n{notes.loading}\n```",
        (
            "It takes `pip install flexrel` and no network. Layers are narrower than the class "
            "makes them, so that the class alone, `from_pretrained` included, refuses the weights."
        ),
        "## What was asked, and what came out",
        f"Asked: {', '.join(asked) or 'nothing'}.",
        "\n".join(["| | dense | now | of dense |", "| --- | ---: | ---: | ---: |", *rows]),
        (
            f"Of all weights {percent(done['weights_removed'])} are gone or zero. What each layer "
            "kept, and why some were left alone: `flexrel inspect plan.json`."
        ),
        *_accuracy(result),
        "## Data",
        "\n".join(_data(result, notes)),
        *(["## Command", f"```\n{notes.command}\n```"] if notes.command else []),
        *_warnings(result["warnings"]),
        "## Versions",
        ", ".join(f"{name} {version}" for name, version in result["versions"].items()),
    ]
    return "\n\n".join(parts) + "\n"


def _accuracy(result: Mapping[str, Any]) -> list[str]:
    """Return how sure the accuracy is, or that it was not measured."""
    done, promise = result["achieved"], result["promise"]
    if done["accuracy"] is None:
        return [] if done["metrics"] else ["Accuracy was not measured."]
    error, told = done["accuracy_standard_error"], []
    if error is not None:
        told.append(f"One standard error of the accuracy: {percent(error)}.")
    if promise:
        told.append(f"Promised: {promise['told']}.")
    return [" ".join(told)] if told else []


def _data(result: Mapping[str, Any], notes: CardNotes) -> list[str]:
    samples = result["achieved"]["samples"]
    return [
        *([notes.data, ""] if notes.data else []),
        f"- calibration: {count(result['options']['calibration_samples'])} samples, without labels",
        *([] if samples is None else [f"- evaluation: {count(samples)} labelled samples"]),
    ]


def _warnings(notes: Sequence[str]) -> list[str]:
    return ["## Warnings", "\n".join(f"- {note}" for note in notes)] if notes else []
