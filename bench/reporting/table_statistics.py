"""What per-image rows say: every value's interval, and methods compared on the same images and units (`bench.reporting.statistics`)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from bench.grid.metrics import METRICS, OF_ALL, USUAL, Terms, under_rule, worth_of_empty
from bench.grid.rows import image_rows, lacks
from bench.reporting.comparable import FILES, ComparableCells, Position
from bench.reporting.labels import Labels
from bench.reporting.statistics import Column, Counts, Difference, Interval, Pair, Run, averaged, differences, effect_size
from bench.reporting.table import BRACKETS, Cell, Facts, Mark

T = TypeVar("T")
AVERAGE = "average"
BEST, PAIRS = "best", "pairs"  # what methods are compared with, if not with one of them
FEW_IMAGES = 20
Rows = tuple[list[str], np.ndarray]  # images, and (images, 2), an intersection and a union for each
ONE_RUN = "test images of this one run alone"


@dataclass(frozen=True)
class Comparison:
    """Two methods of a column; its p and interval are corrected for all that are compared with it in this column."""

    column: str
    a: str
    b: str
    difference: Difference


@dataclass(frozen=True)
class TableStatistics:
    """A table's counts by (label, data set), or why they are lacking, and what follows from them. files: the fingerprints of what the
    runs were tested on, where they are known; methods are compared on the same files alone. sign: -1 where less is better."""

    counts: Mapping[Position, Counts]
    datasets: tuple[str, ...]
    averaged: bool
    lacking: Mapping[Position, str] = field(default_factory=dict)
    files: Mapping[Position, str] = field(default_factory=dict)
    sign: int = 1
    made: dict[tuple[object, ...], Any] = field(default_factory=dict, compare=False)  # of any data sets of the same cells, kept

    def with_interval(self, cell: Cell, label: str, column: str) -> Cell:
        """The cell with its interval, cut at 0 and 100, and number of images, if it has a value and its images are known."""
        found = self.column(column).methods.get(label)
        return cell if cell.value is None or found is None else bracketed(cell, self.interval(label, column), found.images)

    def interval(self, label: str, column: str) -> Interval | None:
        """The 95 % interval of a method on a data set, or of its average; None where it is not defined."""
        methods = self.column(column)
        return self._once(column, label, lambda: methods.mean(label).interval() if label in methods.methods else None)

    def marks(self, values: Mapping[str, float], column: str) -> dict[str, Mark]:
        """label -> "best" or "second" of a column's values: who is told apart from all that are behind, and who is so after the best."""
        ranked = sorted(values, key=lambda label: -self.sign * values[label])
        marks: dict[str, Mark] = {}
        kinds: tuple[Mark, Mark] = ("best", "second")
        for mark, label, behind in zip(kinds, ranked, (ranked[1:], ranked[2:]), strict=False):
            found = self.compared([(label, other) for other in behind], column).values()
            if not behind or len(found) < len(behind) or not all(of.significant and self.sign * of.value > 0 for of in found):
                break
            marks[label] = mark
        return marks

    def comparisons(self, against: str = BEST) -> tuple[Comparison, ...]:
        """Column by column: all methods with the column's best, or with one of them (a label), or all pairs."""
        found = []
        for column in self.columns:
            labels = sorted(self.column(column).methods)
            pairs = list(combinations(labels, 2))
            if against != PAIRS:
                values = {label: float(self.column(column).methods[label].value) for label in labels}
                one = max(labels, key=lambda label: self.sign * values[label], default="") if against == BEST else against
                pairs = [(label, one) for label in labels if label != one and one in values]
            found += [Comparison(column, *pair, difference) for pair, difference in self.compared(pairs, column).items()]
        return tuple(found)

    def compared(self, pairs: Sequence[tuple[str, str]], column: str) -> dict[tuple[str, str], Difference]:
        """Pairs of a column, corrected together; those with no run in common or with other images are left out."""
        return self._once(column, tuple(pairs), lambda: self._compared(pairs, column))

    def _compared(self, pairs: Sequence[tuple[str, str]], column: str) -> dict[tuple[str, str], Difference]:
        asked = {pair: found for pair in pairs if (found := self._pair(*pair, column))}
        return dict(zip(asked, differences(list(asked.values())), strict=True))

    def lacks(self) -> dict[Position, str]:
        """Why values have no interval, averages too."""
        labels = {label for label, _ in self.counts} if self.averaged else set()
        apart = [label for label in sorted(labels) if self._counts(label, AVERAGE) and label not in self.column(AVERAGE).methods]
        return {**self.lacking, **{(label, AVERAGE): "its data sets have different draws or seeds" for label in apart}}

    @property
    def columns(self) -> list[str]:
        """The data sets, and the average where there is one."""
        return [*self.datasets, *([AVERAGE] if self.averaged else [])]

    def column(self, name: str) -> Column:
        """The methods whose counts are known on a data set, or on all that an average is over."""
        return self._once(name, None, lambda: self._column(name))

    def _column(self, name: str) -> Column:
        labels = {label for label, _ in self.counts}
        whole = {label: counts for label in sorted(labels) if (counts := self._counts(label, name))}
        found = {label: averaged([part.pooled for part in counts]) for label, counts in whole.items()}
        return Column({label: pooled for label, pooled in found.items() if pooled is not None})

    def _once(self, column: str, what: object, make: Callable[[], T]) -> T:
        """What is made of a column, made when it is asked for first."""
        key = (column, self.datasets if column == AVERAGE else column in self.datasets, what)
        if key not in self.made:
            self.made[key] = make()
        found: T = self.made[key]
        return found

    def _counts(self, label: str, column: str) -> list[Counts] | None:
        found = [self.counts.get((label, name)) for name in (self.datasets if column == AVERAGE else [column])]
        return None if None in found or not found else [counts for counts in found if counts is not None]

    def _pair(self, a: str, b: str, column: str) -> Pair | None:
        """Two methods by the column's model where they have the same units, else by themselves on the runs that both have."""
        one, other = self._counts(a, column), self._counts(b, column)
        if not one or not other or not self.same_files(a, b, column) or any(x.images != y.images for x, y in zip(one, other, strict=True)):
            return None
        trained = [part for part in (*one, *other) if part.trains]
        common = [run for run in trained[0].runs if all(run in part.runs for part in trained)] if trained else []
        if trained and not common:
            return None
        whole = self.column(column)
        if not whole.comparable(a, b):
            one, other = ([part.of_runs(common) if part.trains else part for part in side] for side in (one, other))
            sides = {name: averaged([part.pooled for part in side]) for name, side in ((a, one), (b, other))}
            whole = Column({name: pooled for name, pooled in sides.items() if pooled})
        effect = float(np.mean([effect_size(x, y) for x, y in zip(one, other, strict=True)]))
        return Pair(whole.difference(a, b), whole.tells(a, b), effect, max(1, len(common)), sum(len(part.images) for part in one))

    def same_files(self, a: str, b: str, column: str) -> bool:
        """Whether nothing says that two methods were tested on different files."""
        names = self.datasets if column == AVERAGE else [column]
        files = [{self.files[label, name] for label in (a, b) if (label, name) in self.files} for name in names]
        return all(len(of_dataset) < 2 for of_dataset in files)


