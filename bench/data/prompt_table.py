"""Prompts for a folder of images, from a CSV file.

Columns: `image`, a file's name in the folder; x0, y0, x1, y1, a box; x, y and label, a point (1 foreground, the default, or 0
background). A row is a prompt, which gives a mask of its own: a box, a point, or both together; a row with neither asks for the
image without any prompt. With the column `prompt`, rows of an image that have the same text in it are one prompt, of several points.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import DataError, unknown
from bench.grid.files import read_text

BOX, POINT = ("x0", "y0", "x1", "y1"), ("x", "y")
COLUMNS = ("image", "prompt", *BOX, *POINT, "label")
Numbers = tuple[float, ...]


@dataclass(frozen=True)
class TablePrompt:
    """One prompt, in pixels: at most one box xyxy, and points xy with their labels. row: the first line of the file that it stands in."""

    row: int
    box: Numbers = ()
    points: tuple[Numbers, ...] = ()
    labels: Numbers = ()

    @property
    def keywords(self) -> dict[str, Any]:
        """As `predict` takes it."""
        box = {"boxes": [self.box]} if self.box else {}
        return box | ({"points": [self.points], "labels": [self.labels]} if self.points else {})


def read_prompts(path: Path) -> dict[str, list[TablePrompt]]:
    """Image -> its prompts, in the file's order; DataError, with the row, for what cannot be read."""
    try:
        reader = csv.DictReader(io.StringIO(read_text(path), newline=""), restkey="", skipinitialspace=True)
        columns = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = columns
        _check_columns(path, columns)
        rows = [(reader.line_num, _cells(path, reader.line_num, row)) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"The prompts {path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    if not rows:
        raise DataError(f"The prompts {path} have no row below the columns' names.")
    found: dict[str, dict[str, TablePrompt]] = {}
    for line, row in rows:
        name = row.get("image", "")
        if not name:
            raise DataError(f"{path}, row {line}: the column image is empty.")
        of_image = found.setdefault(name, {})
        group = row.get("prompt", "") or f" row {line}"  # a text that no cell can have
        of_image[group] = _joined(path, line, of_image.get(group), _prompt(path, line, row))
    return {name: _checked(path, list(prompts.values())) for name, prompts in found.items()}


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    for name in columns:
        if name not in COLUMNS:
            raise DataError(str(unknown(f"column of {path}", name, COLUMNS)))
        if columns.count(name) > 1:
            raise DataError(f"The prompts {path} have the column {name} twice.")
    missing = [
        name
        for group in (("image",), BOX, POINT)
        for name in group
        if name not in columns and (group == ("image",) or set(group) & set(columns))
    ]
    missing += list(POINT) if "label" in columns and not set(POINT) & set(columns) else []
    if missing:
        raise DataError(f"The prompts {path} have no column {' or '.join(missing)}; they have {', '.join(columns) or 'none'}.")


def _cells(path: Path, line: int, row: Mapping[str, Any]) -> dict[str, str]:
    if "" in row or None in row.values():
        raise DataError(f"{path}, row {line}: it has {'more' if '' in row else 'fewer'} cells than there are columns.")
    return {name: text.strip() for name, text in row.items()}


def _prompt(path: Path, line: int, row: Mapping[str, str]) -> TablePrompt:
    """The prompt of one row; a point's label is 1 where none is written."""
    box, point = (_numbers(path, line, row, names) for names in (BOX, POINT))
    if row.get("label") and not point:
        raise DataError(f"{path}, row {line}: the label {row['label']} has no point x, y.")
    label = _numbers(path, line, row, ("label",)) or (1.0,)
    return TablePrompt(line, box, (point,) if point else (), label if point else ())


def _numbers(path: Path, line: int, row: Mapping[str, str], names: Sequence[str]) -> Numbers:
    """The numbers in these columns; none where all of them are empty."""
    texts = [row.get(name, "") for name in names]
    if not any(texts):
        return ()
    for name, text in zip(names, texts, strict=True):
        try:
            float(text)
        except ValueError:
            raise DataError(f"{path}, row {line}: {name} = {text!r} is no number.") from None
    return tuple(map(float, texts))


def _joined(path: Path, line: int, first: TablePrompt | None, more: TablePrompt) -> TablePrompt:
    """Two rows of one prompt together."""
    if first is None:
        return more
    if first.box and more.box:
        raise DataError(f"{path}, row {line}: its prompt has a box already, in row {first.row}; a prompt has at most one.")
    return TablePrompt(first.row, first.box or more.box, first.points + more.points, first.labels + more.labels)


def _checked(path: Path, prompts: list[TablePrompt]) -> list[TablePrompt]:
    """An image's prompts; the list is empty where it has one row without any."""
    empty = [prompt for prompt in prompts if not prompt.keywords]
    if empty and len(prompts) > 1:
        raise DataError(f"{path}, row {empty[0].row}: it has no prompt, but its image has others.")
    return [] if empty else prompts
