"""The shot as a draw: where the official images lie among others, for methods and for differences between them, and what varies."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from bench.errors import counted
from bench.grid.published import Published, ordered
from bench.reporting.comparable import ComparableCells
from bench.reporting.components import DRAW, IMAGES, METHOD_DRAW, MOST_DRAWS, SEED, Split, Spread
from bench.reporting.statistics import Values
from bench.reporting.table import BRACKETS, Cell, Column, Row, Table
from bench.reporting.table_statistics import BEST, PAIRS, TableStatistics, dataset_of, table_statistics

FEWEST_OTHERS = 2
Means = Mapping[int, float]  # draw -> percent, or points of a difference


@dataclass(frozen=True)
class Place:
    """Where the official draw, 0, lies among the others: what it gives (None: not stored), the share of others below it in percent,
    equal ones by half, and what the others give."""

    official: float | None
    others: Values

    @classmethod
    def of(cls, means: Means) -> "Place":
        """From every draw's mean over seeds."""
        return cls(means.get(0), np.array([mean for draw, mean in sorted(means.items()) if draw]))

    @property
    def percentile(self) -> float | None:
        """See the class."""
        if self.official is None or not len(self.others):
            return None
        return float(100 * ((self.others < self.official) + 0.5 * (self.others == self.official)).mean())


def means_by_draw(comparable: ComparableCells, label: str, dataset: str) -> Means:
    """A method's mean over seeds of every draw; of what trains nothing its one number, for every draw that is stored of others."""
    scores = {run: value for run, value in comparable.scores.get((label, dataset), {}).items() if not math.isnan(value)}
    if scores and (label, dataset) in comparable.fixed:
        draws = {draw for (_, name), of in comparable.scores.items() if name == dataset for draw, _ in of}
        return dict.fromkeys(draws, next(iter(scores.values())))
    draws = {draw for draw, _ in scores}
    return {draw: float(np.mean([value for (of, _), value in scores.items() if of == draw])) for draw in sorted(draws)}


def trained_labels(comparable: ComparableCells, dataset: str, published: Published) -> list[str]:
    """The methods that have FEWEST_OTHERS draws beside the official one, or more, in the paper's order."""
    frame = comparable.frame
    trains = set(frame.loc[frame["trains"].astype(bool), "label"]) if len(frame) else set()
    return [label for label in ordered(trains, published) if len(set(means_by_draw(comparable, label, dataset)) - {0}) >= FEWEST_OTHERS]


def pairs_of(labels: Sequence[str], means: Mapping[str, Means], against: str, sign: int = 1) -> list[tuple[str, str]]:
    """The methods that are compared, as `CellQuery.against` says: with the best over all draws, with one, or all pairs."""
    if against == PAIRS:
        return list(combinations(labels, 2))
    average = {label: float(np.mean(list(means[label].values()))) for label in labels}
    one = max(labels, key=lambda label: sign * average[label]) if against == BEST else against
    return [(one, label) for label in labels if label != one] if one in means else []


def differences_by_draw(one: Means, other: Means) -> Means:
    """One minus the other on the draws that both have."""
    return {draw: one[draw] - other[draw] for draw in one if draw in other}


def draws_tables(comparable: ComparableCells, published: Published) -> list[Table]:
    """For every data set where the official draw lies, by method and by pair; and what the variance of a run is made of."""
    known = table_statistics(comparable, comparable.datasets, averaged=False)
    places = [table for dataset in comparable.datasets if (table := _places(comparable, known, dataset, published))]
    split = _split_table(comparable, known, published) if places else None
    return [*places, *([split] if split else [])]


HEADS = {"official": 1, "percentile": 0, "min": 1, "median": 1, "max": 1, "80 % power": 0}  # column -> digits
PLACES = (
    "Draw 0 is the official list of a data set that has one, else a draw as any. "
    "min, median, max: of the {} other draws, each the mean over its seeds. percentile: how many of 100 of "
    "them are below the official one, equal ones by half."
)


def _others(means: Iterable[Means]) -> str:
    """How many draws methods have beside the official one."""
    counts = sorted({len(set(of) - {0}) for of in means})
    return " to ".join(map(str, counts[:: max(1, len(counts) - 1)]))


