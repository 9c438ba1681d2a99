"""What stored cells are worth elsewhere (`bench.reevaluate`): under other prompts and on damaged images, and on other data sets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from bench.grid.published import Published, ordered
from bench.reporting.comparable import ComparableCells, Position
from bench.reporting.statistics import Counts, Difference
from bench.reporting.table import Cell, Column, Row, Table
from bench.reporting.table_statistics import TableStatistics, interval_notes, scope, table_statistics

CLEAN = "clean"
PROMPTS = ("box", "point", "points", "mask", "none", "boxes_from")
RUN = ["label", "dataset", "draw", "seed"]
PER_METHOD = (
    "Δ: difference in points on the same images, draws and seeds, with its interval at the level that Holm's correction leaves, of one run "
    "at 95 % over its images alone"
)
ROBUSTNESS = (
    "clean: each cell as it was stored. Every other column is what one thing changes: how test images are prompted, or how they are "
    f"damaged (level 1 to 5, as in ImageNet-C). {PER_METHOD}; corrected are the method's columns together; what is {{worse}} 0 is lost."
)
RETENTION = (
    "A row is the weights that were tuned on its data set, a column the data set they are tested on, with the prompts and images of the "
    f"stored cells. {PER_METHOD}; corrected is the column together; it is from {{zero}}, which nobody tuned."
)


def _with_conditions(comparable: ComparableCells) -> pd.DataFrame:
    """All cells with a column `condition`: CLEAN, or in what a re-evaluation differs from its parent but for the data set. What stands
    for the same run twice stands once, the stored cell first."""
    frame, again = comparable.frame, comparable.reevaluated
    own = {key: pair for key, *pair in zip(frame["key"], frame["evaluation_prompt"], frame["precision"], strict=True)}
    columns = ("parent", "evaluation_prompt", "corruption", "precision")
    named = [_condition(own[parent], *asked) for parent, *asked in zip(*(again[name] for name in columns), strict=True)]
    every = pd.concat([frame.assign(condition=CLEAN), again.assign(condition=named)])
    source = every["tuned_on"].where(every["trains"].astype(bool), "")
    return every.assign(source=source).drop_duplicates([*RUN, "condition", "source"])


def _condition(own: Sequence[str], prompt: str, corruption: str, precision: str) -> str:
    differs = (prompt if prompt != own[0] else "", corruption, precision if precision != own[1] else "")
    return " ".join(filter(None, differs)) or CLEAN


@dataclass(frozen=True)
class Robustness:
    """A data set's methods under every condition: the statistics' columns are the methods, and their rows the conditions."""

    dataset: str
    cells: ComparableCells
    known: TableStatistics
    labels: tuple[str, ...]
    conditions: tuple[str, ...]

    @classmethod
    def of(cls, comparable: ComparableCells, published: Published) -> "list[Robustness]":
        """One for each data set on which something else than CLEAN is stored; of what is trained, the cells that were tuned on it."""
        if not len(comparable.reevaluated):
            return []
        every, found = _with_conditions(comparable), []
        for dataset, frame in every[every["source"].isin(["", *comparable.datasets])].groupby("dataset"):
            here = frame[frame["source"].isin(["", dataset])]
            labels = ordered(set(here.loc[here["condition"] != CLEAN, "label"]), published)
            here = here[here["label"].isin(labels)]
            cells = comparable.of_frame(here.assign(dataset=here["label"], label=here["condition"]))
            conditions = sorted(set(here["condition"]), key=_order)
            if labels:
                known = table_statistics(cells, labels, averaged=False)
                found.append(cls(str(dataset), cells, known, tuple(labels), tuple(conditions)))
        return found

    def cell(self, label: str, condition: str) -> Cell:
        """A method's mean over runs, with its interval."""
        return self.known.with_interval(self.cells.cell(condition, label), condition, label)

    @property
    def by_scope(self) -> dict[Position, Counts]:
        """(method, data set) -> what intervals are over; a condition stands by itself where its runs are others than CLEAN's."""
        found: dict[Position, Counts] = {}
        for (condition, label), counts in self.known.counts.items():
            clean = self.known.counts.get((CLEAN, label), counts)
            found[label if scope(counts) == scope(clean) else f"{label}\t{condition}", self.dataset] = counts
        return found

    def drops(self, label: str) -> dict[str, Cell]:
        """Condition -> the difference from CLEAN."""
        found = self.known.compared([(condition, CLEAN) for condition in self.conditions if condition != CLEAN], label)
        return {pair[0]: _difference(of) for pair, of in found.items()}


def _difference(found: Difference) -> Cell:
    return Cell(found.value, n=found.runs, low=found.interval.low, high=found.interval.high)


def _order(condition: str) -> tuple[int, str, str]:
    """CLEAN first, then prompts, then corruptions by their levels."""
    family = family_of(condition)
    return (condition != CLEAN) + (family not in (CLEAN, "jitter", "prompts")), family, condition


def family_of(condition: str) -> str:
    """Which conditions differ in strength alone: "jitter", or a corruption's name; "prompts" are all others, and
    "combined" is what differs in several ways."""
    words = condition.split()
    last = words[-1].partition("(")[0].partition("=")[0]
    return "combined" if len(words) > 1 else "jitter" if "jitter=" in condition else "prompts" if last in PROMPTS else last


