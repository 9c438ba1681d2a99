"""HTML of a table, beside the markdown and CSV that `bench.reporting.table` has; FORMATS names all four."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from bench.reporting.labels import Facts, in_words
from bench.reporting.latex import label, latex
from bench.reporting.table import Table, count, csv, footnote_numbers, interval, markdown, number


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
        "label": label,
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
