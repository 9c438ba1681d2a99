"""A table before any format, and its renderings."""

import io
import re
from collections.abc import Sequence
from csv import writer
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

import pandas as pd

from bench.grid.spreadsheet import no_formula
from bench.reporting.labels import Facts, in_words

Mark = Literal["", "best", "second"]


@dataclass(frozen=True)
class Column:
    """A column below a group's heading; `digits` behind the point, `signed` shows the plus of a difference; `about` as in a row."""

    group: str
    name: str
    digits: int = 1
    signed: bool = False
    about: Facts = ()


@dataclass(frozen=True)
class Cell:
    """A number with its spread, or a `reason` why there is none; `notes` become footnotes, `of` is the runs asked for.

    low, high: ends of the 95 % interval; images: test images behind it; mark: "best" or "second" where the difference from the
    next is outside the noise. A cell of words has its words as `reason`.
    """

    value: float | None = None
    std: float | None = None
    n: int | None = None
    of: int | None = None
    reason: str = ""
    notes: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    images: int | None = None
    mark: Mark = ""


@dataclass(frozen=True)
class Row:
    """A row's heading and its cells, one a column; `about` says what a page can filter by, such as ("dataset", "whu")."""

    heading: str
    cells: tuple[Cell, ...]
    about: Facts = ()


@dataclass(frozen=True)
class Table:
    """A table before any format: `context` says what all its numbers have in common, `notes` stand below it."""

    name: str
    title: str
    context: tuple[tuple[str, str], ...]
    corner: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def frame(self) -> pd.DataFrame:
        """Its numbers by row and column, as floats; words where a cell has no number."""
        heads = [f"{column.group} {column.name}".strip() for column in self.columns]
        body = [[cell.reason if cell.value is None else cell.value for cell in row.cells] for row in self.rows]
        return pd.DataFrame(body, pd.Index([row.heading for row in self.rows], name=self.corner), heads)

    def _repr_markdown_(self) -> str:
        return markdown(self)


def markdown(table: Table) -> str:
    """The table as GitHub's markdown, aligned so that it also reads in a terminal; each gap's reason is a footnote."""
    from tabulate import tabulate  # a page needs none of it

    footnotes: list[str] = []
    body = [
        [_one_line(row.heading), *(_text(*pair, footnotes) for pair in zip(row.cells, table.columns, strict=True))] for row in table.rows
    ]
    heads = [table.corner, *(f"{column.group} {column.name}".strip() for column in table.columns)]
    align = ("left", *("right" for _ in table.columns))
    grid = tabulate(body, [_one_line(head) for head in heads], tablefmt="pipe", colalign=align, disable_numparse=True)
    notes = [*map(_one_line, table.notes), *(f"[^{i}]: {_one_line(note)}" for i, note in enumerate(footnotes, 1))]
    return "\n\n".join([f"### {_one_line(table.title)}", _one_line(in_words(table.context)), grid, *notes]) + "\n"


BRACKETS = "In brackets: "  # begins the note that says what intervals are


def reduced(table: Table, intervals: bool = True, runs: bool = True) -> Table:
    """The table without its intervals, and without its numbers of runs, if so asked."""

    def of(cell: Cell) -> Cell:
        cell = cell if intervals else replace(cell, low=None, high=None)
        return cell if runs else replace(cell, n=None, of=None)

    rows = tuple(replace(row, cells=tuple(map(of, row.cells))) for row in table.rows)
    return replace(table, rows=rows, notes=tuple(note for note in table.notes if intervals or not note.startswith(BRACKETS)))


def runs_once(table: Table) -> Table:
    """The table with its number of runs in the context alone, where all means have the same."""
    counted = [cell for row in table.rows for cell in row.cells if count(cell)]
    runs = {cell.n if cell.std is not None and cell.of in (None, cell.n) else None for cell in counted}
    if len(runs) != 1 or None in runs:
        return table
    return replace(reduced(table, runs=False), context=(*table.context, ("n", f"{runs.pop()} where there is a ±")))


NUMBERS = ("value", "spread", "n", "n_asked", "low", "high", "images", "mark")


