"""Figures of stored cells, by what can be compared (`ComparableCells`), and of shots across them.

What has no cells is not drawn.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bench.grid.published import PUBLISHED, Published, heading, ordered, published_for, read_published
from bench.grid.store import ResultStore
from bench.reporting.aggregate_figures import improvements, intervals, official_draw, profile, ranks
from bench.reporting.aggregates import aggregated, ranking
from bench.reporting.comparable import CellQuery, ComparableCells, comparable_cells, family
from bench.reporting.draws import trained_labels
from bench.reporting.pivot import Pivot, pivot_tables
from bench.reporting.reevaluation_figures import retention_figure, robustness_figure
from bench.reporting.reevaluations import Retention, Robustness
from bench.reporting.style import COLOURS, GREY, PER_LINE, colour, legend_below, marker, panels
from bench.reporting.table import Cell, Table
from bench.reporting.table_statistics import TableStatistics, table_statistics
from bench.reporting.tuning import TunedPair, dumbbells, tuned_pairs
from bench.types import FULL

MIOU = "foreground mIoU (%)"
COSTS = {
    "parameters": ("cost.trainable_parameters", "trainable parameters"),
    "memory": ("measured.peak_memory_mb", "peak memory, measured apart from the cells (MB)"),
    "time": ("cost.training_seconds", "training time (s)"),
}
DASHES = ("-", "--", ":", "-.")  # of curves that share a colour
NAMED = 4  # images whose disagreement is named


@dataclass(frozen=True)
class View:
    """Comparable cells ready to be drawn: their methods in the paper's order, with titles, and their statistics."""

    comparable: ComparableCells
    known: TableStatistics
    labels: tuple[str, ...]
    titles: tuple[str, ...]

    @classmethod
    def of(cls, comparable: ComparableCells, published: Published) -> "View":
        """The view of the methods that have cells."""
        labels = tuple(label for label in ordered(comparable.labels_of(comparable.datasets), published) if _stored(comparable, label))
        titles = tuple(heading(label, published).replace(" (", "\n(") for label in labels)
        return cls(comparable, table_statistics(comparable, comparable.datasets, averaged=len(comparable.datasets) > 1), labels, titles)

    @property
    def datasets(self) -> list[str]:
        """The data sets on which a method is stored."""
        return sorted({dataset for _, dataset in self.comparable.scores})

    def score(self, label: str, dataset: str) -> float | None:
        """The mean over runs, in percent."""
        return self.comparable.cell(label, dataset).value


def _stored(comparable: ComparableCells, label: str) -> bool:
    return any(label == stored for stored, _ in comparable.scores)


Drawn = Iterator[Figure]


@contextmanager
def bars(view: View) -> Drawn:
    """Every method on every data set, with its 95 % interval."""
    with panels(len(view.datasets), height=0.8 + 0.2 * len(view.labels)) as (figure, axes):
        for k, (ax, dataset) in enumerate(zip(axes, view.datasets, strict=True)):
            for i, label in enumerate(view.labels):
                _bar(ax, i, view.known.with_interval(view.comparable.cell(label, dataset), label, dataset))
            ax.set_yticks(range(len(view.labels)), [_flat(title) for title in view.titles] if k % PER_LINE == 0 else [])
            ax.set(title=dataset, xlabel=MIOU, xlim=(0, 100), ylim=(len(view.labels) - 0.4, -0.6))
            ax.grid(axis="y", visible=False)
        yield figure


def _bar(ax: Axes, i: int, cell: Cell) -> None:
    if cell.value is None:
        ax.text(1, i, cell.reason, va="center", color=GREY)
        return
    ax.barh(i, cell.value, color=colour(i), height=0.7)
    if cell.low is not None and cell.high is not None:
        ends = [[max(0.0, cell.value - cell.low)], [max(0.0, cell.high - cell.value)]]
        for line, paint in ((2.6, "white"), (1.0, "black")):  # seen on every colour, black too
            ax.errorbar(cell.value, i, xerr=ends, color=paint, capsize=2.2, capthick=line, linewidth=line)


