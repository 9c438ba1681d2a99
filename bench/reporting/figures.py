"""Figures of stored cells, by what can be compared (`ComparableCells`), and of shots across them.

What has no cells is not drawn.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import groupby
from pathlib import Path
from typing import Any
from warnings import catch_warnings

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator

from bench.grid.published import PUBLISHED, Published, ordered, published_for, read_published
from bench.grid.store import HISTORY, ResultStore
from bench.reporting.aggregate_figures import improvements, intervals, official_draw, profile, ranks
from bench.reporting.aggregates import aggregated, ranking
from bench.reporting.comparable import CellQuery, ComparableCells, comparable_cells, family
from bench.reporting.draws import trained_labels
from bench.reporting.labels import shots_in_words
from bench.reporting.pivot import Pivot, pivot_tables
from bench.reporting.reevaluation_figures import retention_figure, robustness_figure
from bench.reporting.reevaluations import Retention, Robustness
from bench.reporting.style import (
    COLOURS,
    COLUMN,
    GREY,
    PAGE,
    Look,
    Spot,
    colour,
    dodged,
    height_of_rows,
    legend_below,
    lines_across,
    looks,
    named_points,
    panels,
    panels_of_rows,
    rows,
    wrapped,
)
from bench.reporting.table import Cell, Table
from bench.reporting.table_statistics import TableStatistics, table_statistics
from bench.reporting.tuning import TunedPair, dumbbells, tuned_pairs
from bench.types import FULL

COSTS = {
    "parameters": ("cost.trainable_parameters", "trainable parameters"),
    "memory": ("measured.peak_memory_mb", "peak memory (MB), measured apart from the cells"),
    "time": ("cost.training_seconds", "training time (s)"),
}
NAMED = 4  # images whose disagreement is named
POINTS = 100  # of a curve


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
        titles = tuple(map(comparable.naming.method, labels))
        return cls(comparable, table_statistics(comparable, comparable.datasets, averaged=len(comparable.datasets) > 1), labels, titles)

    @cached_property
    def looks(self) -> dict[str, Look]:
        """How its methods are drawn."""
        return looks(self.labels)

    def title(self, label: str) -> str:
        """What a method is called."""
        return self.comparable.naming.method(label)

    @property
    def datasets(self) -> dict[str, str]:
        """The data sets on which a method is stored, by name, and their titles."""
        return {name: self.comparable.naming.dataset(name) for name in sorted({name for _, name in self.comparable.scores})}

    def score(self, label: str, dataset: str) -> float | None:
        """The mean over runs, in percent."""
        return self.comparable.cell(label, dataset).value

    def cell(self, label: str, dataset: str) -> Cell:
        """The mean over runs, with its interval."""
        return self.known.with_interval(self.comparable.cell(label, dataset), label, dataset)


def _stored(comparable: ComparableCells, label: str) -> bool:
    return any(label == stored for stored, _ in comparable.scores)


def bars(view: View) -> Figure:
    """Every method's mean on every data set, and the bar of its 95 % interval."""
    with panels_of_rows(list(view.datasets.values()), view.titles) as (figure, axes):
        for ax, dataset in zip(axes, view.datasets, strict=True):
            cells = [(i, view.cell(label, dataset), view.looks[label]) for i, label in enumerate(view.labels)]
            ends = [(i, of.low, of.high, look.colour) for i, of, look in cells if of.low is not None and of.high is not None]
            lines_across(ax, ends, linewidth=1.4)
            for i, cell, look in cells:
                if cell.value is None:
                    ax.text(0.02, i, cell.reason, va="center", color=GREY, fontsize=5.5, transform=ax.get_yaxis_transform())
                else:
                    ax.plot(cell.value, i, markersize=4, **look.point)
            ax.set_xlabel(f"{view.comparable.quantity} (%)")
        return figure


