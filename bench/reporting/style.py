"""How every figure looks and is written: one palette (Okabe and Ito, colour-blind safe), one size of type, the same bytes twice.

A figure is as wide as a column of a paper, or as its page where one has more panels than a column can hold.
"""

import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox, ScaledTranslation

from bench.grid.families import FAMILIES
from bench.grid.published import family_of
from bench.reporting.table import Cell

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#7A6A00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "p", "h")  # beside the colour, for print in grey
DASHES = ("-", "--", ":", "-.")  # of lines whose colour comes again
GREY = "#767676"
OF_FAMILIES = dict(zip(FAMILIES, (COLOURS[0], COLOURS[1], COLOURS[2], COLOURS[3], COLOURS[7]), strict=True))
COLUMN, PAGE = 85 / 25.4, 174 / 25.4  # inches
NUMBERS = 5  # steps of an axis at most: its numbers, with their lines, take longer to draw than all that is shown between them
STACKED = 3  # panels that a column holds; more of them stand in pairs on a page
SMALL, LETTER = 6, 0.052  # points of names, and about the inches of one of their letters
LEADER = 8  # points from which on a line leads to a name
HALO = withStroke(linewidth=1.5, foreground="white")  # behind a name that stands on lines
HEAD = "\N{ZERO WIDTH SPACE}"  # begins a heading among a legend's names
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
    "axes.titley": 1.0,  # where it is in any case: to find that out, all is measured three times more
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": SMALL,
    "lines.linewidth": 1.1,
    "svg.hashsalt": "sam-peft-bench",
    "pdf.fonttype": 42,
    "text.parse_math": False,  # a name with a $ is a name
}
PAD = 3 / 72  # inches around a panel with its words
SIDES = ("left", "bottom", "right", "top")
Boxes = np.ndarray  # (x0, y0, x1, y1) in pixels along the last axis
METADATA: Mapping[str, dict[str, Any]] = {
    "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
    "svg": {"Date": None, "Creator": None},
    "png": {"Software": None},
}


class Drawing(Figure):
    """A figure in this style wherever it is drawn; its layout is found once, for all forms in which it is saved."""

    arranged = False  # for good, as it is saved

    def draw(self, renderer: Any) -> None:
        with matplotlib.rc_context(SETTINGS):  # type: ignore[arg-type]
            if not self.arranged:
                self._arrange()
            super().draw(renderer)

    def savefig(self, *to: Any, **how: Any) -> None:
        with matplotlib.rc_context(SETTINGS):  # type: ignore[arg-type]
            if not self.arranged:
                self._arrange()
                self.arranged = True
            super().savefig(*to, **how)

    def _arrange(self) -> None:
        """Places the panels, all of one size, as closely as their words allow, and above the legend. Matplotlib's constrained layout does
        the same, but measures all of them twice, and so it does to find where the labels of axes stand."""
        renderer, grid = _measuring(self.dpi), self.axes[0].get_subplotspec().get_gridspec()  # type: ignore[union-attr]
        around = {side: np.full(grid.nrows if side in ("bottom", "top") else grid.ncols, PAD * self.dpi) for side in SIDES}
        for ax, row, column in _placed(self.axes):
            panel = ax.get_position(original=True).transformed(self.transFigure)
            words = self._words(ax, panel, renderer)
            for side, of in words.items():
                at = row if side in ("bottom", "top") else column
                around[side][at] = max(around[side][at], of + PAD * self.dpi)
        left, bottom, right, top = around.values()
        below = sum(legend.get_window_extent(renderer).height + 2 * PAD * self.dpi for legend in self.legends)
        wide = (self.bbox.width - (left + right).sum()) / grid.ncols
        high = (self.bbox.height - below - (bottom + top).sum()) / grid.nrows
        x = np.cumsum(left + wide + right) - right - wide
        y = self.bbox.height - np.cumsum(top + high + bottom) + bottom
        for ax, row, column in _placed(self.axes):
            ax.set_position(Bbox.from_bounds(x[column], y[row], wide, high).transformed(self.transFigure.inverted()))

    def _words(self, ax: Axes, panel: Any, renderer: RendererAgg) -> dict[str, float]:
        """How many pixels the words of a panel need at its sides; the labels of its axes are put beside the numbers."""
        names = {"left": (ax.yaxis, (-1, 0)), "bottom": (ax.xaxis, (0, -1))}
        for axis, outwards in names.values():
            axis.set_label_coords(*np.where(outwards, 0.5, axis.label.get_position()))  # in the middle, where it is in nothing's way
        whole: Any = ax.get_tightbbox(renderer, for_layout_only=True, bbox_extra_artists=ax.texts)  # what else there is, is within
        words = _beyond(panel, whole)
        for side, (axis, outwards) in names.items():
            if axis.get_label_text():
                numbers = max(_beyond(ax.bbox, whole)[side] / self.dpi, axis.get_tick_padding() / 72)
                (right, up), (x, y) = np.multiply(outwards, numbers + axis.labelpad / 72), np.where(outwards, 0, axis.label.get_position())
                away = ScaledTranslation(right, up, self.dpi_scale_trans)
                axis.set_label_coords(x, y, transform=ax.transAxes + away)
                words[side] = _beyond(panel, axis.label.get_window_extent(renderer))[side]
        return words

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        return rendered(self, "png")