def bracketed(cell: Cell, found: Interval | None, images: int) -> Cell:
    """A cell with its interval, cut at 0 and 100, and the images behind it."""
    ends = (max(0.0, found.low), min(100.0, found.high)) if found else (None, None)
    return replace(cell, low=ends[0], high=ends[1], images=images)


def dataset_of(column: str) -> Facts:
    """What a page can filter a column by: its data set, where it is not the average of all."""
    return () if column == AVERAGE else (("dataset", column),)


def scope(counts: Counts) -> str:
    """Over what an interval from these runs generalises."""
    if not counts.trains:
        return "test images, as nothing is trained"
    if len({draw for draw, _ in counts.runs}) > 1:
        return "draws of the shots, each with its seeds, and test images"
    return "seeds and test images, for this one draw of the shots" if len(counts.runs) > 1 else ONE_RUN


def interval_notes(counts: Mapping[Position, Counts], naming: Labels) -> tuple[str, ...]:
    """Over what a table's intervals generalise, what one run cannot tell, and which data sets have few images."""
    scopes: dict[str, set[str]] = {}  # of each method
    for (label, _), of in counts.items():
        scopes.setdefault(label, set()).add(scope(of))
    over: dict[str, list[str]] = {}
    for (label, dataset), of in counts.items():
        said = naming.method(label) if len(scopes[label]) == 1 else naming.place(label, dataset)
        over.setdefault(scope(of), []).append(said)
    if not over:
        return ()
    usual, *others = sorted(over, key=lambda text: -len(over[text]))
    once = {text: list(dict.fromkeys(places)) for text, places in over.items()}
    told = "".join(f"; of {some_of(once[text])} over {text}" for text in others)
    notes = [f"{BRACKETS}95 % interval over {usual}{told}."]
    if ONE_RUN in over:
        who = "no method here is marked or" if len(over) == 1 else f"those with one, {some_of(once[ONE_RUN])}, are neither marked nor"
        notes.append(f"One run cannot tell methods apart, for another seed may turn them round: {who} tested.")
    few = {dataset: len(of.images) for (_, dataset), of in sorted(counts.items()) if len(of.images) < FEW_IMAGES}
    if few:
        said = ", ".join(f"{naming.dataset(dataset)} has {images}" for dataset, images in few.items())
        notes.append(f"Fewer than {FEW_IMAGES} test images say little of others, and intervals from them are rough: {said}.")
    return tuple(notes)


