"""Tables on a terminal, at its width; as markdown where the output goes into a file or another command."""

import sys

from rich import box
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from bench.reporting.labels import in_words
from bench.reporting.table import Cell, Column, Table, count, footnote_numbers, interval, markdown, number, packed, runs_once

BETWEEN = 2  # characters between two columns
MOST_HEADING = 3  # a row's heading has at most a third of the width
RAISED = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
STYLES = {"": "", "best": "bold", "second": "underline"}


def show(table: Table) -> None:
    """Prints a table to stdout: drawn on a terminal, as markdown elsewhere."""
    table = runs_once(table)
    if sys.stdout.isatty():
        draw(table, Console(highlight=False))
    else:
        print(markdown(table))


def draw(table: Table, console: Console) -> None:
    """Draws a table at the console's width. What does not fit stands in two lines a cell, intervals below; then columns that do not fit
    beside each other follow below, with the rows' headings again, those of a group together."""
    footnotes: list[str] = []
    texts = [[_text(*pair, footnotes) for pair in zip(row.cells, table.columns, strict=True)] for row in table.rows]
    lines = [[Text(" ").join(text) for text in row] for row in texts]
    longest = max([len(table.corner), *(len(row.heading) for row in table.rows)])
    room = console.width - min(longest, console.width // MOST_HEADING)
    if sum(width + BETWEEN for width in _widths(table, lines)) > room:
        lines = [[Text("\n").join(text) for text in row] for row in texts]
    widths = _widths(table, lines)
    console.print(Text(table.title, style="bold"), Text(in_words(table.context), style="dim"), sep="\n")
    for block in packed(table, [width + BETWEEN for width in widths], room, len(widths)):
        console.print("", _grid(table, block, lines, widths))
    notes = ["", *table.notes, *(f"{i}".translate(RAISED) + f" {note}" for i, note in enumerate(footnotes, 1))]
    console.print(*map(Text, notes), sep="\n", end="\n\n")


def _grid(table: Table, block: list[int], lines: list[list[Text]], widths: list[int]) -> Grid:
    grid = Grid(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, BETWEEN - 1, 0, 0), header_style="bold")
    grid.add_column(Text(table.corner), vertical="top")
    for i in block:
        grid.add_column(Text(_head(table.columns[i])), justify="right", width=widths[i], vertical="top")
    for row, of in zip(table.rows, lines, strict=True):
        grid.add_row(Text(row.heading), *(of[i] for i in block))
    return grid


def _head(column: Column) -> str:
    return f"{column.group} {column.name}".strip()


def _widths(table: Table, lines: list[list[Text]]) -> list[int]:
    """Of the columns, in characters: the longest line of a cell, or word of a heading."""
    heads = [max(map(len, _head(column).split()), default=0) for column in table.columns]
    return [max([head, *(len(line) for row in lines for line in row[i].split())]) for i, head in enumerate(heads)]


def _text(cell: Cell, column: Column, footnotes: list[str]) -> list[Text]:
    """What stands in a cell: its number or why there is none, and behind or below it its interval and its number of runs."""
    marks = " ".join(str(i) for i in footnote_numbers(cell, footnotes)).translate(RAISED)
    if cell.value is None:
        return [Text(f"{cell.reason or '-'}{marks}", style="dim")]
    more = (interval(cell, column) + count(cell)).strip()
    first = Text.assemble((number(cell, column), STYLES[cell.mark]), marks)
    return [first, Text(more, style="dim")] if more else [first]
