"""Every pair of a board's methods, on the same images and runs."""

import math

from bench.grid.published import Published, heading
from bench.reporting.comparable import ComparableCells
from bench.reporting.table import Cell, Column, Row, Table
from bench.reporting.table_statistics import AVERAGE, Comparison, dataset_of, table_statistics


def comparisons_table(comparable: ComparableCells, published: Published, paper_shots: bool = True) -> Table:
    """Pairs of methods as rows; for every data set and the average: the difference, its interval, corrected p and effect size."""
    datasets = comparable.datasets
    known = table_statistics(comparable, datasets, averaged=len(datasets) > 1)
    found = {(c.a, c.b, c.column): c for c in known.comparisons}
    groups = (*datasets, AVERAGE) if len(datasets) > 1 else tuple(datasets)
    parts = (("Δ", 1, True), ("p", 4, False), ("d", 2, True))
    columns = tuple(Column(group, name, digits, signed, dataset_of(group)) for group in groups for name, digits, signed in parts)
    rows = []
    for a, b in dict.fromkeys((c.a, c.b) for c in known.comparisons):
        cells = [cell for group in groups for cell in _compared(found.get((a, b, group)))]
        rows.append(Row(f"{heading(a, published)} - {heading(b, published)}", tuple(cells), (("method", a), ("method", b))))
    notes = (
        *comparable.warnings,
        f"Δ: difference in points with its 95 % interval; p: two-sided, after Holm's correction for {len(found)} comparisons; "
        "d: Cohen's d of the images' IoUs; n: runs that both have.",
        *comparable.notes,
    )
    return Table(
        comparable.name("comparisons"),
        "Methods compared on the same images and runs",
        comparable.context,
        "pair",
        columns,
        tuple(rows),
        notes,
    )


def _compared(found: Comparison | None) -> tuple[Cell, Cell, Cell]:
    if found is None:
        return Cell(reason="no common runs"), Cell(), Cell()
    d = found.difference
    ends = d.interval
    size = Cell(d.effect) if math.isfinite(d.effect) else Cell(reason="no spread")
    return Cell(d.value, None, d.runs, low=ends.low, high=ends.high, images=d.images), Cell(found.p_holm), size