def csv(table: Table) -> str:
    """The table as CSV, a line a cell, in full precision; the context is repeated on every line. The last columns have the names of the
    method and the data set that headings have by their titles."""
    text = io.StringIO()
    out = writer(text, lineterminator="\n")
    out.writerow(
        [*(no_formula(name) for name, _ in table.context), "row", "group", "column", *NUMBERS, "reason", "notes", "method", "dataset"]
    )
    for row in table.rows:
        for column, cell in zip(table.columns, row.cells, strict=True):
            place = [*(value for _, value in table.context), row.heading, column.group, column.name]
            said = [
                cell.reason,
                "; ".join(cell.notes),
                *("|".join(_of((*row.about, *column.about), name)) for name in ("method", "dataset")),
            ]
            out.writerow([*map(no_formula, place), *_numbers(cell), *map(no_formula, said)])
    return text.getvalue()


def _of(about: Facts, name: str) -> list[str]:
    return [value for known, value in about if known == name]


def _text(cell: Cell, column: Column, footnotes: list[str]) -> str:
    """A cell's text; adds its notes to the footnotes and refers to them."""
    marks = "".join(f" [^{i}]" for i in footnote_numbers(cell, footnotes))
    if cell.value is None:
        return _one_line(cell.reason or "-") + marks
    before, after = {"": ("", ""), "best": ("**", "**"), "second": ("<u>", "</u>")}[cell.mark]
    return before + number(cell, column) + after + interval(cell, column) + count(cell) + marks


def footnote_numbers(cell: Cell, footnotes: list[str]) -> list[int]:
    """The numbers of a cell's notes, from 1; notes that are new are added to the footnotes."""
    footnotes += [note for note in dict.fromkeys(cell.notes) if note not in footnotes]
    return [footnotes.index(note) + 1 for note in cell.notes]


def number(cell: Cell, column: Column, between: str = " ± ") -> str:
    """The value of a cell that has one, with its spread, in the column's digits; "<0.01" for what is not 0 but would be shown as it."""
    sign, smallest = "+" if column.signed else "", f"{10**-column.digits:.{column.digits}f}"
    if not sign and cell.std is None and 0 < (cell.value or 0) < float(smallest) / 2:
        return f"<{smallest}"
    std = "" if cell.std is None else f"{between}{cell.std:.{column.digits}f}"
    return f"{cell.value:{sign},.{column.digits}f}" + std


def interval(cell: Cell, column: Column) -> str:
    """The 95 % interval in brackets, after a space; empty where there is none."""
    if cell.low is None or cell.high is None:
        return ""
    return f" [{cell.low:.{column.digits}f}, {cell.high:.{column.digits}f}]"


def count(cell: Cell) -> str:
    """How many runs are behind the value, where it is not the one that was asked for."""
    if cell.n is None or (cell.n == 1 and cell.of in (None, 1)):
        return ""
    return f" (n={cell.n})" if cell.of in (None, cell.n) else f" (n={cell.n} of {cell.of})"


def packed(table: Table, widths: Sequence[float], room: float, most: int) -> list[list[int]]:
    """The columns' places, block by block, of which each is at most `room` wide in all and has at most so many columns.

    The columns of a group stay together, but for a group that is too large for a block of its own.
    """

    def fits(places: Sequence[int]) -> bool:
        return len(places) <= most and sum(widths[i] for i in places) <= room

    blocks: list[list[int]] = [[]]
    groups = groupby(range(len(table.columns)), key=lambda i: table.columns[i].group or str(i))
    for group in (list(of) for _, of in groups):
        for piece in [group] if fits(group) else [[i] for i in group]:
            if blocks[-1] and not fits([*blocks[-1], *piece]):
                blocks.append([])
            blocks[-1] += piece
    return blocks


def _numbers(cell: Cell) -> list[str]:
    numbers = (cell.value, cell.std, cell.n, cell.of, cell.low, cell.high, cell.images)
    return [*("" if number is None else repr(number) for number in numbers), cell.mark]


def _one_line(text: str) -> str:
    """A text of one line in which markdown finds no cell, tag, link or link's target."""
    flat = " ".join(text.split()).replace("|", "\\|")
    return re.sub(r"\](?=[(\[:])", "&#93;", re.sub(r"<(?=[A-Za-z/!?])", "&lt;", flat))