@contextmanager
def cost_against_miou(view: View, cost: str) -> Drawn:
    """A cost against mIoU; a line joins the methods that no other beats at the same cost or less."""
    column, name = COSTS[cost]
    with panels(len(view.datasets), height=_with_legend(view)) as (figure, axes):
        for ax, dataset in zip(axes, view.datasets, strict=True):
            points = _points(view, dataset, column)
            for i, x, y in points:
                ax.scatter(x, y, color=colour(i), marker=marker(i), s=36, zorder=2, label=_flat(view.titles[i]))
            front = pareto([(x, y) for _, x, y in points])
            if front:
                ax.plot([x for x, _ in front], [y for _, y in front], color=GREY, linestyle="--", zorder=1, label="Pareto front")
            if max((x for _, x, _ in points), default=0) > 1000:
                ax.set_xscale("symlog", linthresh=100)
            else:
                ax.xaxis.set_major_locator(MaxNLocator(4))
            ax.margins(0.1)
            ax.set(title=dataset, xlabel=name, ylabel=MIOU)
        legend_below(figure, axes)
        yield figure


def _with_legend(view: View) -> float:
    """The height of a panel, in inches, whose figure has a legend of all methods below it."""
    return 2.4 + 0.04 * len(view.labels)


def _points(view: View, dataset: str, column: str) -> list[tuple[int, float, float]]:
    """(method, cost, mIoU) of the methods that have both."""
    frame, found = view.comparable.frame, []
    for i, label in enumerate(view.labels):
        mine = frame[(frame["label"] == label) & (frame["dataset"] == dataset)]
        cost, score = mine.get(column, pd.Series(dtype=float)).astype(float).mean(), view.score(label, dataset)
        if score is not None and not np.isnan(cost):
            found.append((i, float(cost), score))
    return found


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other has both cheaper (or as cheap) and better (or as good), by cost."""
    front: list[tuple[float, float]] = []
    for cost, score in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or score > front[-1][1]:
            front.append((cost, score))
    return front


@contextmanager
def curves(view: View, store: ResultStore) -> Drawn:
    """The training loss by step, a thin line a run, smoothed over a twentieth of the steps."""
    with panels(len(view.datasets), height=_with_legend(view)) as (figure, axes):
        for ax, dataset in zip(axes, view.datasets, strict=True):
            for i, label in enumerate(view.labels):
                frame = view.comparable.frame
                for j, path in enumerate(frame[(frame["label"] == label) & (frame["dataset"] == dataset)]["path"]):
                    history = _history(store, Path(path))
                    if history is not None:
                        smooth = history["loss"].rolling(max(1, len(history) // 20), min_periods=1).mean()
                        ax.plot(history["step"], smooth, DASHES[i // len(COLOURS) % len(DASHES)], color=colour(i), linewidth=0.9)
                        ax.lines[-1].set_label("" if j else _flat(view.titles[i]))
            ax.set(title=dataset, xlabel="step", ylabel="training loss")
        legend_below(figure, axes)
        yield figure


def _history(store: ResultStore, folder: Path) -> pd.DataFrame | None:
    try:
        history = store.history(folder)
    except (OSError, ValueError):
        return None
    sound = {"step", "loss"} <= set(history.columns)
    return history[["step", "loss"]].apply(pd.to_numeric, errors="coerce") if sound else None


@contextmanager
def image_by_image(view: View) -> Drawn:
    """The IoU of every image under the best method against the next best; the largest disagreements are named."""
    with panels(len(view.datasets), height=3.2) as (figure, axes):
        for ax, dataset in zip(axes, view.datasets, strict=True):
            best = sorted((label for label, name in view.known.counts if name == dataset), key=lambda x: -(view.score(x, dataset) or 0))
            if len(best) < 2:
                ax.text(0.5, 0.5, "fewer than two methods\nwith rows by image", ha="center", transform=ax.transAxes)
                continue
            _scatter(ax, view, dataset, best[0], best[1])
        yield figure


def _scatter(ax: Axes, view: View, dataset: str, a: str, b: str) -> None:
    counts = (view.known.counts[a, dataset], view.known.counts[b, dataset])
    x, y = ((100 * of.intersections / np.maximum(of.unions, 1)).mean(axis=0) for of in counts)
    ax.plot([0, 100], [0, 100], color=GREY, linewidth=0.8)
    title = dict(zip(view.labels, view.titles, strict=True))
    ax.set(title=dataset, xlabel=f"IoU (%), {_flat(title[a])}", ylabel=f"IoU (%), {_flat(title[b])}", xlim=(-2, 102), ylim=(-2, 102))
    ax.set_aspect("equal")
    if counts[0].images != counts[1].images:
        ax.text(0.5, 0.5, "tested on\ndifferent images", ha="center", transform=ax.transAxes)
        return
    ax.scatter(x, y, s=9, color=colour(0), alpha=0.6, linewidths=0)
    worst = np.argsort(-np.abs(x - y), kind="stable")[:NAMED]
    ax.scatter(x[worst], y[worst], s=26, facecolors="none", edgecolors=colour(5), linewidths=1)
    for number, i in enumerate(worst, 1):
        side = 1 if x[i] > y[i] else -1  # away from the diagonal
        ax.annotate(
            str(number), (x[i], y[i]), xytext=(5 * side, -5 * side), textcoords="offset points", ha="center", va="center", fontsize=7
        )
    named = [f"{number}  {counts[0].images[i].partition('/')[2]}" for number, i in enumerate(worst, 1)]
    corner = (0.03, 0.97, "left", "top") if _is_free(x, y) else (0.97, 0.03, "right", "bottom")
    words = "\n".join(["most apart:", *named])
    ax.text(*corner[:2], words, ha=corner[2], va=corner[3], fontsize=7, transform=ax.transAxes)


def _is_free(x: np.ndarray, y: np.ndarray) -> bool:
    """Whether the upper left has fewer points than the lower right."""
    return int(((x < 40) & (y > 65)).sum()) <= int(((x > 60) & (y < 35)).sum())


def _flat(title: str) -> str:
    return title.replace("\n", " ")


@contextmanager
def shot_curves(views: Sequence[View]) -> Drawn:
    """mIoU by number of shots, for views that differ in nothing else; bars are 95 % intervals."""
    datasets = sorted({dataset for view in views for dataset in view.datasets})
    labels = list(dict.fromkeys(label for view in views for label in view.labels))
    titles = {label: title for view in views for label, title in zip(view.labels, view.titles, strict=True)}
    with panels(len(datasets), height=_with_legend(max(views, key=lambda view: len(view.labels)))) as (figure, axes):
        for ax, dataset in zip(axes, datasets, strict=True):
            for i, label in enumerate(labels):
                cells = [view.known.with_interval(view.comparable.cell(label, dataset), label, dataset) for view in views]
                _shot_line(ax, i, _flat(titles[label]), cells)
            ax.set_xticks(range(len(views)), [view.comparable.identity[2] for view in views])
            ax.set(title=dataset, xlabel="shots", ylabel=MIOU)
        legend_below(figure, axes)
        yield figure


def _shot_line(ax: Axes, i: int, title: str, cells: Sequence[Cell]) -> None:
    points = [(k, cell.value) for k, cell in enumerate(cells) if cell.value is not None]
    ax.plot([k for k, _ in points], [value for _, value in points], color=colour(i), marker=marker(i), markersize=4, label=title)
    for k, cell in enumerate(cells):
        if cell.low is not None and cell.high is not None:
            ax.vlines(k, cell.low, cell.high, color=colour(i), linewidth=0.8)


@contextmanager
def heat_map(table: Table) -> Drawn:
    """A pivot's values as colours, each written into its field; a gap is blank."""
    values = np.array([[math.nan if cell.value is None else cell.value for cell in row.cells] for row in table.rows])
    digits = max(column.digits for column in table.columns)
    with panels(1, width=1.4 + 0.62 * values.shape[1], height=0.8 + 0.28 * values.shape[0]) as (figure, (ax,)):
        ax.imshow(values, cmap="viridis", aspect="auto")
        bright = np.nanmin(values) + 0.6 * np.ptp(values[~np.isnan(values)])
        for (i, j), value in np.ndenumerate(values):
            if not math.isnan(value):
                ax.text(j, i, f"{value:.{digits}f}", ha="center", va="center", fontsize=7, color="black" if value > bright else "white")
        ax.set_xticks(range(values.shape[1]), [f"{column.group} {column.name}".strip() for column in table.columns])
        ax.set_yticks(range(values.shape[0]), [row.heading for row in table.rows])
        ax.set(title=table.title, xlabel=" / ".join(name for name, _ in table.columns[0].about), ylabel=table.corner)
        ax.grid(visible=False)
        yield figure