def _beyond(panel: Any, words: Any) -> dict[str, float]:
    """How many pixels a box needs at the sides of another."""
    return dict(zip(SIDES, (panel.extents - words.extents) * (1, 1, -1, -1), strict=True))


@cache
def _measuring(dpi: float) -> RendererAgg:
    """What measures words, and is drawn on by nothing: a canvas of the figure's size would take longer to clear."""
    return RendererAgg(1, 1, dpi)


def _placed(axes: Iterable[Axes]) -> Iterator[tuple[Axes, int, int]]:
    """The panels, with the row and the column of each."""
    for ax in axes:
        place: Any = ax.get_subplotspec()
        yield ax, place.rowspan.start, place.colspan.start


@contextmanager
def panels(count: int, height: float, per_line: int = 0, width: float = 0.0) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure with that many panels, each `height` inches high: below each other in a column, or in pairs on a page, unless the width
    of all and how many stand side by side are given."""
    per_line = per_line or (1 if count <= STACKED else 2)
    width = width or (COLUMN if per_line == 1 else PAGE)
    lines = -(-count // per_line)
    with matplotlib.rc_context(SETTINGS):  # type: ignore[arg-type]
        figure = Drawing(figsize=(width, height * lines))
        FigureCanvasAgg(figure)
        shown = list(figure.subplots(lines, per_line, squeeze=False).ravel())
        for ax in shown[count:]:
            ax.set_axis_off()
        for ax in shown[:count]:
            ax.locator_params(nbins=NUMBERS)
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
    """The i-th colour."""
    return COLOURS[i % len(COLOURS)]


class Look(NamedTuple):
    """How a method is drawn: colour, marker, kind of line, and whether its marker is full. family: that its colour stands for, or ""."""

    colour: str
    marker: str
    dash: str
    full: bool = True
    family: str = ""

    @property
    def point(self) -> dict[str, Any]:
        """What `Axes.plot` takes for a point, or the points of a line."""
        return {"marker": self.marker, "color": self.colour, **({} if self.full else {"markerfacecolor": "white"})}


def looks(labels: Iterable[str]) -> dict[str, Look]:
    """The looks of a figure's methods: a colour for each family and a marker for each member; a colour for each method where all are of one
    family. No two of 24 members look the same."""
    labels, count = list(labels), Counter[str]()
    if len({family_of(label) for label in labels} - {""}) < 2:
        return {
            label: Look(colour(i), MARKERS[i % len(MARKERS)], DASHES[i // len(COLOURS) % len(DASHES)]) for i, label in enumerate(labels)
        }
    found = {}
    for label in labels:
        family = family_of(label)
        k, paint = count[family], OF_FAMILIES.get(family, GREY)
        found[label] = Look(paint, MARKERS[k % len(MARKERS)], DASHES[k % len(DASHES)], k < len(MARKERS), family)
        count[family] += 1
    return found


def dodged(ax: Axes, i: int, of: int, title: str, cells: Sequence[Cell], look: Look, joined: bool = True) -> None:
    """The i-th of several methods at 0, 1, …, moved aside so that its intervals hide no other's."""
    aside = min(0.7, 0.06 * of) * ((i + 0.5) / of - 0.5)
    points = [(k + aside, cell.value, cell) for k, cell in enumerate(cells) if cell.value is not None]
    ax.plot([x for x, *_ in points], [value for _, value, _ in points], markersize=3, label=title, **look.point)
    ax.lines[-1].set(linestyle=look.dash if joined else "none", linewidth=0.7)
    ends = [(x, cell.low, cell.high) for x, _, cell in points if cell.low is not None and cell.high is not None]
    if ends:
        ax.vlines(*zip(*ends, strict=True), color=look.colour, linewidth=0.7)


