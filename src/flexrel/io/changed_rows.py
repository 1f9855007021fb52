"""Answers that changed, in the words of the report: how many, of which classes, which samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flexrel.io.figures import count, percent


@dataclass(frozen=True, slots=True)
class LostClass:
    """A class that is answered less well than before, in words."""

    label: str
    samples: str
    right_dense: str
    right: str
    lost: str


@dataclass(frozen=True, slots=True)
class LostLabel:
    """A label, of several a sample, that is answered less well than before, in words."""

    label: str
    having: str
    right_dense: str
    right: str
    f1_dense: str
    f1: str


@dataclass(frozen=True, slots=True)
class SampleRow:
    """A sample whose answer changed, in words."""

    place: str
    label: str
    dense: str  # what the dense network says
    pruned: str
    picture: str  # a PNG as base64, or ""


@dataclass(frozen=True, slots=True)
class ChangedPart:
    """What a page shows of answers that changed.

    Attributes:
        told: how many, in a sentence or two.
        unit: what is counted, samples or pixels.
        classes: that lost most.
        labels: likewise, where a sample has several.
        samples: some of those whose answers changed.
    """

    told: str
    unit: str
    classes: tuple[LostClass, ...]
    labels: tuple[LostLabel, ...]
    samples: tuple[SampleRow, ...]


def changed_part(result: Mapping[str, Any]) -> ChangedPart | None:
    """Return the part of a page on answers that changed; None if they are not known.

    Args:
        result: content of `result.json`, with pictures.
    """
    told, names = result["changed"], result["class_names"]
    if told is None:
        return None
    return ChangedPart(
        told=_told(told),
        unit=told.get("unit", "samples"),  # records of before have none
        classes=tuple(
            LostClass(
                _called(one["label"], names),
                count(one["samples"]),
                percent(one["right_dense"] / one["samples"]),
                percent(one["right"] / one["samples"]),
                count(one["right_dense"] - one["right"]),
            )
            for one in told["classes"]
        ),
        labels=tuple(
            LostLabel(
                _called(one["label"], names),
                f"{count(one['having'])} of {count(one['samples'])}",
                percent(one["right_dense"] / one["samples"]),
                percent(one["right"] / one["samples"]),
                percent(one["f1_dense"]),
                percent(one["f1"]),
            )
            for one in told["labels"]
        ),
        samples=tuple(
            SampleRow(
                place=count(one["place"]),
                label=_called(one["label"], names),
                dense=_called(one["dense"], names),
                pruned=_called(one["pruned"], names),
                picture=result["pictures"].get(str(one["place"]), ""),
            )
            for one in told["shown"]
        ),
    )


def _told(changed: Mapping[str, Any]) -> str:
    told = (
        f"Of {count(changed['samples'])} {changed.get('unit', 'samples')} {count(changed['lost'])} "
        f"were right and are wrong now, and {count(changed['won'])} the other way round."
    )
    if changed["f1"] is None:
        return told
    before, now = map(percent, changed["f1"])
    return (
        f"{told} A sample counts as right where all of its labels are. F1 of all labels together "
        f"(micro) was {before}, and is {now}."
    )


def _called(label: int | Sequence[int], names: Sequence[str]) -> str:
    """Return what a class is called, by its number where it has no name; or what labels are."""
    if not isinstance(label, int):
        return ", ".join(_called(one, names) for one in label) or "none"
    return names[label] if label < len(names) else str(label)