def cost_against_score(view: View, cost: str) -> Figure:
    """A cost against the score, with 95 % intervals; a line joins the methods that no other beats at the same cost or less, and one is at
    the height of what costs nothing. On a single data set names stand beside the points."""
    column, name = COSTS[cost]
    alone = len(view.datasets) == 1
    with panels(len(view.datasets), 3.6 if alone else 2.0, width=PAGE if alone else 0.0) as (figure, axes):
        for ax, (dataset, title) in zip(axes, view.datasets.items(), strict=True):
            points = _points(view, dataset, column)
            spots = {label: _spot(view, dataset, label, at) for label, at in points.items() if at[0] > 0}
            _draw_spots(ax, view, spots, named=alone)
            for label in [label for label in points if label not in spots]:
                ax.axhline(points[label][1], color=GREY, linestyle=":", zorder=1, label=view.title(label))
            front = [at for at in pareto(list(points.values()), view.comparable.sign) if at[0] > 0]
            if front:
                ax.plot(*zip(*front, strict=True), color=GREY, linestyle="--", linewidth=0.8, zorder=1, label="Pareto front")
            _scale(ax, max((x for x, _ in points.values()), default=0))
            ax.margins(0.08)
            ax.set(title=title, xlabel=name, ylabel=view.comparable.measured)
        legend_below(figure, axes, view.looks.values())
        if alone:
            named_points(axes[0], {view.title(label): spot for label, spot in spots.items()})
        return figure


def _spot(view: View, dataset: str, label: str, at: tuple[float, float]) -> Spot:
    cell = view.cell(label, dataset)
    ends = (at[1], at[1]) if cell.low is None or cell.high is None else (cell.low, cell.high)
    return Spot(*at, *ends, view.looks[label].colour)


def _draw_spots(ax: Axes, view: View, spots: Mapping[str, Spot], named: bool) -> None:
    """The methods' points with their intervals; those that are named beside them are not in the legend."""
    lines_across(ax, ((spot.x, spot.low, spot.high, spot.colour) for spot in spots.values()), upright=True, linewidth=0.8, alpha=0.5)
    for label, spot in spots.items():
        ax.plot(spot.x, spot.y, markersize=5, linestyle="none", label=None if named else view.title(label), **view.looks[label].point)


def _scale(ax: Axes, highest: float) -> None:
    """The axis of costs up to a highest: logarithmic where they are more than 10,000."""
    if highest > 10_000:
        ax.set_xscale("log")
        ax.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))


def _points(view: View, dataset: str, column: str) -> dict[str, tuple[float, float]]:
    """Cost and score of the methods that have both."""
    frame, found = view.comparable.frame, {}
    here = frame[frame["dataset"] == dataset]
    costs = {label: mine.astype(float).mean() for label, mine in here.groupby("label")[column]}
    for label in view.labels:
        cost, score = costs.get(label, math.nan), view.score(label, dataset)
        if score is not None and not np.isnan(cost):
            found[label] = (float(cost), score)
    return found


def pareto(points: Sequence[tuple[float, float]], sign: int = 1) -> list[tuple[float, float]]:
    """The points that no other has both cheaper (or as cheap) and better (or as good), by cost; sign: -1 where less is better."""
    front: list[tuple[float, float]] = []
    for cost, score in sorted(points, key=lambda point: (point[0], -sign * point[1])):
        if not front or sign * score > sign * front[-1][1]:
            front.append((cost, score))
    return front


