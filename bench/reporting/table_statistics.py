"""What a board's per-image rows say: every value's interval, every pair of methods compared on the same images and runs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations, groupby
from pathlib import Path

import numpy as np

from bench.grid.metrics import under_rule
from bench.grid.rows import read_image_rows
from bench.reporting.comparable import ComparableCells, Position
from bench.reporting.statistics import Counts, Difference, Interval, Sampled, averaged, difference, holm, sampled
from bench.reporting.table import Cell, Facts, Mark

SIGNIFICANT = 0.05
AVERAGE = "average"
IN_BRACKETS = "In brackets: 95 % bootstrap interval over test images and runs (images alone where there is one run)."


@dataclass(frozen=True)
class Comparison:
    """Two methods of a column; `p_holm` is corrected for all comparisons of the table."""

    column: str
    a: str
    b: str
    difference: Difference
    p_holm: float

    @property
    def significant(self) -> bool:
        """Whether the difference is outside the noise."""
        return self.p_holm < SIGNIFICANT


@dataclass(frozen=True)
class TableStatistics:
    """A board's counts by (label, data set), or why they are lacking, and what follows from them."""

    counts: Mapping[Position, Counts]
    datasets: tuple[str, ...]
    averaged: bool
    lacking: Mapping[Position, str] = field(default_factory=dict)
    cache: dict[Position, Sampled] = field(default_factory=dict, compare=False)

    @cached_property
    def comparisons(self) -> tuple[Comparison, ...]:
        """All pairs of methods, data set by data set, then their averages; corrected together."""
        found = [(column, a, b, d) for column in self._columns() for a, b, d in self._pairs(column)]
        corrected = holm([d.p for *_, d in found])
        return tuple(Comparison(column, a, b, d, p) for (column, a, b, d), p in zip(found, corrected, strict=True))

    def with_interval(self, cell: Cell, label: str, column: str) -> Cell:
        """The cell with its interval, cut at 0 and 100, and number of images, if it has a value and its images are known."""
        counts = self._counts(label, column)
        if cell.value is None or counts is None:
            return cell
        return bracketed(cell, self.interval(label, column), sum(len(of.images) for of in counts))

    def interval(self, label: str, column: str) -> Interval | None:
        """The 95 % interval of a method on a data set, or of its average; None where it is not defined."""
        if self._counts(label, column) is None:
            return None
        found = averaged(self._draws(label, column))
        return None if found is None else found.interval

    def marks(self, values: Mapping[str, float], column: str) -> dict[str, Mark]:
        """label -> "best" or "second" of a column's values, each only if it differs from the next beyond the noise."""
        ranked = sorted(values, key=lambda label: -values[label])
        apart = {frozenset((c.a, c.b)) for c in self.comparisons if c.column == column and c.significant}
        marks: tuple[Mark, Mark] = ("best", "second")
        return {a: mark for mark, a, b in zip(marks, ranked, ranked[1:], strict=False) if frozenset((a, b)) in apart}

    def _columns(self) -> list[str]:
        return [*self.datasets, *([AVERAGE] if self.averaged else [])]

    def _counts(self, label: str, column: str) -> list[Counts] | None:
        found = [self.counts.get((label, name)) for name in (self.datasets if column == AVERAGE else [column])]
        return None if None in found or not found else [counts for counts in found if counts is not None]

    def _draws(self, label: str, column: str) -> list[Sampled]:
        """The resamples of each data set behind a column, drawn once."""
        places = [(label, name) for name in (self.datasets if column == AVERAGE else [column])]
        for place in places:
            if place not in self.cache:
                self.cache[place] = sampled(self.counts[place])
        return [self.cache[place] for place in places]

    def _pairs(self, column: str) -> Iterator[tuple[str, str, Difference]]:
        labels = sorted({label for label, _ in self.counts})
        known = {label: counts for label in labels if (counts := self._counts(label, column)) is not None}
        for a, b in combinations(known, 2):
            draws = list(zip(self._draws(a, column), self._draws(b, column), strict=True))
            found = difference(list(zip(known[a], known[b], strict=True)), draws)
            if found is not None:
                yield a, b, found


def bracketed(cell: Cell, found: Interval | None, images: int) -> Cell:
    """A cell with its interval, cut at 0 and 100, and the images behind it."""
    ends = (max(0.0, found.low), min(100.0, found.high)) if found else (None, None)
    return replace(cell, low=ends[0], high=ends[1], images=images)


def dataset_of(column: str) -> Facts:
    """What a page can filter a column by: its data set, where it is not the average of all."""
    return () if column == AVERAGE else (("dataset", column),)


def table_statistics(comparable: ComparableCells, datasets: Sequence[str], averaged: bool) -> TableStatistics:
    """The evidence of a board's stored cells on these data sets; a cell without readable rows by image has none."""
    counts: dict[Position, Counts] = {}
    lacking: dict[Position, str] = {}
    wanted = comparable.frame[comparable.frame["dataset"].isin(list(datasets))] if len(comparable.frame) else comparable.frame
    order = wanted.sort_values(["label", "dataset", "draw", "seed"]) if len(wanted) else wanted
    columns = ("label", "dataset", "draw", "seed", "path")
    rows = list(zip(*(order[name] for name in columns), strict=True)) if len(order) else []
    for place, runs in groupby(rows, key=lambda row: (str(row[0]), str(row[1]))):
        folders = [(f"draw {draw} seed {seed}", Path(path)) for _, _, draw, seed, path in runs]
        found = counts_of(place[1], folders, comparable.selection, comparable.rule)
        if isinstance(found, Counts):
            counts[place] = found
        else:
            lacking[place] = found
    return TableStatistics(counts, tuple(datasets), averaged, lacking)


def counts_of(dataset: str, runs: Sequence[tuple[str, Path]], selection: str, rule: str) -> Counts | str:
    """The counts of a method's runs on a data set, or why there are none: they need the same test images."""
    tables = [read_rows(folder, selection, rule) for _, folder in runs]
    unread = [folder for (_, folder), table in zip(runs, tables, strict=True) if not table]
    if unread:
        return f"the rows by image of {'/'.join(unread[0].parts[-3:])} are absent or damaged"
    if len({tuple(table) for table in tables if table}) != 1:
        return "its runs were tested on different images"
    images = tuple(tables[0] or ())
    pixels = np.array([[table[name] for name in images] for table in tables if table], dtype=float)
    names = tuple(f"{dataset}/{name}" for name in images)
    return Counts(tuple(run for run, _ in runs), names, pixels[:, :, 0], pixels[:, :, 1])


def read_rows(folder: Path, selection: str, rule: str) -> dict[str, tuple[int, int]] | None:
    """image -> (intersection, union) in pixels as a rule counts them, by name; None where the file is absent or damaged."""
    rows = read_image_rows(folder)
    if rows is None:
        return None
    counted = under_rule(rows.get(selection, []), rule)
    return {row.name: (row.intersection, row.union) for row in sorted(counted, key=lambda row: row.name)}