def robustness_table(comparable: ComparableCells, published: Published) -> Table:
    """Methods of each data set as rows; for every condition the mIoU and, but for CLEAN, its difference from that."""
    found, naming = Robustness.of(comparable, published), comparable.naming
    conditions = sorted({condition for of in found for condition in of.conditions}, key=_order)
    columns = [
        Column(name, part, signed=part == "Δ") for name in conditions for part in (comparable.quantity, "Δ") if (name, part) != (CLEAN, "Δ")
    ]
    rows = []
    for of in found:
        for label in of.labels:
            drops = of.drops(label)
            cells = {(name, comparable.quantity): of.cell(label, name) for name in conditions} | {
                (name, "Δ"): cell for name, cell in drops.items()
            }
            shown = tuple(cells.get((column.group, column.name), Cell()) for column in columns)
            rows.append(Row(f"{naming.dataset(of.dataset)}: {naming.method(label)}", shown, (("dataset", of.dataset), ("method", label))))
    counts = {place: counts for of in found for place, counts in of.by_scope.items()}
    said = ROBUSTNESS.format(worse="below" if comparable.sign > 0 else "above")
    notes = (*comparable.warnings, said, *interval_notes(counts, naming), *comparable.notes)
    title = f"Robustness: {comparable.measured} under other prompts and on damaged images"
    return Table(comparable.name("robustness"), title, comparable.context, "method", tuple(columns), tuple(rows), notes)


@dataclass(frozen=True)
class Retention:
    """Cells by what they were tuned on (rows: method and data set, or a method that trains nothing) and tested on (columns)."""

    cells: ComparableCells
    known: TableStatistics
    sources: Mapping[str, tuple[str, str]]  # row -> method and data set that was tuned on, in order
    zero: str  # the method that trains nothing; "" where none is stored
    datasets: tuple[str, ...]

    @classmethod
    def of(cls, comparable: ComparableCells, published: Published) -> "Retention | None":
        """None where no cell was tested elsewhere."""
        if not len(comparable.reevaluated):
            return None
        every = _with_conditions(comparable)
        frame = every[every["condition"] == CLEAN]
        away = frame[(frame["source"] != "") & (frame["source"] != frame["dataset"])]
        if away.empty:
            return None
        untrained = ordered(set(frame.loc[frame["source"] == "", "label"]), published)
        frame = frame[frame["label"].isin({*away["label"], *untrained[:1]})]
        named = frame.assign(row=[_row(label, source) for label, source in zip(frame["label"], frame["source"], strict=True)])
        pairs = dict(zip(named["row"], zip(named["label"], named["source"], strict=True), strict=True))
        labels = ordered({label for label, _ in pairs.values()}, published)
        order = sorted(pairs, key=lambda row: (pairs[row][1] != "", labels.index(pairs[row][0]), pairs[row][1]))
        datasets = tuple(sorted(set(frame["dataset"])))
        cells = comparable.of_frame(named.assign(label=named["row"]))
        known = table_statistics(cells, datasets, averaged=False)
        return cls(cells, known, {row: pairs[row] for row in order}, untrained[0] if untrained else "", datasets)

    def cell(self, row: str, dataset: str) -> Cell:
        """The mean over runs, with its interval."""
        return self.known.with_interval(self.cells.cell(row, dataset), row, dataset)

    def over_zero(self, dataset: str) -> dict[str, Cell]:
        """Row -> its difference from the method that trains nothing."""
        rows = [row for row in self.sources if row != self.zero] if self.zero else []
        return {pair[0]: _difference(of) for pair, of in self.known.compared([(row, self.zero) for row in rows], dataset).items()}

    def gains(self) -> dict[str, list[tuple[float, float]]]:
        """Method -> for each data set that it was tuned on, the gain there and the mean gain on the others, in points over zero-shot."""
        score = {(row, name): self.cells.cell(row, name).value for row in self.sources for name in self.datasets}
        found: dict[str, list[tuple[float, float]]] = {}
        for row, (label, source) in self.sources.items():
            over = {
                name: a - b
                for name in self.datasets
                if (a := score[row, name]) is not None and (b := score.get((self.zero, name))) is not None
            }
            others = [value for name, value in over.items() if name != source]
            if source in over and others:
                found.setdefault(label, []).append((over[source], float(np.mean(others))))
        return found


def _row(label: str, source: str) -> str:
    return f"{label}, tuned on {source}" if source else label


def retention_table(comparable: ComparableCells, published: Published) -> Table:
    """What was tuned on a row's data set, tested on each column's: the mIoU, and how much that is above zero-shot."""
    found, naming = Retention.of(comparable, published), comparable.naming
    if found is None:
        return Table("", "", (), "", (), ())
    parts = (comparable.quantity, "Δ") if found.zero else (comparable.quantity,)
    columns = tuple(
        Column(naming.dataset(name), part, signed=part == "Δ", about=(("dataset", name),)) for name in found.datasets for part in parts
    )
    over = {(row, name): cell for name in found.datasets for row, cell in found.over_zero(name).items()}
    rows = []
    for row, (label, source) in found.sources.items():
        each = [(found.cell(row, name), over.get((row, name), Cell()))[: len(parts)] for name in found.datasets]
        title = _row(naming.method(label), naming.dataset(source)) if source else f"{naming.method(label)}, zero-shot"
        rows.append(Row(title, tuple(cell for pair in each for cell in pair), (("method", label),)))
    note = RETENTION.format(zero=naming.method(found.zero) if found.zero else "zero-shot SAM, which is not stored")
    counts = {(found.sources[row], name): of for (row, name), of in found.known.counts.items()}
    said = {
        (f"{label}\ttuned on {naming.dataset(source)}" if source else label, name): of for ((label, source), name), of in counts.items()
    }
    notes = (*comparable.warnings, note, *interval_notes(said, naming), *comparable.notes)
    title = f"Retention: {comparable.measured} of what was tuned on one data set and is tested on others"
    return Table(comparable.name("retention"), title, comparable.context, "tuned on", columns, tuple(rows), notes)