def curves(view: View) -> Figure:
    """The training loss by step, the mean of a method's runs, smoothed over a twentieth of the steps; bands, of as many methods as there
    are colours, are from the lowest to the highest run."""
    with panels(len(view.datasets), 2.0) as (figure, axes):
        for ax, (dataset, title) in zip(axes, view.datasets.items(), strict=True):
            for i, label in enumerate(view.labels):
                frame = view.comparable.frame
                runs = _smooth([_history(Path(path)) for path in frame.loc[_at(frame, label, dataset), "path"]])
                if runs is not None:
                    steps, losses = runs
                    look, every = view.looks[label], max(1, len(steps) // 4)
                    how: dict[str, Any] = {"markevery": (5 * i % every, every), "markersize": 2.5, "linewidth": 0.9}
                    ax.plot(steps, losses.mean(axis=0), linestyle=look.dash, label=view.titles[i], **look.point, **how)
                    if len(view.labels) <= len(COLOURS) and len(losses) > 1:
                        ax.fill_between(steps, losses.min(axis=0), losses.max(axis=0), color=look.colour, alpha=0.15, linewidth=0)
            ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            ax.set(title=title, xlabel="step", ylabel="training loss")
        legend_below(figure, axes, view.looks.values())
        return figure


def _at(frame: pd.DataFrame, label: str, dataset: str) -> "pd.Series[bool]":
    return (frame["label"] == label) & (frame["dataset"] == dataset)


def _history(folder: Path) -> np.ndarray | None:
    """Steps and losses of a run, (2, n); None where they cannot be read."""
    path = folder / HISTORY
    try:
        with path.open() as file:
            names = file.readline().strip().split(",")
        with catch_warnings(action="ignore"):  # of a file without rows
            found = np.loadtxt(path, delimiter=",", skiprows=1, usecols=[names.index("step"), names.index("loss")], unpack=True, ndmin=2)
    except (OSError, ValueError):
        return None
    return found if found.size else None


def _smooth(histories: Sequence[np.ndarray | None]) -> tuple[np.ndarray, np.ndarray] | None:
    """Steps that all of a method's runs have made, and each run's smoothed loss at them, (runs, steps); None where no run has any."""
    found = [history for history in histories if history is not None]
    if not found:
        return None
    first, last = max(steps[0] for steps, _ in found), min(steps[-1] for steps, _ in found)
    at = np.linspace(first, max(first, last), min(POINTS, *(len(steps) for steps, _ in found)))
    return at, np.array([np.interp(at, steps, _rolling(losses)) for steps, losses in found])


def _rolling(losses: np.ndarray) -> np.ndarray:
    """The mean of each loss and of those before it, over a twentieth of all."""
    window = max(1, len(losses) // 20)
    sums = np.concatenate([[0.0], np.cumsum(losses)])
    ends = np.arange(1, len(losses) + 1)
    return np.asarray((sums[ends] - sums[np.maximum(ends - window, 0)]) / np.minimum(ends, window))


def image_by_image(view: View) -> Figure:
    """The IoU of every image under the best method against the next best; the largest disagreements are named."""
    with panels(len(view.datasets), 2.9) as (figure, axes):
        for ax, (dataset, title) in zip(axes, view.datasets.items(), strict=True):
            tested = (label for label, name in view.known.counts if name == dataset)
            best = sorted(tested, key=lambda label: -view.comparable.sign * (view.score(label, dataset) or 0))
            ax.set_title(title)
            if len(best) < 2:
                ax.text(0.5, 0.5, "fewer than two methods\nwith rows by image", ha="center", transform=ax.transAxes)
                continue
            _scatter(ax, view, dataset, best[0], best[1])
        return figure


def _scatter(ax: Axes, view: View, dataset: str, a: str, b: str) -> None:
    counts = (view.known.counts[a, dataset], view.known.counts[b, dataset])
    x, y = ((100 * of.intersections / np.maximum(of.unions, 1)).mean(axis=0) for of in counts)
    titles = dict(zip(view.labels, view.titles, strict=True))
    ax.set(xlabel=f"IoU (%), {titles[a]}", ylabel=f"IoU (%), {titles[b]}")
    ax.set_aspect("equal")
    if counts[0].images != counts[1].images:
        ax.text(0.5, 0.5, "tested on\ndifferent images", ha="center", transform=ax.transAxes)
        return
    lowest = max(0.0, 10 * math.floor(min(x.min(), y.min()) / 10))
    ax.set(xlim=(lowest - 2, 102), ylim=(lowest - 2, 102))
    ax.plot([lowest, 100], [lowest, 100], color=GREY, linewidth=0.8)
    ax.plot(x, y, "o", markersize=3, color=colour(0), alpha=0.6, markeredgewidth=0)
    worst = np.argsort(-np.abs(x - y), kind="stable")[:NAMED]
    ax.plot(x[worst], y[worst], "o", markersize=5, markerfacecolor="none", markeredgecolor=colour(5), markeredgewidth=1)
    gaps = np.subtract.outer(x[worst] + y[worst], x[worst] + y[worst])
    np.fill_diagonal(gaps, math.inf)
    for number, i in enumerate(worst, 1):
        side = 1 if x[i] > y[i] else -1  # away from the diagonal, and from the next one's
        ahead = gaps[number - 1][np.argmin(np.abs(gaps[number - 1]))] > 0
        right, down = (9, 2) if ahead == (side == 1) else (2, 9)
        ax.annotate(str(number), (x[i], y[i]), xytext=(right * side, -down * side), textcoords="offset points", ha="center", va="center")
    named = ", ".join(f"{number}: {counts[0].images[i].partition('/')[2]}" for number, i in enumerate(worst, 1))
    ax.set_xlabel(f"{ax.get_xlabel()}\n{wrapped(f'most apart, {named}', 52)}")


def shot_curves(views: Sequence[View]) -> Figure:
    """Scores by number of shots, for views that differ in nothing else; bars are 95 % intervals, methods moved aside; what trains
    nothing is a line."""
    datasets = {name: title for view in views for name, title in view.datasets.items()}
    titles = {label: title for view in views for label, title in zip(view.labels, view.titles, strict=True)}
    drawn = looks(titles)
    fixed = {label for view in views for (label, _), of in view.known.counts.items() if not of.trains}
    with panels(len(datasets), 2.2) as (figure, axes):
        for ax, dataset in zip(axes, sorted(datasets), strict=True):
            for i, (label, title) in enumerate(titles.items()):
                cells = [view.cell(label, dataset) for view in views]
                if label not in fixed:
                    dodged(ax, i, len(titles), title, cells, drawn[label])
                elif (value := cells[0].value) is not None:
                    ax.axhline(value, color=GREY, linestyle=":", zorder=1, label=title)
            ax.set_xticks(range(len(views)), [view.comparable.identity[2] for view in views])
            ax.set(title=datasets[dataset], xlabel="shots", ylabel=views[0].comparable.measured)
            ax.grid(axis="x", visible=False)
        legend_below(figure, axes, drawn.values())
        return figure


def heat_map(table: Table) -> Figure:
    """A pivot's values as colours, each written into its field, below its one method and data set; a gap is blank."""
    values = np.array([[math.nan if cell.value is None else cell.value for cell in row.cells] for row in table.rows])
    digits = max(column.digits for column in table.columns)
    names = [row.heading for row in table.rows]
    with panels(1, height_of_rows(names, 1.0), width=COLUMN if values.shape[1] <= 5 else PAGE) as (figure, (ax,)):
        ax.imshow(values, cmap="viridis", aspect="auto")
        bright = np.nanmin(values) + 0.6 * np.ptp(values[~np.isnan(values)])
        for (i, j), value in np.ndenumerate(values):
            if not math.isnan(value):
                ax.text(j, i, f"{value:.{digits}f}", ha="center", va="center", color="black" if value > bright else "white")
        rows(ax, names)
        ax.set_xticks(range(values.shape[1]), [wrapped(f"{column.group} {column.name}".strip(), 12) for column in table.columns])
        of = ", ".join(value for name, value in table.context if name in ("method", "dataset"))
        ax.set(title=f"{table.title}\n{of}".strip(), xlabel=" / ".join(name for name, _ in table.columns[0].about), ylabel=table.corner)
        ax.grid(visible=False)
        return figure


@dataclass(frozen=True)
class Picture:
    """A figure to be drawn: its file name, what it shows (its alternative text), and how it is drawn."""

    name: str
    caption: str
    draw: Callable[[], Figure]


def pictures(store: ResultStore, query: CellQuery) -> list[Picture]:
    """All figures that the stored cells can fill; RequestError where there is no cell."""
    found: list[Picture] = []
    views = []
    comparables = comparable_cells(store, query)
    for comparable in comparables:
        view = View.of(comparable, published_for(comparable.identity[2]))
        if view.labels:
            views.append(view)
            found += [*_of_view(view), *_of_draws(view), *_of_aggregates(view), *_of_reevaluations(view)]
    return found + _across(views) + [_of_pair(pair) for pair in tuned_pairs(comparables)]


def _of_pair(pair: TunedPair) -> Picture:
    caption = f"{pair.tuned.quantity} untuned (open) and tuned (full), and Kendall's tau ({_said(pair.tuned)})"
    return Picture(pair.tuned.name("tuning"), caption, partial(dumbbells, pair))


def heat_maps(store: ResultStore, query: CellQuery, pivot: Pivot) -> list[Picture]:
    """A heat map for each of the pivot's tables; RequestError as for these."""
    made = pivot_tables(store, query, pivot, read_published(PUBLISHED["1"]))
    shown = [table for table in made if any(cell.value is not None for row in table.rows for cell in row.cells)]
    return [Picture(table.name, table.title, partial(heat_map, table)) for table in shown]


def _said(comparable: ComparableCells) -> str:
    """What all of a figure's cells share."""
    backbone, protocol, shots, _ = comparable.identity
    return ", ".join((backbone, shots_in_words(shots), protocol, *(f"{name} {value}" for name, value in comparable.naming.shared)))


def _of_view(view: View) -> Iterator[Picture]:
    comparable, name, said = view.comparable, view.comparable.name, _said(view.comparable)
    yield Picture(name("bars"), f"{comparable.in_title.removesuffix(' (%)')} with 95 % intervals ({said})", partial(bars, view))
    for cost, (column, words) in COSTS.items():
        if column in comparable.frame and comparable.frame[column].notna().any():
            caption = f"{words[0].upper()}{words[1:]}, against {comparable.quantity} ({said})"
            yield Picture(name(cost), caption, partial(cost_against_score, view, cost))
    if any((Path(path) / HISTORY).exists() for path in comparable.frame["path"]):
        yield Picture(name("curves"), f"Training loss, mean and range of runs ({said})", partial(curves, view))
    if len({label for label, _ in view.known.counts}) > 1:
        yield Picture(name("images"), f"IoU image by image, best against second ({said})", partial(image_by_image, view))


def _of_draws(view: View) -> Iterator[Picture]:
    comparable, published = view.comparable, view.comparable.naming.published
    for dataset, title in view.datasets.items():
        if trained_labels(comparable, dataset, published):
            name, caption = f"{comparable.name('draws')}_{dataset}", f"The official draw among others on {title} ({_said(comparable)})"
            yield Picture(name, caption, partial(official_draw, comparable, dataset, published))


def _of_aggregates(view: View) -> Iterator[Picture]:
    comparable, name, naming, said = view.comparable, view.comparable.name, view.comparable.naming, _said(view.comparable)
    if scores := aggregated(comparable, naming.published):
        yield Picture(
            name("iqm"), f"Interquartile means with bootstrap intervals ({said})", partial(intervals, scores, naming, comparable.measured)
        )
        yield Picture(name("profile"), f"Performance profiles ({said})", partial(profile, scores, naming, comparable.measured))
        better = partial(improvements, scores, scores.best, naming)
        yield Picture(name("improvement"), f"Probability of improvement ({said})", better)
    if ranked := ranking(comparable, naming.published, scores):
        yield Picture(name("ranks"), f"Mean ranks with the critical difference ({said})", partial(ranks, ranked, naming))


def _of_reevaluations(view: View) -> Iterator[Picture]:
    comparable, naming, said = view.comparable, view.comparable.naming, _said(view.comparable)
    for of in Robustness.of(comparable, naming.published):
        caption = f"Robustness on {naming.dataset(of.dataset)} with 95 % intervals ({said})"
        yield Picture(f"{comparable.name('robustness')}_{of.dataset}", caption, partial(robustness_figure, of, naming, comparable.measured))
    kept = Retention.of(comparable, naming.published)
    if kept and kept.gains():
        caption = f"Gain on the own data set against retention on the others ({said})"
        yield Picture(comparable.name("retention"), caption, partial(retention_figure, kept, naming))


def _across(views: Sequence[View]) -> list[Picture]:
    def same(view: View) -> tuple[str, str, str]:
        return family(view.comparable.identity)

    found = []
    for (backbone, protocol, _), group in groupby(sorted(views, key=same), key=same):
        of = sorted(group, key=lambda view: (view.comparable.identity[2] == FULL, view.comparable.identity[2].zfill(9)))
        if len(of) > 1:
            name = of[0].comparable.name("shots").replace(f"_{of[0].comparable.identity[2]}shot_", "_")
            found.append(Picture(name, f"{of[0].comparable.quantity} by shots ({backbone}, {protocol})", partial(shot_curves, of)))
    return found
