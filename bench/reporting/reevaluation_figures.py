"""Figures of re-evaluations: scores by condition, and gain against retention."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.grid.published import Published, heading, ordered
from bench.reporting.reevaluations import CLEAN, Retention, Robustness, family_of
from bench.reporting.style import GREY, colour, legend_below, marker, panels
from bench.reporting.table import Cell


@contextmanager
def robustness_figure(found: Robustness, published: Published) -> Iterator[Figure]:
    """mIoU under each family of conditions, beside CLEAN; bars are 95 % intervals."""
    families = list(dict.fromkeys(family_of(condition) for condition in found.conditions if condition != CLEAN))
    with panels(len(families), height=2.6 + 0.04 * len(found.labels)) as (figure, axes):
        for ax, family in zip(axes, families, strict=True):
            shown = [CLEAN, *(name for name in found.conditions if name != CLEAN and family_of(name) == family)]
            for i, label in enumerate(found.labels):
                _line(ax, i, len(found.labels), heading(label, published), [found.cell(label, name) for name in shown], family)
            ax.set_xticks(range(len(shown)), [_tick(name) for name in shown])
            ax.set(title=family, ylabel="foreground mIoU (%)", xlim=(-0.5, len(shown) - 0.5))
        figure.suptitle(found.dataset, fontsize=9)
        legend_below(figure, axes)
        yield figure


def _tick(condition: str) -> str:
    """What a condition is called below an axis that its family's name stands above."""
    family, inside = family_of(condition), condition.partition("(")[2].partition(")")[0]
    if family == "jitter":
        return f"±{float(inside.removeprefix('jitter=')):.0%}"
    whole = family in (CLEAN, "prompts", "combined") or not inside
    return condition.partition("@")[0].replace(" ", "\n") if whole else inside


def _line(ax: Axes, i: int, of: int, title: str, cells: Sequence[Cell], family: str) -> None:
    """One method's scores; methods are moved aside so that their intervals do not hide each other's."""
    aside = 0.5 * ((i + 0.5) / of - 0.5)
    points = [(k + aside, cell.value, cell) for k, cell in enumerate(cells) if cell.value is not None]
    style = "none" if family in ("prompts", "combined") else "-"  # these have no order
    x, y = [x for x, _, _ in points], [y for _, y, _ in points]
    ax.plot(x, y, linestyle=style, color=colour(i), marker=marker(i), markersize=3.5, label=title)
    for at, _, cell in points:
        if cell.low is not None and cell.high is not None:
            ax.vlines(at, cell.low, cell.high, color=colour(i), linewidth=0.7)


@contextmanager
def retention_figure(found: Retention, published: Published) -> Iterator[Figure]:
    """Gain on the own data set against retention on the others: a method's mean, and small the data sets that it was tuned on."""
    gains = found.gains()
    with panels(1, width=4.6, height=3.6 + 0.04 * len(gains)) as (figure, (ax,)):
        for i, label in enumerate(ordered(gains, published)):
            x, y = zip(*gains[label], strict=True)
            ax.scatter(x, y, color=colour(i), marker=marker(i), s=9, alpha=0.45, linewidths=0)
            ax.scatter(np.mean(x), np.mean(y), color=colour(i), marker=marker(i), s=42, zorder=3, label=heading(label, published))
        ax.axhline(0, color=GREY, linewidth=0.8)
        ax.axvline(0, color=GREY, linewidth=0.8)
        zero = heading(found.zero, published)
        ax.set(
            xlabel=f"gain on the data set that was tuned on\n(points over {zero})", ylabel=f"on the other data sets\n(points over {zero})"
        )
        legend_below(figure, [ax])
        yield figure
