"""A table's methods compared, on the same images, draws and seeds: with the best of each column, with one of them, or in pairs."""

import math

from bench.grid.published import Published, ordered
from bench.reporting.comparable import ComparableCells
from bench.reporting.statistics import Difference
from bench.reporting.table import Cell, Column, Facts, Row, Table
from bench.reporting.table_statistics import BEST, PAIRS, Comparison, dataset_of, interval_notes, table_statistics

MEANING = (
    "Δ: difference in points. p: two-sided, after Holm's correction for the comparisons of its column; the interval of Δ is at the level "
    "which that leaves it, 95 % or more, so it excludes 0 exactly where p < 0.05. d: Cohen's d of the images' IoUs. n: runs that both have."
)


def comparisons_table(comparable: ComparableCells, published: Published, against: str = "") -> Table:
    """Methods, or pairs of them, as rows; for every data set and the average: the difference, its interval, corrected p and effect size.
    against: in place of what the cells are to be compared with."""
    datasets, against, naming = comparable.datasets, against or comparable.against, comparable.naming
    known = table_statistics(comparable, datasets, averaged=len(datasets) > 1)
    comparisons = known.comparisons(against)
    parts = (("Δ", 1, True), ("p", 4, False), ("d", 2, True))
    columns = tuple(
        Column(naming.dataset(group), name, digits, signed, dataset_of(group)) for group in known.columns for name, digits, signed in parts
    )
    by_pair = against == PAIRS
    found: dict[tuple[tuple[str, ...], str], Comparison] = {((c.a, c.b) if by_pair else (c.a,), c.column): c for c in comparisons}
    best = {((c.b,), c.column) for c in comparisons if not by_pair}
    pairs: list[tuple[str, ...]] = list(dict.fromkeys((c.a, c.b) for c in comparisons))
    methods = ordered({label for pair in pairs for label in pair} - {against}, published)
    keys: list[tuple[str, ...]] = pairs if by_pair else [(label,) for label in methods]
    rows = []
    for key in keys:
        cells = [cell for group in known.columns for cell in _compared(found.get((key, group)), (key, group) in best)]
        about: Facts = tuple(("method", label) for label in key)
        rows.append(Row(" - ".join(map(naming.method, key)), tuple(cells), about))
    what = {BEST: "Methods compared with the best of each column", PAIRS: "Methods compared in pairs"}
    title = what.get(against, f"Methods compared with {naming.method(against)}")
    notes = (*comparable.warnings, MEANING, *interval_notes(known.counts, naming), *comparable.notes)
    name = comparable.name("comparisons" if against == BEST else f"comparisons-{against}")
    return Table(name, title, comparable.context, "pair" if by_pair else "method", columns, tuple(rows), notes)


def _compared(found: Comparison | None, best: bool) -> tuple[Cell, Cell, Cell]:
    if found is None:
        return Cell(reason="best" if best else "not compared"), Cell(), Cell()
    return difference_cells(found.difference)


def difference_cells(found: Difference) -> tuple[Cell, Cell, Cell]:
    """A difference with its interval, its corrected p, and its effect size."""
    delta = Cell(found.value, n=found.runs, low=found.interval.low, high=found.interval.high, images=found.images)
    p = Cell(reason="one run") if found.p is None else Cell(found.p)
    return delta, p, Cell(found.effect) if math.isfinite(found.effect) else Cell(reason="no spread")
