"""Untuned beside tuned: what the same budget of trials gives each method, and whether it turns their order round."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pandas as pd
from matplotlib.figure import Figure

from bench.grid.published import Published, ordered
from bench.grid.tuned import FOLDER, untuned_name
from bench.reporting.comparable import ComparableCells, Position, Run
from bench.reporting.labels import Labels
from bench.reporting.style import COLOURS, GREY, legend_below, panels_of_rows
from bench.reporting.table import Cell, Column, Row, Table
from bench.reporting.table_statistics import AVERAGE, TableStatistics, dataset_of, interval_notes, table_statistics

TUNED = "\ttuned"  # behind the label of a method's tuned cells, which no label has
PARTS = (("untuned", False), ("tuned", False), ("gain", True))


@dataclass(frozen=True)
class TunedPair:
    """The cells of a protocol and of the same with tuned rates, by the methods' labels as they were asked for.

    both: all in one, the tuned ones' labels with TUNED; chosen: label -> the methods with the parameters that trials chose.
    """

    both: ComparableCells
    tuned: ComparableCells
    known: TableStatistics
    labels: tuple[str, ...]
    datasets: tuple[str, ...]
    chosen: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, untuned: ComparableCells, tuned: ComparableCells) -> "TunedPair":
        """The pair of two comparable groups."""
        mine = tuned.frame[tuned.frame["trials"] > 0]
        asked = dict(zip(mine["label"], mine["tuned_as"], strict=True))
        frame = pd.concat([untuned.frame[untuned.frame["trains"].astype(bool)], mine.assign(label=mine["tuned_as"] + TUNED)])
        scores: dict[Position, dict[Run, float]] = {place: dict(of) for place, of in untuned.scores.items()}
        for (label, dataset), of in tuned.scores.items():
            if label in asked:
                scores.setdefault((asked[label] + TUNED, dataset), {}).update(of)
        both = replace(untuned, frame=frame, gaps={}, scores=scores, notes=())
        labels = [label for label in dict.fromkeys(asked.values()) if any((label, dataset) in scores for dataset in untuned.datasets)]
        datasets = tuple(name for name in untuned.datasets if any((label + TUNED, name) in scores for label in labels))
        changed = dict.fromkeys((was, now) for now, was in asked.items() if now != was)
        return cls(both, tuned, table_statistics(both, datasets, len(datasets) > 1), tuple(labels), datasets, tuple(changed))

    @property
    def naming(self) -> Labels:
        """How tables and figures call its methods and data sets."""
        return self.tuned.naming

    @property
    def groups(self) -> list[str]:
        """The data sets, and the average of several."""
        return self.known.columns

    def cells(self, label: str, group: str) -> tuple[Cell, Cell]:
        """Untuned and tuned, with their intervals."""
        names = (label, label + TUNED)
        found = [self.both.average(name, self.datasets) if group == AVERAGE else self.both.cell(name, group) for name in names]
        untuned, tuned = (self.known.with_interval(cell, name, group) for cell, name in zip(found, names, strict=True))
        return untuned, tuned

    def tau(self, group: str) -> tuple[float, int]:
        """Kendall's tau between the orders untuned and tuned, and of how many methods."""
        from scipy.stats import kendalltau  # takes longer to load than a table takes

        cells = [self.cells(label, group) for label in self.labels]
        values = [(a.value, b.value) for a, b in cells if a.value is not None and b.value is not None]
        return (float(kendalltau(*zip(*values, strict=True)).statistic), len(values)) if len(values) > 1 else (float("nan"), len(values))


def tuned_pairs(found: Sequence[ComparableCells]) -> list[TunedPair]:
    """Every group of tuned cells with that of the same protocol untuned, where both have a method on a data set in common."""
    by_identity = {of.identity: of for of in found}
    pairs = []
    for tuned in found:
        backbone, protocol, *rest = tuned.identity
        untuned = by_identity.get((backbone, untuned_name(protocol), *rest))  # type: ignore[arg-type]
        if untuned is not None and untuned is not tuned and len(tuned.frame) and (tuned.frame["trials"] > 0).any():
            pair = TunedPair.of(untuned, tuned)
            pairs += [pair] if pair.labels and pair.datasets else []
    return pairs


