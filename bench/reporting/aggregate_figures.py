"""Figures of draws and of aggregates."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.grid.published import Published
from bench.reporting.aggregates import Ranking, Scores, above, improvement, improvement_interval, interval, iqm, picked, resampled
from bench.reporting.comparable import ComparableCells
from bench.reporting.draws import Means, Place, differences_by_draw, means_by_draw, pairs_of, trained_labels
from bench.reporting.labels import Labels
from bench.reporting.statistics import Interval, Values
from bench.reporting.style import (
    COLOURS,
    GREY,
    Look,
    height_of_rows,
    legend_below,
    lines_across,
    looks,
    panels,
    panels_of_rows,
    rows,
    wrapped,
)
from bench.reporting.table_statistics import BEST, PAIRS

THRESHOLDS = np.arange(0.0, 100.01, 0.5)


def official_draw(comparable: ComparableCells, dataset: str, published: Published) -> Figure:
    """Every draw's mean over seeds, by method and as points behind another; the official one is a diamond, the median of the others a
    line."""
    labels, naming = trained_labels(comparable, dataset, published), comparable.naming
    means = {label: means_by_draw(comparable, label, dataset) for label in labels}
    pairs = pairs_of(labels, means, BEST if comparable.against == PAIRS else comparable.against)
    behind = {b: differences_by_draw(means[a], means[b]) for a, b in pairs}
    titles = [naming.dataset(dataset), *([f"behind {naming.method(pairs[0][0])}"] if pairs else [])]
    with panels_of_rows(titles, [naming.method(label) for label in labels]) as (figure, axes):
        drawn = looks(labels)
        for ax, of in zip(axes, (means, behind), strict=False):
            for i, label in enumerate(labels):
                _dots(ax, i, of.get(label, {}), drawn[label])
        axes[0].set_xlabel(f"{comparable.quantity} (%)\ndiamond: official; line: median")
        if pairs:
            axes[1].set_xlabel("points")
            axes[1].axvline(0, color=GREY, linewidth=0.8)
        return figure


def _dots(ax: Axes, i: int, means: Means, look: Look) -> None:
    place = Place.of(means)
    ax.plot(place.others, np.full(len(place.others), i), "o", markersize=3.5, color=look.colour, alpha=0.55, markeredgewidth=0)
    if len(place.others):
        ax.vlines(float(np.median(place.others)), i - 0.32, i + 0.32, color=look.colour, linewidth=1.6)
    if place.official is not None:
        ax.plot(place.official, i, "D", markersize=4.5, color=look.colour, markeredgecolor="black", markeredgewidth=0.7, zorder=3)


def _says(ax: Axes, text: str) -> None:
    """The label of the x axis, which may reach below long names of methods."""
    ax.set_xlabel("\n".join(wrapped(line, 56) for line in text.split("\n")), loc="right")


def intervals(scores: Scores, naming: Labels, measured: str) -> Figure:
    """The interquartile mean of every method, normalised where that can be, with its bootstrap interval; measured: what of, in words."""
    found = scores.normalised or scores.of
    shown = {label: (float(iqm(of)), interval(iqm, of) if label in scores.trained else None) for label, of in found.items()}
    words = f"IQM of runs\n(0: {naming.method(scores.zero_shot)}, 100: the best)" if scores.normalised else f"IQM of {measured}"
    return _forest(scores, shown, naming, words, 1 if scores.normalised else scores.sign)


def improvements(scores: Scores, against: str, naming: Labels) -> Figure:
    """The chance that a run of every method is above one of the method that they are compared with."""
    pairs = {label: scores.better(label, against) for label in scores.of if label != against}
    shown = {label: (100 * float(improvement(*pair)), _scaled(improvement_interval(*pair), 100)) for label, pair in pairs.items()}
    words = f"chance (%) that a run is better than one of\n{naming.method(against)}"
    figure = _forest(scores, shown, naming, words)
    (ax,) = figure.axes
    ax.axvline(50, color=GREY, linewidth=0.8)
    ax.set(xlim=(-3, 103))
    return figure


def _scaled(found: Interval, by: float) -> Interval:
    return Interval(by * found.low, by * found.high)


def _forest(scores: Scores, shown: Mapping[str, tuple[float, Interval | None]], naming: Labels, words: str, sign: int = 1) -> Figure:
    order = sorted(shown, key=lambda label: -sign * shown[label][0])
    drawn, names = looks(scores.of), [naming.method(label) for label in order]
    with panels(1, height_of_rows(names, 0.7)) as (figure, (ax,)):
        ends = [(y, found.low, found.high, drawn[label].colour) for y, label in enumerate(order) if (found := shown[label][1])]
        lines_across(ax, ends, linewidth=2.2, alpha=0.45)
        for y, label in enumerate(order):
            ax.plot(shown[label][0], y, markersize=4, **drawn[label].point)
        rows(ax, names)
        _says(ax, words)
        return figure


def profile(scores: Scores, naming: Labels, measured: str) -> Figure:
    """How many runs are above a value, for every value of what is measured; bands, of as many methods as there are colours, are the
    bootstrap's intervals."""
    with panels(1, 2.1) as (figure, (ax,)):
        drawn = looks(scores.of)
        for i, (label, of) in enumerate(scores.of.items()):
            look = drawn[label]
            how: dict[str, Any] = {"markevery": (5 * i % 20, 20), "markersize": 2.5}
            ax.plot(THRESHOLDS, 100 * above(of, THRESHOLDS), linestyle=look.dash, label=naming.method(label), **look.point, **how)
            if label in scores.trained and len(scores.of) <= len(COLOURS):
                low, high = np.quantile(above(resampled(of, picked(of.shape[0], of.shape[2])[:500]), THRESHOLDS), (0.025, 0.975), axis=0)
                ax.fill_between(THRESHOLDS, 100 * low, 100 * high, color=look.colour, alpha=0.15, linewidth=0)
        ax.set(xlabel=f"τ: {measured}", ylabel="runs above τ (%)", xlim=_span(scores.of), ylim=(-2, 102))
        legend_below(figure, [ax], drawn.values())
        return figure