@dataclass(frozen=True)
class Picture:
    """A figure to be drawn: its file name, what it shows (its alternative text), and how it is drawn."""

    name: str
    caption: str
    draw: Callable[[], AbstractContextManager[Figure]]


def pictures(store: ResultStore, query: CellQuery) -> list[Picture]:
    """All figures that the stored cells can fill; RequestError where there is no cell."""
    found: list[Picture] = []
    views = []
    comparables = comparable_cells(store, query)
    for comparable in comparables:
        view = View.of(comparable, published_for(comparable.identity[2]))
        if view.labels:
            views.append(view)
            found += _of_view(view, store) + _reevaluations(comparable, published_for(comparable.identity[2]))
    return found + _across(views) + [_of_pair(pair) for pair in tuned_pairs(comparables)]


def _of_pair(pair: TunedPair) -> Picture:
    backbone, protocol, shots, _ = pair.tuned.identity
    caption = f"Foreground mIoU untuned (open) and tuned (full), and Kendall's tau ({backbone}, {shots} shots, {protocol})"
    return Picture(pair.tuned.name("tuning"), caption, lambda: dumbbells(pair, published_for(shots)))


def heat_maps(store: ResultStore, query: CellQuery, pivot: Pivot) -> list[Picture]:
    """A heat map for each of the pivot's tables; RequestError as for these."""
    made = pivot_tables(store, query, pivot, read_published(PUBLISHED["1"]))
    shown = [table for table in made if any(cell.value is not None for row in table.rows for cell in row.cells)]
    return [Picture(table.name, table.title, lambda table=table: heat_map(table)) for table in shown]  # type: ignore[misc]


