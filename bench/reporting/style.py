"""How every figure looks and is written: one palette (Okabe and Ito, colour-blind safe), one size of type, the same bytes twice.

A figure is as wide as a column of a paper, or as its page where one has more panels than a column can hold.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bench.reporting.table import Cell

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#7A6A00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")  # beside the colour, for print in grey
DASHES = ("-", "--", ":", "-.")  # of lines whose colour comes again
GREY = "#767676"
COLUMN, PAGE = 85 / 25.4, 174 / 25.4  # inches
STACKED = 3  # panels that a column holds; more of them stand in pairs on a page
SMALL, LETTER = 6, 0.052  # points of names, and about the inches of one of their letters
LONGEST = {"row": 30, "legend": 26}  # letters of a line
SETTINGS = {
    "font.family": "DejaVu Sans",
    "font.size": 7,
    "figure.dpi": 200,  # with the next: texts are as wide as the layout thinks, in all forms
    "text.hinting": "no_hinting",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.titlesize": 7.5,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": SMALL,
    "lines.linewidth": 1.1,
    "svg.hashsalt": "sam-peft-bench",
    "pdf.fonttype": 42,
    "text.parse_math": False,  # a name with a $ is a name
}
METADATA: Mapping[str, dict[str, Any]] = {
    "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
    "svg": {"Date": None, "Creator": None},
    "png": {"Software": None},
}


class Drawing(Figure):
    """A figure in this style wherever it is drawn; its layout is found once, for all forms in which it is saved."""

    def draw(self, renderer: Any) -> None:
        with matplotlib.rc_context(SETTINGS):  # type: ignore[arg-type]
            super().draw(renderer)

    def savefig(self, *to: Any, **how: Any) -> None:
        with matplotlib.rc_context(SETTINGS):  # type: ignore[arg-type]
            if engine := self.get_layout_engine():
                engine.execute(self)
                self.set_layout_engine(None)
            super().savefig(*to, **how)

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        return rendered(self, "png")


@contextmanager
def panels(count: int, height: float, per_line: int = 0, width: float = 0.0) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure with that many panels, each `height` inches high: below each other in a column, or in pairs on a page, unless the width
    of all and how many stand side by side are given."""
    per_line = per_line or (1 if count <= STACKED else 2)
    width = width or (COLUMN if per_line == 1 else PAGE)
    lines = -(-count // per_line)
    with matplotlib.rc_context(SETTINGS):  # type: ignore[arg-type]
        figure = Drawing(figsize=(width, height * lines), layout="constrained")
        FigureCanvasAgg(figure)
        shown = list(figure.subplots(lines, per_line, squeeze=False).ravel())
        for ax in shown[count:]:
            ax.set_axis_off()
        yield figure, shown[:count]


@contextmanager
def panels_of_rows(titles: Sequence[str], names: Sequence[str]) -> Iterator[tuple[Figure, list[Axes]]]:
    """A panel for each title, side by side, with one row for each name, from above to below; names stand at the left."""
    named = max((len(line) for name in names for line in _row_name(name).split("\n")), default=0) + 3
    for width, per_line in ((COLUMN, 3), (PAGE, 6), (PAGE, 4), (PAGE, 2)):
        letters = max(1, int((width / LETTER - named) / min(per_line, len(titles)) / 1.2))  # a title's are larger
        broken = [wrapped(title, letters) for title in titles]
        if all(len(line) <= letters for title in broken for line in title.split("\n")) and (width == PAGE or len(titles) <= per_line):
            break
    with panels(len(titles), height_of_rows(names, 0.66), min(per_line, len(titles)), width) as (figure, axes):
        for k, (ax, title) in enumerate(zip(axes, broken, strict=True)):
            rows(ax, names, named=k % per_line == 0)
            ax.set_title(title)
            ax.xaxis.set_major_locator(MaxNLocator(3, integer=True))
        yield figure, axes


def height_of_rows(names: Sequence[str], around: float) -> float:
    """The height in inches of a panel with rows of these names."""
    lines = max((_row_name(name).count("\n") + 1 for name in names), default=1)
    return around + len(names) * (0.055 + 0.1 * lines)


def rows(ax: Axes, names: Sequence[str], named: bool = True) -> None:
    """Rows for these names, from above to below."""
    ax.set_yticks(range(len(names)), [_row_name(name) for name in names] if named else [], fontsize=SMALL, linespacing=1.0)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.grid(axis="y", visible=False)


def _row_name(name: str) -> str:
    return wrapped(name, LONGEST["row"])


def wrapped(text: str, letters: int) -> str:
    """A text in lines of so many letters, if its words are no longer; a parameter's name stays with its value."""
    return fill(text.replace(": ", ":\N{NO-BREAK SPACE}"), letters, break_on_hyphens=False, break_long_words=False)


def colour(i: int) -> str:
    """The colour of the i-th method."""
    return COLOURS[i % len(COLOURS)]


def marker(i: int) -> str:
    """The marker of the i-th method; no two of 64 have both colour and marker in common."""
    return MARKERS[(i + i // len(COLOURS)) % len(MARKERS)]


def dash(i: int) -> str:
    """The i-th method's kind of line: methods of one colour have different ones."""
    return DASHES[i // len(COLOURS) % len(DASHES)]


def dodged(ax: Axes, i: int, of: int, title: str, cells: Sequence[Cell], joined: bool = True) -> None:
    """The i-th of several methods at 0, 1, …, moved aside so that its intervals hide no other's."""
    aside = min(0.7, 0.1 * of) * ((i + 0.5) / of - 0.5)
    points = [(k + aside, cell.value, cell) for k, cell in enumerate(cells) if cell.value is not None]
    ax.plot([x for x, *_ in points], [value for _, value, _ in points], marker(i), color=colour(i), markersize=3, label=title)
    ax.lines[-1].set(linestyle=dash(i) if joined else "none", linewidth=0.7)
    ends = [(x, cell.low, cell.high) for x, _, cell in points if cell.low is not None and cell.high is not None]
    if ends:
        ax.vlines(*zip(*ends, strict=True), color=colour(i), linewidth=0.7)


def legend_below(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend below all panels, for what any of them has, in the order of the first that has all; the figure grows by its lines."""
    found: dict[str, Any] = {}
    for ax in sorted(axes, key=lambda ax: -len(ax.get_legend_handles_labels()[1])):
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            found.setdefault(wrapped(label, LONGEST["legend"]), handle)
    if not found:
        return
    longest = max(len(line) for label in found for line in label.split("\n"))
    columns = min(len(found), max(1, int(figure.get_figwidth() / LETTER / (longest + 5))))
    how: dict[str, Any] = {"loc": "outside lower center", "handlelength": 1.8, "columnspacing": 1.0, "labelspacing": 0.35, "ncols": columns}
    legend = figure.legend(handles=list(found.values()), labels=list(found), **how)
    figure.set_figheight(figure.get_figheight() + legend.get_window_extent().height / figure.dpi)


def rendered(figure: Figure, form: str) -> bytes:
    """The figure as "pdf", "svg" or "png"; the same figure gives the same bytes."""
    content = io.BytesIO()
    figure.savefig(content, format=form, dpi=200, metadata=METADATA[form])
    return content.getvalue()


def save(figure: Figure, folder: Path, name: str, forms: tuple[str, ...] = tuple(METADATA)) -> list[Path]:
    """Writes `<folder>/<name>.<form>` for each form and returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{form}" for form in forms]
    for path, form in zip(paths, forms, strict=True):
        path.write_bytes(rendered(figure, form))
    return paths