def lines_across(ax: Axes, lines: Iterable[tuple[float, float, float, str]], upright: bool = False, **how: Any) -> None:
    """Lines at a height, from a low to a high end and of a colour, drawn as one; upright: at an x instead."""
    if of := list(zip(*lines, strict=True)):
        at, low, high, colours = of
        (ax.vlines if upright else ax.hlines)(at, low, high, colors=colours, **how)


def legend_below(figure: Figure, axes: Sequence[Axes], of: Iterable[Look] = ()) -> None:
    """One legend below all panels, for what any of them has, in the order of the first that has all; the figure grows by its lines.
    of: the looks of its methods, whose families stand as headings above their members."""
    found: dict[str, Any] = {}
    for ax in sorted(axes, key=lambda ax: -len(ax.get_legend_handles_labels()[1])):
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            found.setdefault(wrapped(label, LONGEST["legend"]), handle)
    if not found:
        return
    heads = {look.colour: look.family for look in of if look.family}
    parts = [{label: handle for label, handle in found.items() if _paint(handle) not in heads}]
    for paint in [paint for paint in OF_FAMILIES.values() if paint in heads]:
        members = {label: handle for label, handle in found.items() if _paint(handle) == paint}
        parts.append({f"{HEAD}{heads[paint]}": Patch(color=paint), **members})
    longest = max(len(line) for part in parts for label in part for line in label.split("\n"))
    most = min(sum(map(len, parts)), max(1, int(figure.get_figwidth() / LETTER / (longest + 5))))
    names, columns = _in_columns([list(part) for part in parts], most)
    handles = [next((part[name] for part in parts if name in part), Patch(alpha=0)) for name in names]
    how: dict[str, Any] = {"loc": "lower center", "handlelength": 1.8, "columnspacing": 1.0, "labelspacing": 0.35, "ncols": columns}
    legend = figure.legend(handles=handles, labels=[name.removeprefix(HEAD) for name in names], **how)
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_fontweight("bold" if name.startswith(HEAD) else "normal")
    figure.set_figheight(figure.get_figheight() + legend.get_window_extent(_measuring(figure.dpi)).height / figure.dpi)


def _paint(handle: Any) -> str:
    """A legend's colour of what is a line; "" of other things."""
    return str(handle.get_color()) if hasattr(handle, "get_color") else ""


