"""LaTeX and HTML of a table, beside the markdown and CSV that `bench.reporting.table` has; FORMATS names all four."""

from collections.abc import Callable, Mapping
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from bench.reporting.labels import Facts, in_words
from bench.reporting.table import Cell, Column, Table, count, csv, footnote_numbers, interval, markdown, number

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
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}

PAGE_ROWS = 40


def latex(table: Table) -> str:
    """A `table*` for booktabs: best bold and second underlined where marked, runs as n, notes as numbered daggers. More than
    PAGE_ROWS rows are several, the notes with the first.

    It needs \\usepackage{booktabs,graphicx}; wide tables are shrunk to the text's width.
    """
    footnotes: list[str] = []
    body = [
        " & ".join([tex(row.heading), *(_tex_cell(*pair, footnotes) for pair in zip(row.cells, table.columns, strict=True))])
        for row in table.rows
    ]
    common = tex(in_words(table.context))
    notes = [*map(tex, table.notes), *(f"$^{{\\dagger{i}}}$~{tex(note)}." for i, note in enumerate(footnotes, 1))]
    parts = [body[at : at + PAGE_ROWS] for at in range(0, len(body), PAGE_ROWS)] or [[]]
    captions = [" ".join([f"{tex(table.title)}. {common}.", *notes])]
    captions += [f"{tex(table.title)}. Part {i} of {len(parts)}; the notes stand with the first." for i in range(2, len(parts) + 1)]
    labels = ["", *(f"-{i}" for i in range(2, len(parts) + 1))]
    return "\n".join(_tex_float(table, *each) for each in zip(parts, captions, labels, strict=True))


def _tex_float(table: Table, body: list[str], caption: str, part: str) -> str:
    head = [r"\begin{table*}", r"\centering", f"\\caption{{{caption}}}", f"\\label{{tab:{_label(table.name)}{part}}}", r"\par\smallskip"]
    grid = [r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%", f"\\begin{{tabular}}{{l{'r' * len(table.columns)}}}"]
    rows = [r"\toprule", *_tex_heads(table), r"\midrule", *(f"{line} \\\\" for line in body), r"\bottomrule"]
    return "\n".join([*head, *grid, *rows, r"\end{tabular}}", r"\end{table*}"]) + "\n"


def tex(text: str) -> str:
    """A text with the characters that LaTeX gives a meaning escaped."""
    return "".join(SPECIAL.get(char, char) for char in " ".join(text.split()))


def _label(name: str) -> str:
    return "".join(char if char.isalnum() else "-" for char in name)


def _tex_heads(table: Table) -> list[str]:
    """One line of heads, or two with rules below the groups."""
    names = " & ".join([tex(table.corner), *(tex(column.name) for column in table.columns)]) + r" \\"
    if not any(column.group for column in table.columns):
        return [names]
    groups, rules, at = [""], [], 2
    for group, columns in groupby(table.columns, key=lambda column: column.group):
        width = len(list(columns))
        groups.append(f"\\multicolumn{{{width}}}{{c}}{{{tex(group)}}}")
        rules += [f"\\cmidrule(lr){{{at}-{at + width - 1}}}"] if group else []
        at += width
    return [" & ".join(groups) + r" \\", "".join(rules), names]


def _tex_cell(cell: Cell, column: Column, footnotes: list[str]) -> str:
    marks = "".join(f"$^{{\\dagger{i}}}$" for i in footnote_numbers(cell, footnotes))
    if cell.value is None:
        return tex(cell.reason or "-") + marks
    shown = number(cell, column, r" $\pm$ ").replace("-", "$-$").replace("+", "$+$")
    shown = {"": shown, "best": f"\\textbf{{{shown}}}", "second": f"\\underline{{{shown}}}"}[cell.mark]
    ends = interval(cell, column).replace("-", "$-$")
    return shown + (f" {{\\scriptsize{ends}}}" if ends else "") + tex(count(cell)).replace("(n=", r" ($n$=").replace("  ", " ") + marks


def html(table: Table) -> str:
    """A `<table>` with a caption, heads with scope, each number's full value to sort by, and the notes below it."""
    return render("table.html", table=table, region=False)


def render(template: str, **values: Any) -> str:
    """A file of templates/, filled in; what a value holds is text and never markup."""
    return _templates().get_template(template).render(values)


@cache
def _templates() -> Environment:
    """The environment of all templates."""
    folder = FileSystemLoader(Path(__file__).parent / "templates")
    made = Environment(
        loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    made.filters |= {"data": _data_attributes, "said": in_words}
    made.globals |= {
        "label": _label,
        "number": number,
        "interval": interval,
        "count": count,
        "footnote_numbers": footnote_numbers,
        "zip": zip,
    }
    return made


def _data_attributes(about: Facts, *names: str) -> dict[str, str]:
    """What a page can filter by (of these names only, if any), as attributes; several values of one name stand between bars."""
    found: dict[str, list[str]] = {}
    for name, value in about:
        if not names or name in names:
            found.setdefault(f"data-{name}", []).append(value)
    return {name: "|".join(values) for name, values in found.items()}


FORMATS: Mapping[str, Callable[[Table], str]] = {"md": markdown, "csv": csv, "latex": latex, "html": html}
SUFFIX: Mapping[str, str] = {"latex": "tex"}  # where a file is not named for its format
