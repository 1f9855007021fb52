"""Texts in a file as data, made into tokens by the tokenizer of the network."""

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl

import torch
from torch import Tensor, nn

from flexrel.cli.arrays import numbered
from flexrel.cli.factories import library, why
from flexrel.core.class_names import ClassNames
from flexrel.core.forms import signature_of
from flexrel.errors import UsageError

# (texts, their second parts or None) -> the network's arguments, a row a text
Tokenizer = Callable[[Sequence[str], Sequence[str] | None], Mapping[str, Tensor]]
_TEXTS: Final = ("text", "sentence", "review", "content", "comment")  # as people call them
_PAIRS: Final = (("sentence1", "sentence2"), ("premise", "hypothesis"), ("question", "sentence"))
LABELS: Final = ("label", "labels", "class", "target", "sentiment", "y")
_SHOWN: Final = 8  # names in an error
_NO_END: Final = 10**6  # tokens; a tokenizer that knows no length says more


@dataclass(frozen=True, slots=True)
class TextData:
    """Batches of texts, made into tokens when they are gone through.

    Attributes:
        texts: that come in.
        pairs: what follows each, where there are two; else None.
        labels: `[samples]`, if there are any.
        tokenizer: of the network.
        batch: how many there are in one; all are as long as its longest.
        classes: what those are called whose labels were texts.
    """

    texts: Sequence[str]
    pairs: Sequence[str] | None
    labels: Tensor | None
    tokenizer: Tokenizer
    batch: int
    classes: ClassNames = ()

    def __len__(self) -> int:
        """Return how many batches there are."""
        return len(range(0, len(self.texts), self.batch))

    def __iter__(self) -> Iterator[Mapping[str, Tensor]]:
        """Yield the network's arguments, with "labels" if there are any."""
        for at in range(0, len(self.texts), self.batch):
            part = slice(at, at + self.batch)
            given = self.tokenizer(self.texts[part], self.pairs and self.pairs[part])
            labels = {} if self.labels is None else {"labels": self.labels[part]}
            yield {**given, **labels}


@dataclass(frozen=True, slots=True)
class HubTokenizer:
    """The tokenizer beside a network of Hugging Face, loaded when texts come.

    Attributes:
        source: folder or name that has it.
        network: that takes what it makes.
    """

    source: str
    network: nn.Module

    def __call__(self, texts: Sequence[str], pairs: Sequence[str] | None) -> Mapping[str, Tensor]:
        """Return the network's arguments, padded to the longest text and cut where it can't more.

        Raises:
            UsageError: there is no tokenizer.
        """
        tokenizer = _loaded(self.source)
        made = tokenizer(
            list(texts),
            None if pairs is None else list(pairs),
            padding=True,
            truncation=tokenizer.model_max_length < _NO_END,
            return_tensors="pt",
        )
        taken = signature_of(self.network).parameters
        return {name: tensor for name, tensor in made.items() if name in taken}


@cache
def _loaded(source: str) -> Any:  # noqa: ANN401 - transformers is an extra
    transformers = library("transformers", f"hf:{source}")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, local_files_only=True)
    except Exception as error:
        raise UsageError(
            f"hf:{source} has no tokenizer that can be loaded, so give tokens, as "
            f"file.py:factory; {why(error)}"
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def text_data(
    spec: str, tokenizer: Tokenizer | None, batch: int, names: ClassNames = ()
) -> TextData:
    """Return the texts in a file.

    Args:
        spec: a `.txt` with a text a line; or a `.csv` or `.tsv` with a line of names, or a `.jsonl`
            with an object a line, that have "text" and perhaps "label", or such names as people
            have for these. Others follow a "?": `reviews.csv?text=body&label=stars`; of two texts
            a sample `?text=question&pair=answer`.
        tokenizer: of the network; None: it has none.
        batch: how many texts there are in one.
        names: of the network's classes: labels that are texts stand for their numbers.

    Raises:
        UsageError: there is no such file or column, no text, or no tokenizer.
    """
    place, _, query = spec.partition("?")
    path = Path(place)
    if not path.is_file():
        raise UsageError(f"{path}: no such file of data")
    if tokenizer is None:
        raise UsageError(
            f"{path}: is read as texts, which need the network's tokenizer, as hf:FOLDER has one; "
            "give tokens as file.py:factory, and numbers in a .csv or an .npz with x and y"
        )
    try:
        rows = _rows(path)
    except (ValueError, OSError, csv.Error) as error:
        raise UsageError(f"{path}: has no texts that can be read: {error}") from error
    if not rows:
        raise UsageError(f"{path}: has no text")
    asked = dict(parse_qsl(query))
    text, pair, label = _columns(path, rows[0], asked)
    try:
        texts = [str(row[text]) for row in rows]
        pairs = None if pair is None else [str(row[pair]) for row in rows]
        told = None if label is None else [row[label] for row in rows]
    except KeyError as error:
        raise UsageError(f"{path}: a line has no {error}, as the first has") from error
    labels, classes = (None, ()) if told is None else labelled(path, told, names)
    return TextData(texts, pairs, labels, tokenizer, batch, classes)


def _rows(path: Path) -> list[Mapping[str, Any]]:
    """Return what each line of a file has, by name."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".txt":
        return [{"text": line} for line in text.splitlines() if line.strip()]
    if path.suffix == ".jsonl":
        return [dict(json.loads(line)) for line in text.splitlines() if line.strip()]
    between = "\t" if path.suffix == ".tsv" else ","
    with path.open(encoding="utf-8", newline="") as file:
        return [*csv.DictReader(file, delimiter=between)]


def _columns(
    path: Path, first: Mapping[str, Any], asked: Mapping[str, str]
) -> tuple[str, str | None, str | None]:
    """Return the names of the texts, of their second parts, and of the labels."""
    has = f"it has {', '.join(map(repr, [*first][:_SHOWN]))}; write {path}?text=NAME&label=NAME"
    for name in asked.values():
        if name not in first:
            raise UsageError(f"{path}: has no {name!r}; {has}")
    two = next((pair for pair in _PAIRS if {*pair} <= first.keys()), None)
    text = asked.get("text") or next((one for one in _TEXTS if one in first), None)
    pair = asked.get("pair")
    if text is None and two is not None:
        text, pair = two
    if text is None:
        raise UsageError(f"{path}: has no 'text'; {has}")
    label = asked.get("label") or next((one for one in LABELS if one in first), None)
    return text, pair, label


def labelled(path: Path, told: Sequence[Any], names: ClassNames) -> tuple[Tensor, ClassNames]:
    """Return labels as numbers, and what classes are called if they were texts."""
    try:
        numbers = torch.tensor([float(one) for one in told])
    except (TypeError, ValueError):
        return numbered([str(one) for one in told], str(path), names)
    whole = bool((numbers == numbers.round()).all())
    return numbers.long() if whole else numbers, ()