def _of_view(view: View, store: ResultStore) -> list[Picture]:
    comparable, name = view.comparable, view.comparable.name
    said = f"{comparable.identity[0]}, {comparable.identity[2]} shots, {comparable.identity[1]}"
    found = [Picture(name("bars"), f"Foreground mIoU with 95 % intervals ({said})", lambda: bars(view))]
    for cost, (column, words) in COSTS.items():
        if column in comparable.frame and comparable.frame[column].notna().any():
            caption = f"{words[0].upper()}{words[1:]} against mIoU ({said})"
            found.append(Picture(name(cost), caption, lambda cost=cost: cost_against_miou(view, cost)))  # type: ignore[misc]
    found.append(Picture(name("curves"), f"Training loss ({said})", lambda: curves(view, store)))
    if len({label for label, _ in view.known.counts}) > 1:
        found.append(Picture(name("images"), f"IoU image by image, best against second ({said})", lambda: image_by_image(view)))
    return found + _of_draws(view, said) + _of_aggregates(view, said)


def _of_draws(view: View, said: str) -> list[Picture]:
    comparable, published = view.comparable, published_for(view.comparable.identity[2])
    return [
        Picture(
            f"{comparable.name('draws')}_{dataset}",
            f"The official draw among others on {dataset} ({said})",
            lambda dataset=dataset: official_draw(comparable, dataset, published),  # type: ignore[misc]
        )
        for dataset in view.datasets
        if trained_labels(comparable, dataset, published)
    ]


def _of_aggregates(view: View, said: str) -> list[Picture]:
    comparable, name, published = view.comparable, view.comparable.name, published_for(view.comparable.identity[2])
    found = []
    if scores := aggregated(comparable, published):
        found += [
            Picture(name("iqm"), f"Interquartile means with bootstrap intervals ({said})", lambda: intervals(scores, published)),
            Picture(name("profile"), f"Performance profiles ({said})", lambda: profile(scores, published)),
            Picture(name("improvement"), f"Probability of improvement ({said})", lambda: improvements(scores, scores.best, published)),
        ]
    if ranked := ranking(comparable, published, scores):
        found.append(Picture(name("ranks"), f"Mean ranks with the critical difference ({said})", lambda: ranks(ranked, published)))
    return found


def _reevaluations(comparable: ComparableCells, published: Published) -> list[Picture]:
    said = f"({comparable.identity[0]}, {comparable.identity[2]} shots, {comparable.identity[1]})"
    found = []
    for of in Robustness.of(comparable, published):
        name, caption = comparable.name(f"robustness-{of.dataset}"), f"Robustness on {of.dataset} with 95 % intervals {said}"
        found.append(Picture(name, caption, lambda of=of: robustness_figure(of, published)))  # type: ignore[misc]
    kept = Retention.of(comparable, published)
    if kept and kept.gains():
        caption = f"Gain on the own data set against retention on the others {said}"
        found.append(Picture(comparable.name("retention"), caption, lambda: retention_figure(kept, published)))
    return found


def _across(views: Sequence[View]) -> list[Picture]:
    def same(view: View) -> tuple[str, str, str]:
        return family(view.comparable.identity)

    found = []
    for (backbone, protocol, _), group in groupby(sorted(views, key=same), key=same):
        of = sorted(group, key=lambda view: (view.comparable.identity[2] == FULL, view.comparable.identity[2].zfill(9)))
        if len(of) > 1:
            name = of[0].comparable.name("shots").replace(f"_{of[0].comparable.identity[2]}shot_", "_")
            found.append(Picture(name, f"mIoU by shots ({backbone}, {protocol})", lambda of=of: shot_curves(of)))  # type: ignore[misc]
    return found
