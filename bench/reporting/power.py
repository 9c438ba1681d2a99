"""How many draws, seeds and test images would tell one method from another, from the cells of both that are stored."""

from collections.abc import Sequence

import numpy as np

from bench.errors import RequestError, unknown
from bench.grid.metrics import OF_ALL, metric_of
from bench.grid.store import ResultStore
from bench.reporting.comparable import CellQuery, ComparableCells, comparable_cells
from bench.reporting.components import FEWEST_DRAWS, MOST_DRAWS, POWER, Design, Spread, grid
from bench.reporting.table import Cell, Column, Row, Table
from bench.reporting.table_statistics import table_statistics

DRAWS, SEEDS, IMAGES = (2, 3, 5, 10, 20, 50), (1, 3), (1, 2, 4)  # of the designs that are shown; images: times those that are stored
HOW = (
    "Power: how many of 100 such experiments would tell the two apart at 5 %, two methods by themselves, as `--like comparisons` does it. "
    "Bold: the fewest runs with 80 %."
)


def power_tables(store: ResultStore, query: CellQuery, a: str, b: str, difference: float | None = None) -> list[Table]:
    """A table for every data set on which both methods have two draws, or more; difference: in points, instead of the one that was
    found. RequestError, one sentence, where there is none, and for a method that is not stored."""
    if query.metric and metric_of(query.metric).terms is None:
        raise RequestError(f"{query.metric} {OF_ALL}: it has no interval, and so no power.")
    found = comparable_cells(store, query)
    labels = sorted({label for comparable in found for label, _ in comparable.scores})
    a, b = (_stored(name, labels) for name in (a, b))
    if a == b:
        raise RequestError(f"{a} is to be told from itself: two different methods are needed.")
    tables, lacking = [], []
    for comparable in found:
        known = table_statistics(comparable, comparable.datasets, averaged=False)
        for dataset in comparable.datasets:
            one, other = known.counts.get((a, dataset)), known.counts.get((b, dataset))
            if one is None or other is None:
                continue
            comparable_files = one.images == other.images and known.same_files(a, b, dataset)
            spread = Spread.of(one, other) if comparable_files else None
            if spread:
                tables.append(_table(comparable, dataset, a, b, spread, difference))
            else:
                trained = [of for of in (one, other) if of.trains]
                draws = len(grid(trained)[0]) if trained else 0
                lacking.append(f"{dataset} has {draws}" if comparable_files else f"{dataset} has other test images")
    if not tables:
        said = f" ({', '.join(lacking)})" if lacking else ""
        raise RequestError(
            f"{a} and {b} have fewer than {FEWEST_DRAWS} draws in common on every data set{said}: run more of them, such as "
            f'`python -m bench.run --methods "{a},{b}" --draws 0:10`.'
        )
    return tables


def _stored(name: str, labels: Sequence[str]) -> str:
    """The label of a stored method, of which the parameters may be left out where there is but one of its name."""
    found = [label for label in labels if name in (label, label.partition("(")[0])]
    if name in found or len(found) == 1:
        return name if name in found else found[0]
    raise unknown("stored method", name, found or labels)


def _table(comparable: ComparableCells, dataset: str, a: str, b: str, spread: Spread, difference: float | None) -> Table:
    smallest = spread.smallest(spread.images, difference)
    seeds = SEEDS if spread.seeds > 1 else SEEDS[:1]
    designs = {(draws, of) for draws in DRAWS for of in seeds} | ({(smallest.draws, smallest.seeds)} if smallest else set())
    columns = tuple(Column("", f"{times * spread.images} images", 0) for times in IMAGES)
    rows = []
    for draws, of in sorted(designs):
        cells = [_power_cell(spread, Design(draws, of, times * spread.images), smallest, difference) for times in IMAGES]
        rows.append(Row(f"{draws} × {of}", tuple(cells)))
    naming = comparable.naming
    context = (*comparable.context[:4], ("dataset", naming.dataset(dataset)), ("difference", f"{_assumed(spread, difference):.2f} points"))
    title = f"Power to tell {naming.method(a)} from {naming.method(b)} on {naming.dataset(dataset)} (%)"
    name = f"{comparable.name('power')}_{a}-{b}_{dataset}"
    notes = (_needed(spread, smallest, difference), _varies(spread, difference), HOW, *comparable.warnings)
    return Table(name, title, context, "draws × seeds", columns, tuple(rows), notes)


def _power_cell(spread: Spread, design: Design, smallest: Design | None, difference: float | None) -> Cell:
    return Cell(100 * spread.power(design, difference), mark="best" if design == smallest else "")


def _assumed(spread: Spread, difference: float | None) -> float:
    return abs(spread.difference) if difference is None else difference


def _needed(spread: Spread, smallest: Design | None, difference: float | None) -> str:
    """The answer in a sentence."""
    many = f"on the {spread.images} test images"
    if smallest:
        return f"80 % need {smallest.runs} {many}: {smallest.draws * smallest.seeds} runs of each method."
    more = [(times, found) for times in (2, 4, 8, 16, 32) if (found := spread.smallest(times * spread.images, difference))]
    if not more:
        return f"{100 * POWER:.0f} % are out of reach of {MOST_DRAWS} draws, also with 32 times the {spread.images} test images."
    times, found = more[0]
    return f"80 % need more test images: {MOST_DRAWS} draws do not give them {many}; with {times * spread.images} {found.runs} do."


def _varies(spread: Spread, difference: float | None) -> str:
    """What the difference varies by, and what these runs could have told apart."""
    deviations = {
        "draws": spread.draw + spread.image_draw,
        "seeds within them": spread.seed + spread.image_seed,
        "test images": spread.image,
    }
    known = dict(list(deviations.items())[:: 1 if spread.seeds > 1 else 2])
    said = ", ".join(f"{name} {np.sqrt(variance):.2f}" for name, variance in known.items())
    origin = f"found ({spread.difference:+.2f})" if difference is None else f"asked for; found were {spread.difference:+.2f} points"
    alone = "" if spread.seeds > 1 else " One seed a draw is stored: what more of them would do is not known."
    return f"The difference is the one {origin}. Its standard deviations in points: {said}; of the images all together.{alone}"
