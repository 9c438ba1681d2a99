"""Figures of draws and of aggregates, each as wide as a column of a paper (85 mm)."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.grid.published import Published, heading
from bench.reporting.aggregates import Ranking, Scores, above, improvement, improvement_interval, interval, iqm, picked, resampled
from bench.reporting.comparable import ComparableCells
from bench.reporting.draws import Means, Place, differences_by_draw, means_by_draw, pairs_of, trained_labels
from bench.reporting.statistics import Interval, Values
from bench.reporting.style import COLOURS, GREY, colour, legend_below, marker, panels

MIOU = "foreground mIoU (%)"
COLUMN = 85 / 25.4  # inches
ROW = 0.17  # inches a method
THRESHOLDS = np.arange(0.0, 100.01, 0.5)
Drawn = Iterator[Figure]


@contextmanager
def official_draw(comparable: ComparableCells, dataset: str, published: Published) -> Drawn:
    """Every draw's mean over seeds, by method and by pair; the official one is a diamond, the median of the others a line."""
    labels = trained_labels(comparable, dataset, published)
    means = {label: means_by_draw(comparable, label, dataset) for label in labels}
    pairs = pairs_of(labels, means, comparable.against)
    names = [heading(label, published) for label in labels]
    apart = [differences_by_draw(means[a], means[b]) for a, b in pairs]
    best = heading(pairs[0][0], published) if pairs else ""
    count = 2 if pairs else 1
    with panels(count, COLUMN, 0.85 + ROW * len(labels), per_line=1) as (figure, axes):
        _dots(axes[0], names, [means[label] for label in labels], range(len(labels)))
        _says(axes[0], f"{MIOU}, {dataset}\ndiamond: official; line: median")
        if pairs:
            _dots(axes[1], [heading(b, published) for _, b in pairs], apart, [labels.index(b) for _, b in pairs])
            axes[1].axvline(0, color=GREY, linewidth=0.8)
            _says(axes[1], f"points that they are behind\n{best}")
        yield figure


def _dots(ax: Axes, names: Sequence[str], means: Sequence[Means], colours: Sequence[int]) -> None:
    for y, (of, paint) in enumerate(zip(means, colours, strict=True)):
        place = Place.of(of)
        ax.scatter(place.others, np.full(len(place.others), y), s=14, color=colour(paint), alpha=0.55, linewidths=0)
        if len(place.others):
            ax.vlines(float(np.median(place.others)), y - 0.32, y + 0.32, color=colour(paint), linewidth=1.6)
        if place.official is not None:
            ax.scatter(place.official, y, s=34, marker="D", color=colour(paint), edgecolors="black", linewidths=0.8, zorder=3)
    _methods(ax, names)


def _methods(ax: Axes, names: Sequence[str]) -> None:
    """Methods from above to below."""
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)


def _says(ax: Axes, text: str) -> None:
    """The label of the x axis, which may reach below long names of methods."""
    ax.set_xlabel(text, loc="right")


@contextmanager
def intervals(scores: Scores, published: Published) -> Drawn:
    """The interquartile mean of every method, normalised where that can be, with its bootstrap interval."""
    found = scores.normalised or scores.of
    shown = {label: (float(iqm(of)), interval(iqm, of) if label in scores.trained else None) for label, of in found.items()}
    words = f"IQM of runs\n(0: {heading(scores.zero_shot, published)}, 100: the best)" if scores.normalised else f"IQM of {MIOU}"
    with _forest(scores, shown, published) as (figure, ax):
        _says(ax, words)
        yield figure


@contextmanager
def improvements(scores: Scores, against: str, published: Published) -> Drawn:
    """The chance that a run of every method is above one of the method that they are compared with."""
    pairs = {label: scores.better(label, against) for label in scores.of if label != against}
    shown = {label: (100 * float(improvement(*pair)), _scaled(improvement_interval(*pair), 100)) for label, pair in pairs.items()}
    with _forest(scores, shown, published) as (figure, ax):
        ax.axvline(50, color=GREY, linewidth=0.8)
        ax.set(xlim=(-3, 103))
        _says(ax, f"chance (%) that a run is better than one of\n{heading(against, published)}")
        yield figure