def tuning_table(pair: TunedPair, published: Published) -> Table:
    """Methods as rows; for every data set and the average: untuned, tuned, and the gain with its interval."""
    columns = tuple(
        Column(pair.naming.dataset(group), name, signed=signed, about=dataset_of(group)) for group in pair.groups for name, signed in PARTS
    )
    gains = {group: pair.known.compared([(label + TUNED, label) for label in pair.labels], group) for group in pair.groups}
    rows = []
    for label in ordered(pair.labels, published):
        cells: list[Cell] = []
        for group in pair.groups:
            untuned, tuned = pair.cells(label, group)
            found = gains[group].get((label + TUNED, label))
            gap = None if untuned.value is None or tuned.value is None else tuned.value - untuned.value
            cells += [untuned, tuned, Cell(gap, low=found.interval.low, high=found.interval.high) if found else Cell(gap)]
        rows.append(Row(pair.naming.method(label), tuple(cells), (("method", label),)))
    context = tuple((name, f"{pair.both.identity[1]} and {value}" if name == "protocol" else value) for name, value in pair.tuned.context)
    notes = (*pair.tuned.warnings, _order(pair), *_notes(pair), *interval_notes(pair.known.counts, pair.naming))
    return Table(pair.tuned.name("tuning"), f"{pair.tuned.in_title}, untuned and tuned", context, "method", columns, tuple(rows), notes)


def _order(pair: TunedPair) -> str:
    taus = {group: pair.tau(group) for group in pair.groups}
    told = ", ".join(f"{pair.naming.dataset(group)} {tau:.2f} ({count} methods)" for group, (tau, count) in taus.items() if count > 1)
    return f"Kendall's tau between the orders of the methods untuned and tuned, 1 for the same: {told or 'one method has no order'}."


def _notes(pair: TunedPair) -> Iterator[str]:
    name = pair.tuned.identity[1].partition("tuned=")[2].rstrip(")").partition(",")[0]
    trials = dict(pair.tuned.context).get("tuned")
    yield (
        f"Tuned: the best of {trials} of each method, of which the first has the untuned rates; chosen by mIoU on held-out training images "
        f"({FOLDER}/{name}.toml). Intervals of gains are of these rates, not of another search; they are corrected for all methods of "
        "their column and exclude 0 where p < 0.05, but of one run they are over its images alone, uncorrected."
    )
    if pair.chosen:
        yield (
            "Parameters that trials chose: "
            + "; ".join(f"{pair.naming.method(was)}: {pair.naming.method(now)}" for was, now in pair.chosen)
            + "."
        )
    yield from pair.tuned.notes


def dumbbells(pair: TunedPair) -> Figure:
    """Every method from untuned (open) to tuned (full) on every data set, the best tuned one of the average on top."""
    labels = sorted(pair.labels, key=lambda label: -pair.tuned.sign * (pair.cells(label, pair.groups[-1])[1].value or 0))
    naming = pair.naming
    titles = [naming.dataset(group) for group in pair.groups]
    with panels_of_rows(titles, [naming.method(label) for label in labels]) as (figure, axes):
        for ax, group in zip(axes, pair.groups, strict=True):
            for i, label in enumerate(labels):
                untuned, tuned = (cell.value for cell in pair.cells(label, group))
                if untuned is not None and tuned is not None:
                    paint, said = (
                        (COLOURS[2], "tuned, no worse") if pair.tuned.sign * (tuned - untuned) >= 0 else (COLOURS[5], "tuned, worse")
                    )
                    ax.plot([untuned, tuned], [i, i], color=paint, linewidth=1.4, zorder=2)
                    ax.plot(untuned, i, "o", markerfacecolor="white", markeredgecolor=GREY, markersize=4, zorder=3, label="untuned")
                    ax.plot(tuned, i, "o", color=paint, markersize=4, zorder=4, label=said)
            ax.set_xlabel(f"{pair.tuned.quantity} (%)\ntau {pair.tau(group)[0]:.2f}")
        legend_below(figure, axes)
        return figure