def some_of(places: Sequence[str], most: int = 4) -> str:
    """The first of them, and how many there are more."""
    rest = f" and {len(places) - most} more" if len(places) > most else ""
    return ", ".join(places[:most]) + rest


def table_statistics(comparable: ComparableCells, datasets: Sequence[str], averaged: bool) -> TableStatistics:
    """The statistics of the stored cells on these data sets; a cell without readable rows by image has none."""
    made, runs = comparable.statistics, _runs(comparable)
    for place in runs.keys() - made.keys():
        if place[1] in datasets:
            made[place] = _tested(comparable, place[1], runs[place])
    found: dict[Position, tuple[Counts | str, set[str]]] = {place: made[place] for place in runs if place[1] in datasets}
    counts = {place: of for place, (of, _) in found.items() if isinstance(of, Counts)}
    lacking = {place: of for place, (of, _) in found.items() if isinstance(of, str) and of}
    files = {place: next(iter(known)) for place, (_, known) in found.items() if len(known) == 1}
    return TableStatistics(counts, tuple(datasets), averaged, lacking, files, comparable.sign, made)


def _runs(comparable: ComparableCells) -> dict[Position, list[tuple[Any, ...]]]:
    """The stored runs of every method on every data set, in order: draw, seed, folder, whether it trains, and its files' fingerprint."""
    frame = comparable.frame
    found: dict[Position, list[tuple[Any, ...]]] = {}
    columns = ("label", "dataset", "draw", "seed", "path", "trains")
    rows = zip(*(frame[name] for name in columns), frame.get(FILES, [None] * len(frame)), strict=True) if len(frame) else ()
    for label, dataset, *run in sorted(rows, key=lambda row: row[:4]):
        found.setdefault((str(label), str(dataset)), []).append(tuple(run))
    return found