def _places(comparable: ComparableCells, known: TableStatistics, dataset: str, published: Published) -> Table | None:
    labels = trained_labels(comparable, dataset, published)
    if not labels:
        return None
    means = {label: means_by_draw(comparable, label, dataset) for label in comparable.labels_of([dataset])}
    means = {label: of for label, of in means.items() if of}
    rows = [Row(comparable.naming.method(label), (*_place_cells(means[label]), Cell(reason="-")), (("method", label),)) for label in labels]
    for a, b in pairs_of(labels, means, comparable.against, comparable.sign):
        if not known.same_files(a, b, dataset):
            continue
        cells = (*_place_cells(differences_by_draw(means[a], means[b])), _design_cell(known, dataset, a, b))
        rows.append(Row(f"{comparable.naming.method(a)} − {comparable.naming.method(b)}", cells, (("method", a), ("method", b))))
    columns = tuple(Column("", name, digits, about=dataset_of(dataset)) for name, digits in HEADS.items())
    notes = (*comparable.warnings, PLACES.format(_others(means[label] for label in labels)), _power_note(known, dataset), *comparable.notes)
    title = f"The official draw among others on {comparable.naming.dataset(dataset)}: {comparable.measured}, and differences in points"
    return Table(f"{comparable.name('draws')}_{dataset}", title, comparable.context, "method", columns, tuple(rows), notes)


def _place_cells(means: Means) -> tuple[Cell, ...]:
    place = Place.of(means)
    if not len(place.others):
        return Cell(place.official), *(Cell(),) * 4
    low, middle, high = np.quantile(place.others, (0, 0.5, 1))
    official = Cell(place.official, reason="not stored")
    return official, Cell(place.percentile), Cell(float(low)), Cell(float(middle)), Cell(float(high))


def _design_cell(known: TableStatistics, dataset: str, a: str, b: str) -> Cell:
    """Draws x seeds that tell a from b, if they differ as was found."""
    one, other = known.counts.get((a, dataset)), known.counts.get((b, dataset))
    spread = Spread.of(one, other) if one and other and one.images == other.images else None
    if spread is None:
        return Cell(reason="not known")
    found = spread.smallest(spread.images)
    return Cell(reason=f"{found.draws} × {found.seeds}" if found else f"> {MOST_DRAWS} draws")


def _power_note(known: TableStatistics, dataset: str) -> str:
    images = max((len(of.images) for (_, name), of in known.counts.items() if name == dataset), default=0)
    return (
        f"80 % power: draws × seeds of the fewest runs that tell the two apart at 5 % on the {images} test images, if they differ as was "
        "found, which is itself uncertain; `python -m bench.power A B` has other designs."
    )


def _split_table(comparable: ComparableCells, known: TableStatistics, published: Published) -> Table | None:
    """Components as rows; for every data set a standard deviation with its interval, and the share of a run's variance."""
    splits: dict[str, Split] = {}
    for dataset in comparable.datasets:
        labels = trained_labels(comparable, dataset, published)
        found = Split.of([known.counts[label, dataset] for label in labels if (label, dataset) in known.counts])
        splits |= {dataset: found} if found else {}
    if not splits:
        return None
    columns = [
        Column(comparable.naming.dataset(name), part, digits, about=dataset_of(name))
        for name in splits
        for part, digits in (("SD", 2), ("share %", 0))
    ]
    names = {DRAW: "draw, of all methods alike", METHOD_DRAW: METHOD_DRAW, SEED: "seed, within these", IMAGES: IMAGES}
    rows = [Row(said, tuple(cell for split in splits.values() for cell in _split_cells(split, name))) for name, said in names.items()]
    of = "; ".join(_of_runs(comparable.naming.dataset(name), split) for name, split in splits.items())
    notes = (*comparable.warnings, BRACKETS + OF_DEVIATIONS, SPLIT, f"Of {of}; all of them have these runs.", *comparable.notes)
    title = "What the variance of one run is made of: standard deviations in points"
    return Table(comparable.name("variance"), title, comparable.context, "component", tuple(columns), tuple(rows), notes)


def _of_runs(dataset: str, split: Split) -> str:
    return f"{dataset}: {counted(split.methods, 'method')}, {counted(split.draws, 'draw')} × {counted(split.seeds, 'seed')}"


OF_DEVIATIONS = "95 % interval of the standard deviation."
SPLIT = (
    "Test images: what as many other images would change of a method's mean, by the "
    "jackknife; a rough interval. What has one method, or one seed a draw, cannot be told apart from the row above, which has both."
)


def _split_cells(split: Split, name: str) -> tuple[Cell, Cell]:
    part = split.parts[name]
    if part is None:
        return Cell(reason="not told apart"), Cell()
    variance, found = part
    total = sum(of[0] for of in split.parts.values() if of)
    low, high = (float(np.sqrt(end)) for end in (found.low, found.high)) if found else (None, None)
    return Cell(float(np.sqrt(variance)), low=low, high=high), Cell(100 * variance / total if total else 0.0)