def _in_columns(parts: Sequence[Sequence[str]], columns: int) -> tuple[list[str], int]:
    """Names in so many columns, one below the other, with gaps where a heading would be the last of a column; and how many columns it is.
    Only where there are headings are there gaps."""
    names = [name for part in parts for name in part]
    if not any(name.startswith(HEAD) for name in names):
        return names, columns
    for high in range(-(-len(names) // columns), len(names) + 1):
        placed: list[str] = []
        for part in parts:
            placed += [""] * (len(part) > 1 and high > 1 and len(placed) % high == high - 1) + list(part)
        if high == len(names) or len(placed) <= high * columns:
            break
    wide = -(-len(placed) // high)
    return [*placed, *[""] * (wide * high - len(placed))], wide


class Spot(NamedTuple):
    """A point with the ends of its interval, which are y itself where it has none, and its colour."""

    x: float
    y: float
    low: float
    high: float
    colour: str


def named_points(ax: Axes, spots: Mapping[str, Spot]) -> None:
    """A name beside each point, where it hides no other name and no point, if there is room for it, and rather no interval; a line leads
    to one that is far. The axes have to have their limits."""
    ax.figure.draw_without_rendering()  # type: ignore[union-attr]
    scale, inside = ax.figure.dpi / 72, ax.get_window_extent()  # pixels in a point
    at = {name: ax.transData.transform((spot.x, spot.y)) for name, spot in spots.items()}
    how: dict[str, Any] = {"textcoords": "offset points", "fontsize": SMALL, "ha": "center", "va": "center", "path_effects": [HALO]}
    notes = {name: ax.annotate(name, (spot.x, spot.y), (0, 0), color=_darker(spot.colour), **how) for name, spot in spots.items()}
    sizes = {name: (note.get_window_extent().width + 2 * scale, note.get_window_extent().height) for name, note in notes.items()}
    dots = [(x - 3 * scale, y - 3 * scale, x + 3 * scale, y + 3 * scale) for x, y in at.values()]
    ends = (ax.transData.transform([(spot.x, spot.low), (spot.x, spot.high)]) for spot in spots.values())
    bars = [(x, low, x + scale, high) for (x, low), (_, high) in ends]
    boxes: dict[str, Boxes] = {}
    for name in [*at] * 3:  # once more, now that the others stand somewhere
        tried = _around(at[name], sizes[name], scale)
        taken = [*dots, *(box for other, box in boxes.items() if other != name)]
        outside = np.prod(sizes[name]) - _hidden(tried, [inside.extents])
        boxes[name] = tried[np.argmin(1000 * (_hidden(tried, taken) + outside) + _hidden(tried, bars) / scale + _far(tried, at[name]))]
    for name, note in notes.items():
        (x, y), box = at[name], boxes[name]
        note.set_position(((box[0] + box[2]) / 2 / scale - x / scale, (box[1] + box[3]) / 2 / scale - y / scale))
        note.set_in_layout(False)
        if _far(box, at[name]) > LEADER * scale:
            nearest = ax.transData.inverted().transform(np.clip(at[name], box[:2], box[2:]))
            ax.plot(*zip(spots[name][:2], nearest, strict=True), color=GREY, linewidth=0.5, zorder=1)


def _darker(paint: str) -> tuple[float, ...]:
    """A colour in which small letters can be read on white."""
    return tuple(0.65 * part for part in to_rgb(paint))


def _around(at: Boxes, size: tuple[float, float], scale: float) -> Boxes:
    """Boxes (n, 4) of a size around a point, in pixels: near ones first."""
    away, turn = np.meshgrid((4, 7, 11, 16, 22, 30, 40), np.linspace(0, 2 * np.pi, 24, endpoint=False), indexing="ij")  # points, radians
    middle = np.stack([at[k] + side * (size[k] / 2 + away * scale) for k, side in enumerate((np.cos(turn), np.sin(turn)))], -1)
    half = np.array(size) / 2
    return np.concatenate([middle - half, middle + half], -1).reshape(-1, 4)


def _hidden(boxes: Boxes, others: Sequence[Any]) -> Boxes:
    """How many pixels of others each box (n, 4) covers, (n,)."""
    mine, theirs = boxes[:, None], np.array(others)[None]
    sides = np.minimum(mine[..., 2:], theirs[..., 2:]) - np.maximum(mine[..., :2], theirs[..., :2])  # (n, others, 2)
    covered: Boxes = np.prod(sides.clip(min=0), axis=-1).sum(axis=-1)
    return covered


def _far(boxes: Boxes, at: Boxes) -> Any:
    """How far a point is from each box, in pixels."""
    return np.linalg.norm(np.clip(at, boxes[..., :2], boxes[..., 2:]) - at, axis=-1)


def rendered(figure: Figure, form: str) -> bytes:
    """The figure as "pdf", "svg" or "png"; the same figure gives the same bytes."""
    content: Any = io.StringIO() if form == "svg" else io.BytesIO()  # of a text in bytes each of its parts would be encoded by itself
    figure.savefig(content, format=form, dpi=200, metadata=METADATA[form])
    return content.getvalue().encode() if form == "svg" else content.getvalue()


def save(figure: Figure, folder: Path, name: str, forms: tuple[str, ...] = tuple(METADATA)) -> list[Path]:
    """Writes `<folder>/<name>.<form>` for each form and returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{form}" for form in forms]
    for path, form in zip(paths, forms, strict=True):
        path.write_bytes(rendered(figure, form))
    return paths