def _tested(comparable: ComparableCells, dataset: str, runs: Sequence[Any]) -> tuple[Counts | str, set[str]]:
    """The counts of runs or why there are none, and the fingerprints of what they were tested on."""
    known = {files for *_, files in runs if isinstance(files, str)}
    if len(known) > 1:
        return "its runs were tested on different data files", known
    folders = [((int(draw), int(seed)), Path(path)) for draw, seed, path, *_ in runs]
    trains = any(of[3] for of in runs)
    return counts_of(dataset, folders, comparable.selection, comparable.rule, trains, comparable.metric), known


def counts_of(dataset: str, runs: Sequence[tuple[Run, Path]], selection: str, rule: str, trains: bool, metric: str = USUAL) -> Counts | str:
    """The counts of a method's runs on a data set, or why there are none: they need the same test images, two of them with pixels. "" where
    the rows lack what the metric needs, so that there is no score either."""
    if METRICS[metric].terms is None:
        return f"{metric} {OF_ALL}"
    tables = [read_rows(folder, selection, rule, metric) for _, folder in runs]
    unread = [folder for (_, folder), table in zip(runs, tables, strict=True) if table is None or not table[0]]
    if any(lacks(folder, selection, metric) for folder in unread):
        return ""
    if unread:
        return f"the rows by image of {'/'.join(unread[0].parts[-3:])} are absent or damaged"
    if (found := same_images(tables)) is None:
        return "its runs were tested on different images"
    images, pixels = found
    names = tuple(f"{dataset}/{name}" for name in images)
    counts = Counts(tuple(run for run, _ in runs), names, pixels[:, :, 0], pixels[:, :, 1], trains)
    return counts.lack or counts


def same_images(tables: Sequence[Rows | None]) -> tuple[tuple[str, ...], np.ndarray] | None:
    """The images, and their pixels (runs, images, 2), of runs' rows as `read_rows` gives them; None unless all have rows for the same."""
    read = [table for table in tables if table and table[0]]
    if not read or len(read) < len(tables) or any(images != read[0][0] for images, _ in read):
        return None
    return tuple(read[0][0]), np.stack([pixels for _, pixels in read]).astype(float)


def read_rows(folder: Path, selection: str, rule: str, metric: str = USUAL) -> Rows | None:
    """The images by name, and of each part and whole of the ratio that a metric is (intersection and union in pixels) as a rule counts
    them; of the mean of several ratios what stands for it (see `linear_parts`). None where the file is absent or damaged; no images where
    it lacks what the metric needs."""
    if (found := image_rows(folder)) is None:
        return None
    of = METRICS[metric]
    if selection not in found or of.terms is None or of.lacks(counted := under_rule(found[selection], rule)):
        return [], np.empty((0, 2))
    order = sorted(range(len(counted.name)), key=counted.name.__getitem__)
    return [counted.name[i] for i in order], linear_parts(of.terms(counted, worth_of_empty(rule)), len(order))[order]


def linear_parts(terms: Terms, images: int) -> np.ndarray:
    """Parts and wholes (images, 2) whose pooled ratio is the mean of the terms' pooled ratios, and on which every image has the same
    influence: of one ratio its own; else each image's share of the mean, with a whole of 1, as the infinitesimal jackknife has it. No image
    has a whole where one of the ratios is of a single image, for nothing is known of how that varies."""
    if len(terms) == 1:
        return np.stack(next(iter(terms.values())), axis=1).astype(float)
    parts = np.array([np.stack(of, axis=1) for of in terms.values()], float).reshape(len(terms), images, 2).swapaxes(0, 1)
    having = np.count_nonzero(parts[:, :, 1], axis=0)
    if (having == 1).any():
        return np.zeros((images, 2))
    parts = parts[:, having > 0]
    sums = parts.sum(axis=0)  # (ratios, 2)
    ratios = sums[:, 0] / sums[:, 1]
    share = ratios + images * (parts[:, :, 0] - ratios * parts[:, :, 1]) / sums[:, 1]
    return np.stack([share.mean(axis=1) if len(ratios) else np.zeros(images), np.full(images, float(len(ratios) > 0))], axis=1)
