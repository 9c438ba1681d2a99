"""A table in LaTeX, for booktabs: as many tabulars below each other as its columns need at full size, and its notes below them."""

import re
from collections.abc import Sequence
from itertools import groupby

from bench.reporting.labels import in_words
from bench.reporting.table import Cell, Column, Table, count, footnote_numbers, interval, number, packed

SPECIAL = {
    **{char: f"\\{char}" for char in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "Δ": r"$\Delta$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "−": "$-$",
    "²": r"$^2$",
    "³": r"$^3$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}

MOST_COLUMNS = 12  # of a tabular, its headings among them
TEXT_WIDTH = 340.0  # points: the text of an article in one column
CHARACTER, SMALL, BETWEEN = 4.4, 4.1, 8.0  # points: a character at \footnotesize and at \scriptsize, and the space between two columns
PAGE_LINES = 40  # of the tabulars of one float
CAPTION = 300  # characters


def latex(table: Table) -> str:
    """Floats (`table*`) for booktabs alone: best bold and second underlined where marked; intervals and numbers of runs in a line below.

    A tabular has at most MOST_COLUMNS columns and the text's width: the columns of a group (a data set) stay together where they can, and
    what does not fit beside follows below, with the rows' headings again. A float has at most PAGE_LINES lines; the next one goes on.
    The caption is the title, and what all numbers have in common if that leaves it short; notes stand below the first float.
    """
    footnotes: list[str] = []
    lines = [_lines(table, cells, footnotes) for cells in (row.cells for row in table.rows)]
    deep = max([len(of) for of in lines], default=1)
    blocks = _blocks(table)
    rows = max(1, PAGE_LINES // deep)
    parts = [(block, at) for block in blocks for at in range(0, max(1, len(lines)), rows)]
    tabulars = [(_tabular(table, block, lines, at, at + rows), deep * len(lines[at : at + rows]) + 3) for block, at in parts]
    floats = _floats(tabulars)
    common = in_words(table.context)
    short = len(table.title) + len(common) + 3 <= CAPTION
    notes = [*([] if short else [f"{common}."]), *table.notes]
    said = [*map(tex, notes), *(f"$^{{\\dagger{i}}}$~{tex(note)}." for i, note in enumerate(footnotes, 1))]
    caption = f"{table.title}. {common}." if short else f"{table.title}."
    made = [_float(tex(caption), label(table.name), floats[0], said)]
    for i, of in enumerate(floats[1:], 2):
        made.append(
            _float(f"{tex(table.title)}. Part {i} of {len(floats)}; the notes stand with the first.", f"{label(table.name)}-{i}", of, [])
        )
    return "\n".join(made)


def tex(text: str) -> str:
    """A text with the characters that LaTeX gives a meaning escaped."""
    return "".join(SPECIAL.get(char, char) for char in " ".join(text.split()))


def label(name: str) -> str:
    """A name of letters, digits and hyphens."""
    return "".join(char if char.isalnum() else "-" for char in name)


def _float(caption: str, name: str, tabulars: Sequence[str], notes: Sequence[str]) -> str:
    head = [r"\begin{table*}", r"\centering\footnotesize\setlength{\tabcolsep}{4pt}", f"\\caption{{{caption}}}", f"\\label{{tab:{name}}}"]
    body = [r"\par\smallskip", "\n\\par\\medskip\n".join(tabulars)]
    below = [r"\par\smallskip", r"\begin{minipage}{\textwidth}\scriptsize\raggedright", "\\par\n".join(notes), r"\end{minipage}"]
    return "\n".join([*head, *body, *(below if notes else []), r"\end{table*}"]) + "\n"


def _floats(tabulars: Sequence[tuple[str, int]]) -> list[list[str]]:
    """Tabulars with their numbers of lines, those of a float together."""
    floats: list[list[str]] = []
    used = PAGE_LINES
    for text, lines in tabulars:
        if used + lines > PAGE_LINES:
            floats, used = [*floats, []], 0
        floats[-1].append(text)
        used += lines
    return floats


def _tabular(table: Table, block: Sequence[int], lines: Sequence[Sequence[Sequence[str]]], start: int, stop: int) -> str:
    """The tabular of some columns, by their places, and rows."""
    columns = [table.columns[i] for i in block]
    rows = []
    for row, of in zip(table.rows[start:stop], lines[start:stop], strict=True):
        texts = [[line[i] for i in block] for line in of]
        kept = [line for i, line in enumerate(texts) if i == 0 or any(line)]
        rows += [" & ".join([tex(row.heading) if i == 0 else "", *line]) + r" \\" for i, line in enumerate(kept)]
    head = [f"\\begin{{tabular}}{{l{'r' * len(columns)}}}", r"\toprule", *_heads(table.corner, columns), r"\midrule"]
    return "\n".join([*head, *rows, r"\bottomrule", r"\end{tabular}"])


def _heads(corner: str, columns: Sequence[Column]) -> list[str]:
    """One line of heads, or two with rules below the groups."""
    names = " & ".join([tex(corner), *(tex(column.name) for column in columns)]) + r" \\"
    if not any(column.group for column in columns):
        return [names]
    groups, rules, at = [""], [], 2
    for group, of in groupby(columns, key=lambda column: column.group):
        width = len(list(of))
        groups.append(f"\\multicolumn{{{width}}}{{c}}{{{tex(group)}}}")
        rules += [f"\\cmidrule(lr){{{at}-{at + width - 1}}}"] if group else []
        at += width
    return [" & ".join(groups) + r" \\", "".join(rules), names]


def _blocks(table: Table) -> list[list[int]]:
    """The places of the columns of each tabular."""
    headings = CHARACTER * max([len(table.corner), *(len(row.heading) for row in table.rows)]) + BETWEEN
    widths = [_width(table, i) for i in range(len(table.columns))]
    return packed(table, widths, TEXT_WIDTH - headings, MOST_COLUMNS - 1)


def _width(table: Table, place: int) -> float:
    """About how many points a column takes."""
    column = table.columns[place]
    shares = sum(other.group == column.group for other in table.columns)
    texts = [column.name, " " * (len(column.group) // shares)]
    small = [""]
    for cell in (row.cells[place] for row in table.rows):
        texts.append((cell.reason or "-" if cell.value is None else number(cell, column)) + "  " * len(cell.notes))
        small.append("" if cell.value is None else interval(cell, column) + count(cell))
    return max(CHARACTER * max(map(len, texts)), SMALL * max(map(len, small))) + BETWEEN


def _lines(table: Table, cells: Sequence[Cell], footnotes: list[str]) -> list[list[str]]:
    """A row's texts by column: numbers or reasons, and below them intervals and numbers of runs, where there are any."""
    pairs = list(zip(cells, table.columns, strict=True))
    above = [_above(*pair, footnotes) for pair in pairs]
    below = [_below(*pair) for pair in pairs]
    return [above, below] if any(below) else [above]


def _above(cell: Cell, column: Column, footnotes: list[str]) -> str:
    marks = "".join(f"$^{{\\dagger{i}}}$" for i in footnote_numbers(cell, footnotes))
    if cell.value is None:
        return tex(cell.reason or "-") + marks
    shown = re.sub("[-+<]", r"$\g<0>$", number(cell, column, r" $\pm$ "))
    return {"": shown, "best": f"\\textbf{{{shown}}}", "second": f"\\underline{{{shown}}}"}[cell.mark] + marks


def _below(cell: Cell, column: Column) -> str:
    if cell.value is None or not (text := (interval(cell, column) + count(cell)).strip()):
        return ""
    return f"{{\\scriptsize {tex(text).replace('-', '$-$').replace('n=', '$n$=')}}}"
