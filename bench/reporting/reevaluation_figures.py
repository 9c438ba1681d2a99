"""Figures of re-evaluations: scores by condition, and gain against retention."""

import numpy as np
from matplotlib.figure import Figure

from bench.grid.published import ordered
from bench.reporting.labels import Labels
from bench.reporting.reevaluations import CLEAN, Retention, Robustness, family_of
from bench.reporting.style import GREY, dodged, legend_below, looks, panels

UNORDERED = ("prompts", "combined")


def robustness_figure(found: Robustness, naming: Labels, measured: str) -> Figure:
    """What is measured, under each family of conditions, beside CLEAN; bars are 95 % intervals."""
    families = list(dict.fromkeys(family_of(condition) for condition in found.conditions if condition != CLEAN))
    drawn = looks(found.labels)
    with panels(len(families), 2.2) as (figure, axes):
        for ax, family in zip(axes, families, strict=True):
            shown = [CLEAN, *(name for name in found.conditions if name != CLEAN and family_of(name) == family)]
            for i, label in enumerate(found.labels):
                cells = [found.cell(label, name) for name in shown]
                dodged(ax, i, len(found.labels), naming.method(label), cells, drawn[label], joined=family not in UNORDERED)
            ax.set_xticks(range(len(shown)), [_tick(name) for name in shown])
            ax.set(title=f"{naming.dataset(found.dataset)}: {family}", ylabel=measured, xlim=(-0.5, len(shown) - 0.5))
            ax.grid(axis="x", visible=False)
        legend_below(figure, axes, drawn.values())
        return figure


def _tick(condition: str) -> str:
    """What a condition is called below an axis that its family's name stands above, in narrow lines."""
    level = condition.partition("(")[2].removesuffix(")")
    if level and family_of(condition) not in ("jitter", *UNORDERED):
        return level
    return "\n".join(map(_narrow, condition.split()))


def _narrow(word: str) -> str:
    _, jittered, share = word.removesuffix(")").partition("jitter=")
    return f"±{float(share):.0%}" if jittered else word.partition("@")[0].replace("=", "=\n")


def retention_figure(found: Retention, naming: Labels) -> Figure:
    """Gain on the own data set against retention on the others: a method's mean, and small the data sets that it was tuned on."""
    gains, zero = found.gains(), naming.method(found.zero)
    drawn = looks(ordered(gains, naming.published))
    with panels(1, 2.6) as (figure, (ax,)):
        for label, look in drawn.items():
            x, y = zip(*gains[label], strict=True)
            ax.plot(x, y, linestyle="none", markersize=2.5, alpha=0.45, markeredgewidth=0, **look.point)
            ax.plot(np.mean(x), np.mean(y), linestyle="none", markersize=5.5, zorder=3, label=naming.method(label), **look.point)
        ax.axhline(0, color=GREY, linewidth=0.8)
        ax.axvline(0, color=GREY, linewidth=0.8)
        ax.set(xlabel=f"gain on the data set that was tuned on\n(points over {zero})", ylabel=f"on the others\n(points over {zero})")
        legend_below(figure, [ax], drawn.values())
        return figure