def _span(scores: Mapping[str, Values]) -> tuple[float, float]:
    """Where runs are."""
    low, high = min(float(of.min()) for of in scores.values()), max(float(of.max()) for of in scores.values())
    return max(0.0, low - 3), min(100.0, high + 3)


def ranks(ranked: Ranking, naming: Labels) -> Figure:
    """Mean ranks, best above; a bar joins methods that are nearer than Nemenyi's critical difference, where that is on the scale."""
    order = sorted(ranked.ranks, key=lambda label: ranked.ranks[label])
    drawn, names, last = looks(ranked.ranks), [naming.method(label) for label in order], len(ranked.ranks)
    gap = f"the critical difference, {ranked.critical:.2f}"
    joined = cliques([ranked.ranks[label] for label in order], ranked.critical) if ranked.critical < last - 1 else []
    told = f"bars: not told apart (< {gap})" if joined else f"{gap}, exceeds the scale" if ranked.critical >= last - 1 else ""
    with panels(1, height_of_rows(names, 0.75)) as (figure, (ax,)):
        for y, label in enumerate(order):
            ax.plot(ranked.ranks[label], y, markersize=4, **drawn[label].point)
        step = 0.035 * last
        for k, (first, end) in enumerate(joined):
            x = last + (k + 1.5) * step
            ax.plot([x, x], [first - 0.25, end + 0.25], color=GREY, linewidth=1.6, solid_capstyle="butt")
        rows(ax, names)
        ax.set(xlim=(1 - step, last + (len(joined) + 1.5) * step), xticks=range(1, last + 1, -(-last // 8)))
        _says(ax, f"mean rank over {ranked.over}\n{told}")
        return figure


def cliques(ranks: Sequence[float], gap: float) -> list[tuple[int, int]]:
    """The longest stretches, first and last place, of sorted mean ranks that lie within a critical difference; single ones are none."""
    ends = [max(j for j in range(i, len(ranks)) if ranks[j] - ranks[i] < gap) for i in range(len(ranks))]
    return [(i, end) for i, end in enumerate(ends) if end > i and (not i or end > ends[i - 1])]