def _scaled(found: Interval, by: float) -> Interval:
    return Interval(by * found.low, by * found.high)


@contextmanager
def _forest(scores: Scores, shown: Mapping[str, tuple[float, Interval | None]], published: Published) -> Iterator[tuple[Figure, Axes]]:
    order = sorted(shown, key=lambda label: -shown[label][0])
    labels = list(scores.of)
    with panels(1, COLUMN, 0.75 + ROW * len(order)) as (figure, (ax,)):
        for y, label in enumerate(order):
            i, (value, found) = labels.index(label), shown[label]
            if found:
                ax.plot([found.low, found.high], [y, y], color=colour(i), linewidth=2.2, alpha=0.45, solid_capstyle="butt")
            ax.plot(value, y, marker(i), color=colour(i), markersize=5)
        _methods(ax, [heading(label, published) for label in order])
        yield figure, ax


@contextmanager
def profile(scores: Scores, published: Published) -> Drawn:
    """How many runs are above a mIoU, for every mIoU; bands, of as many methods as there are colours, are the bootstrap's intervals."""
    lines = -(-len(scores.of) // 2)
    with panels(1, COLUMN, 2.0 + 0.14 * lines) as (figure, (ax,)):
        for i, (label, of) in enumerate(scores.of.items()):
            ax.plot(THRESHOLDS, 100 * above(of, THRESHOLDS), color=colour(i), linestyle=_dash(i), label=heading(label, published))
            if label in scores.trained and len(scores.of) <= len(COLOURS):
                low, high = np.quantile(above(resampled(of, picked(of.shape[0], of.shape[2])[:500]), THRESHOLDS), (0.025, 0.975), axis=0)
                ax.fill_between(THRESHOLDS, 100 * low, 100 * high, color=colour(i), alpha=0.15, linewidth=0)
        ax.set(xlabel=f"τ: {MIOU}", ylabel="runs above τ (%)", xlim=_span(scores.of), ylim=(-2, 102))
        legend_below(figure, [ax])
        yield figure


def _dash(i: int) -> str:
    """Told apart where colours come again."""
    return ("-", "--", ":", "-.")[i // len(COLOURS) % 4]


def _span(scores: Mapping[str, Values]) -> tuple[float, float]:
    """Where runs are."""
    low, high = min(float(of.min()) for of in scores.values()), max(float(of.max()) for of in scores.values())
    return max(0.0, low - 3), min(100.0, high + 3)


@contextmanager
def ranks(ranked: Ranking, published: Published) -> Drawn:
    """Mean ranks, best above; a bar joins methods that are nearer than Nemenyi's critical difference."""
    order = sorted(ranked.ranks, key=lambda label: ranked.ranks[label])
    labels = list(ranked.ranks)
    bars = cliques([ranked.ranks[label] for label in order], ranked.critical)
    with panels(1, COLUMN, 0.85 + ROW * len(order)) as (figure, (ax,)):
        for y, label in enumerate(order):
            i = labels.index(label)
            ax.plot(ranked.ranks[label], y, marker(i), color=colour(i), markersize=5)
        for k, (first, last) in enumerate(bars):
            x = len(order) + 0.25 + 0.3 * k
            ax.plot([x, x], [first - 0.25, last + 0.25], color=GREY, linewidth=2.4, solid_capstyle="butt")
        _methods(ax, [heading(label, published) for label in order])
        ax.set(xlim=(0.6, len(order) + 0.4 + 0.3 * max(1, len(bars))), xticks=range(1, len(order) + 1, -(-len(order) // 10)))
        _says(ax, f"mean rank over {ranked.over}\nbars: not told apart (< {ranked.critical:.2f})")
        yield figure


def cliques(ranks: Sequence[float], gap: float) -> list[tuple[int, int]]:
    """The longest stretches, first and last place, of sorted mean ranks that lie within a critical difference; single ones are none."""
    ends = [max(j for j in range(i, len(ranks)) if ranks[j] - ranks[i] < gap) for i in range(len(ranks))]
    return [(i, end) for i, end in enumerate(ends) if end > i and (not i or end > ends[i - 1])]
