"""A table before any format, and its renderings."""

import io
from collections.abc import Callable, Mapping
from csv import writer
from dataclasses import dataclass

from tabulate import tabulate


@dataclass(frozen=True)
class Column:
    """A column below a group's heading; `digits` behind the point, `signed` shows the plus of a difference."""

    group: str
    name: str
    digits: int = 1
    signed: bool = False


@dataclass(frozen=True)
class Cell:
    """A number with its spread, or a `reason` why there is none; `notes` become footnotes, `of` is the runs asked for."""

    value: float | None = None
    spread: float | None = None
    n: int | None = None
    of: int | None = None
    reason: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """A row's heading and its cells, one a column."""

    heading: str
    cells: tuple[Cell, ...]


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


def markdown(table: Table) -> str:
    """The table as GitHub's markdown, aligned so that it also reads in a terminal; each gap's reason is a footnote."""
    footnotes: list[str] = []
    body = [
        [_one_line(row.heading), *(_text(*pair, footnotes) for pair in zip(row.cells, table.columns, strict=True))] for row in table.rows
    ]
    heads = [table.corner, *(f"{column.group} {column.name}".strip() for column in table.columns)]
    align = ("left", *("right" for _ in table.columns))
    grid = tabulate(body, [_one_line(head) for head in heads], tablefmt="pipe", colalign=align, disable_numparse=True)
    common = " · ".join(f"{name} {value}" for name, value in table.context)
    notes = [*table.notes, *(f"[^{i}]: {note}" for i, note in enumerate(footnotes, 1))]
    return "\n\n".join([f"### {table.title}", _one_line(common), grid, *map(_one_line, notes)]) + "\n"


def csv(table: Table) -> str:
    """The table as CSV, a line a cell, in full precision; the context is repeated on every line."""
    text = io.StringIO()
    out = writer(text, lineterminator="\n")
    out.writerow([*(name for name, _ in table.context), "row", "group", "column", "value", "spread", "n", "n_asked", "reason", "notes"])
    for row in table.rows:
        for column, cell in zip(table.columns, row.cells, strict=True):
            place = [*(value for _, value in table.context), row.heading, column.group, column.name]
            out.writerow([*place, *_numbers(cell), cell.reason, "; ".join(cell.notes)])
    return text.getvalue()


FORMATS: Mapping[str, Callable[[Table], str]] = {"md": markdown, "csv": csv}


def _text(cell: Cell, column: Column, footnotes: list[str]) -> str:
    """A cell's text; adds its notes to the footnotes and refers to them."""
    for note in cell.notes:
        if note not in footnotes:
            footnotes.append(note)
    marks = "".join(f" [^{footnotes.index(note) + 1}]" for note in cell.notes)
    if cell.value is None:
        return _one_line(cell.reason or "-") + marks
    sign = "+" if column.signed else ""
    number = f"{cell.value:{sign},.{column.digits}f}"
    spread = "" if cell.spread is None else f" ± {cell.spread:.{column.digits}f}"
    return number + spread + _count(cell) + marks


def _count(cell: Cell) -> str:
    if cell.n is None or (cell.n == 1 and cell.of in (None, 1)):
        return ""
    return f" (n={cell.n})" if cell.of in (None, cell.n) else f" (n={cell.n} of {cell.of})"


def _numbers(cell: Cell) -> list[str]:
    return ["" if number is None else repr(number) for number in (cell.value, cell.spread, cell.n, cell.of)]


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
