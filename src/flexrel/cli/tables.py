"""Tables of numbers in files as data: a row a sample, a column an input, one of them the label."""

import csv
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl

import numpy as np
import torch

from flexrel.cli.arrays import ArrayData
from flexrel.cli.texts import LABELS, labelled
from flexrel.core.class_names import ClassNames
from flexrel.errors import UsageError

_SHOWN: Final = 8  # names in an error


def table_data(
    spec: str, batch: int, names: ClassNames = (), *, labelled_only: bool = False
) -> ArrayData:
    """Return the rows of a table of numbers.

    Args:
        spec: a `.csv` or `.tsv` with a line of names in front. The column "label", or such a name
            as people have for it, is no input but the labels, numbers or texts; another follows a
            "?", and what is neither: `houses.csv?label=price&drop=id,street`.
        batch: how many rows there are in one.
        names: of the network's classes: labels that are texts stand for their numbers. Without any
            they are numbered in their order.
        labelled_only: whether there must be a label.

    Raises:
        UsageError: there is no such file or column, no row, no name in front, no label where there
            must be one, or an input is no finite number.
    """
    place, _, query = spec.partition("?")
    path, words = Path(place), dict(parse_qsl(query))
    asked, dropped = words.pop("label", None), [*filter(None, words.pop("drop", "").split(","))]
    if words:
        raise UsageError(f"{spec}: {next(iter(words))!r} is not known; there are label= and drop=")
    columns, cells = _cells(path)
    has = f"it has {', '.join(map(repr, columns[:_SHOWN]))}"
    for one in ([] if asked is None else [asked]) + dropped:
        if one not in columns:
            raise UsageError(f"{path}: has no column {one!r}; {has}")
    label = asked or next((name for name in LABELS if name in columns), None)
    if label is None and labelled_only:
        raise UsageError(
            f"{path}: which column is the label? {has}; name it, {path}?label={columns[-1]}"
        )
    inputs = [at for at, name in enumerate(columns) if name not in (label, *dropped)]
    if cells.shape[1] != len(columns) or not inputs:
        raise UsageError(f"{path}: its rows have {cells.shape[1]} cells; {has}")
    found = [_numbers(path, columns[at], cells[:, at]) for at in inputs]
    x = torch.from_numpy(np.stack(found, 1))
    if label is None:
        return ArrayData(x, None, batch)
    y, classes = labelled(path, cells[:, columns.index(label)].tolist(), names)
    return ArrayData(x, y, batch, classes)


def _cells(path: Path) -> tuple[list[str], np.ndarray]:
    """Return the names of a table's columns, and its cells, a row a sample; raises as above."""
    if not path.is_file():
        raise UsageError(f"{path}: no such file of data")
    between = "\t" if path.suffix == ".tsv" else ","
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            columns = next(csv.reader(file, delimiter=between), [])
            lines = [line for line in file if line.strip()]
        if not lines:
            raise UsageError(f"{path}: has no row below its names")
        cells = np.loadtxt(lines, str, delimiter=between, quotechar='"', comments=None, ndmin=2)
    except (ValueError, OSError, csv.Error) as error:
        raise UsageError(f"{path}: is no table that can be read: {error}") from error
    if "" in columns:
        raise UsageError(
            f"{path}: column {columns.index('') + 1} has no name, as the index that pandas writes; "
            "name it, or write the table without: to_csv(..., index=False)"
        )
    if any(map(_is_number, columns)):
        raise UsageError(f"{path}: its first line has numbers; put the names of its columns there")
    return columns, cells


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _numbers(path: Path, name: str, cells: np.ndarray) -> np.ndarray:
    """Return a column as float32."""
    try:
        found = cells.astype(np.float32)
    except ValueError as error:
        cell = next(str(cell) for cell in cells if not _is_number(cell))
        raise UsageError(
            f"{path}: column {name!r} is an input and has {cell!r}, which is no number; make it "
            f"numbers as in training, or, if it is the label, write {path}?label={name}, if it is "
            f"neither, {path}?drop={name}; texts need the network's tokenizer, as hf:FOLDER has one"
        ) from error
    if not np.isfinite(found).all():
        row = int(np.flatnonzero(~np.isfinite(found))[0])
        raise UsageError(f"{path}: column {name!r} is {cells[row]} in row {row + 1} of the data")
    return found
