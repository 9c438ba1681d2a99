"""The kinds of tables that are made of a store, and their files.

One model of a table is filled from the store and rendered by each format. Cells of different protocols, backbones, weights or
shots never share a table, unless a pivot names them in its rows or columns.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from bench.errors import RequestError, unknown
from bench.grid.metrics import METRICS, USUAL, metric_of
from bench.grid.published import (
    PROTOCOL,
    PUBLISHED,
    Number,
    Published,
    by_family,
    family_of,
    has_numbers,
    in_the_papers_order,
    ordered,
    published_for,
    read_published,
)
from bench.grid.store import ResultStore, Snapshot
from bench.reporting.aggregates import aggregates_tables
from bench.reporting.comparable import CellQuery, ComparableCells, Position, comparable_cells, trained
from bench.reporting.comparisons import comparisons_table
from bench.reporting.draws import draws_tables
from bench.reporting.efficiency import efficiency_table, size_cells, sizes
from bench.reporting.formats import FORMATS, SUFFIX
from bench.reporting.labels import Labels, shots_in_words
from bench.reporting.pivot import PIVOTS, Pivot, pivot_tables
from bench.reporting.reevaluations import retention_table, robustness_table
from bench.reporting.table import Cell, Column, Row, Table, reduced, runs_once
from bench.reporting.table_statistics import AVERAGE, BEST, PAIRS, TableStatistics, dataset_of, interval_notes, some_of, table_statistics
from bench.reporting.tuning import tuned_pairs, tuning_table


@dataclass(frozen=True)
class PaperColumn:
    """A data set's column, or that of their average: ours by method, and by what it is scored. differs: see `_differs`."""

    group: str
    ours: Mapping[Position, Cell]
    scored: ComparableCells
    known: TableStatistics
    differs: str

    @property
    def title(self) -> str:
        """The data set's, with the metric where that is not the usual one."""
        metric, title = self.scored.metric, self.scored.naming.dataset(self.group)
        return title if metric == USUAL else f"{title}, {metric}{'' if self.scored.sign > 0 else ' (lower is better)'}"

    def cells(self, label: str, published: Published) -> tuple[Cell, Cell, Cell, Cell]:
        """Ours, the published number, Δ, and whether ours may be that."""
        ours = self.ours.get((label, self.group), Cell(reason="not run"))
        return _beside(ours, published.of(label, self.group), self.scored.metric, self.differs)


def paper_table(comparable: ComparableCells, published: Published) -> Table:
    """Methods as rows in the paper's order; for its data sets and their average: ours, the published number and Δ, each by the metric
    that was published, or else by the one that the data set names. Where nothing was published for these cells' number of shots, no
    number is shown."""
    stored = [name for name in (*published.datasets, *comparable.own_metrics) if name in comparable.datasets]
    datasets = (*published.averaged, *stored)
    shown = _paper_columns(comparable, published, tuple(dict.fromkeys(datasets)))
    parts = ("ours", "published", "Δ", "in 95 %") if any(of.known.counts for of in shown) else ("ours", "published", "Δ")
    columns = tuple(Column(of.title, name, signed=name == "Δ", about=dataset_of(of.group)) for of in shown for name in parts)
    rows = []
    for label in in_the_papers_order(comparable.labels_of(datasets), published):
        cells = tuple(cell for of in shown for cell in of.cells(label, published)[: len(parts)])
        rows.append(Row(comparable.naming.method(label), cells, (("method", label),)))
    notes = (
        *comparable.warnings,
        *_cannot_say(comparable, datasets),
        *_published_notes(comparable, published, datasets),
        *(f"{metric}: {metric_of(metric).in_words}" for metric in dict.fromkeys(of.scored.metric for of in shown) if metric != USUAL),
        *(note for of in shown for note in _statistics_notes(of.known, comparable.naming)),
        *(note for of in shown for note in of.scored.notes),
    )
    title = f"{comparable.in_title}: ours, published, and Δ = ours - published"
    return Table(comparable.name("paper"), title, comparable.context, "method", columns, tuple(rows), tuple(dict.fromkeys(notes)))


def _paper_columns(comparable: ComparableCells, published: Published, datasets: Sequence[str]) -> list[PaperColumn]:
    """Those that the published average is over first, with it where they have one metric; methods are compared within a metric."""
    found = []
    for together in (True, False):
        names = [name for name in datasets if (name in published.averaged) == together]
        own = {**comparable.own_metrics, **{name: published.metric(name) for name in published.datasets}}
        metrics = {name: own.get(name, USUAL) if comparable.metric == USUAL else comparable.metric for name in names}
        for metric in dict.fromkeys(metrics.values()):
            mine = [name for name in names if metrics[name] == metric]
            averaged = together and mine == names
            scored = comparable if metric == comparable.metric else comparable.scored_by(metric, mine)
            known = table_statistics(scored, mine, averaged)
            groups = (*mine, AVERAGE) if averaged else tuple(mine)
            ours = _scored(scored, known, mine, groups)
            for group in groups:
                found.append(
                    PaperColumn(group, ours, scored, known, _differs(comparable, published, mine if group == AVERAGE else [group]))
                )
    return found


def _differs(comparable: ComparableCells, published: Published, datasets: Sequence[str]) -> str:
    """In two words in what ours are no repetition of the published numbers of these data sets, so that no Δ means anything."""
    (backbone, protocol, *_), frame = comparable.identity, comparable.frame
    generated = len(frame) and frame.loc[frame["dataset"].isin(list(datasets)), "generated"].any()
    differences = {
        "stand-in images": generated,
        "other backbone": backbone.replace("_", "-").lower() not in published.source.lower(),
        "other protocol": protocol != PROTOCOL,
        "other rule": comparable.rule != "all",  # the published numbers count images without objects too
    }
    return next((words for words, differs in differences.items() if differs), "")


def _beside(ours: Cell, theirs: Number | None, metric: str, differs: str) -> tuple[Cell, Cell, Cell, Cell]:
    """Ours, the published number, their difference or why there is none, and where the number lies in our interval."""
    if theirs is None:
        return ours, Cell(), Cell(), Cell()
    differs = theirs.differs or (f"{theirs.metric}, not {metric}" if theirs.metric != metric else differs)
    if differs or ours.value is None:
        return ours, Cell(theirs.value), Cell(reason=differs), Cell()
    return ours, Cell(theirs.value), Cell(ours.value - theirs.value), Cell(reason=_inside(ours, theirs.value))


def _inside(ours: Cell, theirs: float) -> str:
    if ours.low is None or ours.high is None:
        return "-"
    return "inside" if ours.low <= theirs <= ours.high else "above ours" if theirs > ours.high else "below ours"


def _scored(comparable: ComparableCells, known: TableStatistics, datasets: Sequence[str], groups: Sequence[str]) -> dict[Position, Cell]:
    """(label, group) -> ours with its interval, and with its mark among the group's."""
    scored = {}
    for group in groups:
        of = {
            label: known.with_interval(
                comparable.average(label, datasets) if group == AVERAGE else comparable.cell(label, group), label, group
            )
            for label in comparable.labels_of(datasets)
        }
        marks = known.marks({label: cell.value for label, cell in of.items() if cell.value is not None}, group)
        scored.update({(label, group): replace(cell, mark=marks.get(label, "")) for label, cell in of.items()})
    return scored


def _statistics_notes(known: TableStatistics, naming: Labels) -> tuple[str, ...]:
    if not known.counts:
        return ()
    images = ", ".join(
        f"{naming.dataset(name)} {len(of.images)}" for name, of in sorted({name: of for (_, name), of in known.counts.items()}.items())
    )
    return (
        *interval_notes(known.counts, naming),
        "Bold: ahead of every other method of the column; underlined: of all but the bold one. Both by paired differences on the same "
        "images, draws and seeds (p < 0.05 after Holm's correction for those behind), which brackets that overlap do not show.",
        f"Test images: {images}.",
        *_without_interval(known.lacks(), naming),
    )


def _without_interval(lacks: Mapping[Position, str], naming: Labels) -> Iterator[str]:
    for why in dict.fromkeys(lacks.values()):
        yield f"No interval: {some_of([naming.place(*place) for place, said in lacks.items() if said == why])}: {why}."


def _cannot_say(comparable: ComparableCells, datasets: Sequence[str]) -> tuple[str, ...]:
    """One line: what the stored cells of these data sets leave open."""
    frame = comparable.frame
    tuned = frame[trained(frame) & frame["trains"].astype(bool) & frame["dataset"].isin(list(datasets))] if len(frame) else frame
    if not len(tuned):
        return ()
    places = pd.Series(list(map(comparable.naming.place, tuned["label"], tuned["dataset"])), index=tuned.index)
    said, names = [], tuned["label"].map(comparable.naming.method)
    for column, what in (("seed", "how other seeds do (one each"), ("draw", "how other draws of the shots do (one each")):
        runs = tuned.groupby(places)[column].nunique()
        said += [f"{what}{_of(runs.index[runs == 1], runs.index)})"] if (runs == 1).any() else []
    untuned = names[tuned.get("trials", pd.Series(0, index=tuned.index)) == 0]
    said += [f"how methods do whose rates were searched for alike (untuned{_of(untuned, names)})"] if len(untuned) else []
    said += [f"how they do on images that chose nothing ({_best_of(tuned)})"] if comparable.selection == "best" else []
    return (f"What this table cannot say: {'; '.join(said)}.",) if said else ()


def _of(some: Iterable[str], whole: Iterable[str]) -> str:
    """Of which, where it is not of all."""
    named = sorted(set(some))
    return f": {some_of(named)}" if len(named) < len(set(whole)) else ""


def _best_of(tuned: pd.DataFrame) -> str:
    """How many evaluations of the test images the best is of: half of those that were made, where validation had the others."""
    looks = tuned.get("cost.looks", pd.Series(math.nan, index=tuned.index))
    halved = tuned.get("val.miou_all", pd.Series(math.nan, index=tuned.index)).notna()
    most = (looks / (1 + halved)).max()
    return f"best of {'several' if math.isnan(most) else f'{most:.0f}'} evaluations of the test images"


def _published_notes(comparable: ComparableCells, published: Published, datasets: Sequence[str]) -> tuple[str, ...]:
    if not has_numbers(comparable.identity[2]):
        return (f"No numbers were published for {shots_in_words(comparable.identity[2])}.",)
    same = f"Δ stands under the protocol {PROTOCOL} and the rule all, on the published backbone."
    said = (f"Published: {published.source}.", *published.notes(datasets, comparable.naming.dataset))
    return (*said, same) if _differs(comparable, published, ()) else said


def plain_table(comparable: ComparableCells, published: Published) -> Table:
    """Methods as rows; trainable parameters and their share, every data set, and the average where there are several."""
    datasets = comparable.datasets
    groups = (*datasets, AVERAGE) if len(datasets) > 1 else tuple(datasets)
    columns = (
        Column("", "trainable", digits=0),
        Column("", "share %", digits=2),
        *(Column("", comparable.naming.dataset(name), about=dataset_of(name)) for name in groups),
    )
    known = table_statistics(comparable, datasets, averaged=len(datasets) > 1)
    parameters, ours = sizes(comparable.frame), _scored(comparable, known, datasets, groups)
    rows = [
        Row(
            comparable.naming.method(label),
            (*size_cells(parameters.get(label, set())), *(ours[label, group] for group in groups)),
            (("method", label),),
        )
        for label in ordered(comparable.labels_of(datasets), published)
    ]
    notes = (*comparable.warnings, *_statistics_notes(known, comparable.naming), *comparable.notes)
    return Table(comparable.name("plain"), comparable.in_title, comparable.context, "method", columns, tuple(rows), notes)


LIKE: Mapping[str, Callable[[ComparableCells, Published], Table]] = {
    "paper": paper_table,
    "plain": lambda comparable, published: with_families(plain_table(comparable, published), published),
    "comparisons": comparisons_table,
    "efficiency": lambda comparable, published: with_families(efficiency_table(comparable, published), published),
    "robustness": robustness_table,
    "retention": retention_table,
}
SEVERAL: Mapping[str, Callable[[ComparableCells, Published], list[Table]]] = {"draws": draws_tables, "aggregates": aggregates_tables}
NEEDS = {  # what a kind has nothing to show without
    "comparisons": "at least two methods with rows by image on a data set",
    "draws": "a method with two draws, or more, beside the official one (`python -m bench.run --draws 0:10`)",
    "aggregates": "two tuned methods or more with the same draws or seeds, at least two of them, on every data set",
}


AGAIN = {"robustness": "with other prompts or on damaged images", "retention": "on other data sets than they were tuned on"}
READING = "Mean ± standard deviation over the n draws and seeds (one where no n is given)"


def _reading(metric: str | None) -> str:
    """How to read a cell; None: by the usual metric, or by each column's."""
    return f"{READING}; mIoU is pooled over all test pixels." if metric in (None, USUAL) else f"{READING}. {metric_of(metric).definition}."


def tables(store: ResultStore, query: CellQuery, like: str = "plain", telling: bool = False) -> list[Table]:
    """The tables that a kind (`LIKE`, `SEVERAL`, `PIVOTS` or "all") makes of the store; RequestError where there is nothing to show.
    telling: leaves pivots out that show the numbers of another table once more."""
    if like == "all":
        return _all_kinds(store, query, telling)
    if like in PIVOTS:
        return pivoted(store, query, PIVOTS[like].by(query.metric or USUAL), telling)
    if like in ACROSS:
        return ACROSS[like](store, query)
    reference = read_published(PUBLISHED["1"])
    found = comparable_cells(store, query)
    labels = {label for comparable in found for label in comparable.labels_of(comparable.datasets)}
    named = [label for label in labels if query.against in (label, label.partition("(")[0])]
    if len(named) == 1:  # its parameters may be left out
        found = [replace(comparable, against=named[0]) for comparable in found]
    elif query.against not in (BEST, PAIRS, *labels):
        raise unknown("method to compare with", query.against, (BEST, PAIRS, *sorted(labels)))
    made = [table for comparable in found for table in _made(like, comparable, published_for(comparable.identity[2]))]
    reading = (_reading(query.metric),) if like in ("paper", "plain", "robustness", "retention") else ()
    shown = [replace(table, notes=(*reading, *table.notes)) for table in made if table.rows]
    if not shown and like == "paper":
        raise RequestError(f"No cell is of the data sets {', '.join(reference.datasets)}, which --like {like} is about: leave it out.")
    if not shown and like in AGAIN:
        raise RequestError(f"Nothing to show: --like {like} needs cells that `python -m bench.reevaluate` asked once more: {AGAIN[like]}.")
    if not shown:
        raise RequestError(f"Nothing to show: --like {like} needs {NEEDS.get(like, 'a stored cell')}.")
    return shown


def with_families(table: Table, published: Published) -> Table:
    """The table with a first column for the families of its methods, where its rows stand family by family."""
    labels = [dict(row.about).get("method", "") for row in table.rows]
    if not by_family(labels, published):
        return table
    rows = (replace(row, cells=(Cell(reason=family_of(label) or "-"), *row.cells)) for row, label in zip(table.rows, labels, strict=True))
    return replace(table, columns=(Column("", "family"), *table.columns), rows=tuple(rows))


def _made(like: str, comparable: ComparableCells, published: Published) -> list[Table]:
    return SEVERAL[like](comparable, published) if like in SEVERAL else [LIKE[like](comparable, published)]


def _all_kinds(store: ResultStore, query: CellQuery, telling: bool) -> list[Table]:
    """The tables of every kind that has something to show."""
    made: list[Table] = []
    store = store if isinstance(store, Snapshot) else Snapshot(*store.roots)
    for kind in KINDS:
        try:
            made += tables(store, query, kind, telling)
        except RequestError:
            if kind == next(iter(PIVOTS)) and not made:  # a pivot always shows something, if anything is there
                raise
    return made


def pivoted(store: ResultStore, query: CellQuery, pivot: Pivot, telling: bool = False) -> list[Table]:
    """A pivot's tables, its methods named as published."""
    made = pivot_tables(store, query, pivot, read_published(PUBLISHED["1"]), telling)
    return [replace(table, notes=(_reading(pivot.metric if pivot.metric in METRICS else None), *table.notes)) for table in made]


def tuning_tables(store: ResultStore, query: CellQuery) -> list[Table]:
    """Untuned beside tuned, of every protocol that has both; RequestError where none has."""
    pairs = tuned_pairs(comparable_cells(store, replace(query, protocol=None)))
    asked = [pair for pair in pairs if query.protocol in (None, pair.both.identity[1], pair.tuned.identity[1])]
    if not asked:
        raise RequestError(
            'Nothing to show: --like tuning needs cells of a protocol and of the same with tuned rates, as "clean(tuned=…)".'
        )
    return [
        replace(table, notes=(_reading(query.metric), *table.notes))
        for pair in asked
        if (table := tuning_table(pair, published_for(pair.both.identity[2])))
    ]


# What is made of several groups of comparable cells.
ACROSS: Mapping[str, Callable[[ResultStore, CellQuery], list[Table]]] = {"tuning": tuning_tables}
KINDS = (*LIKE, *SEVERAL, *PIVOTS, *ACROSS)


def print_and_write(made: Iterable[Table], formats: Sequence[str], folder: Path, intervals: bool = True, runs: bool = True) -> None:
    """Shows tables and writes `<folder>/<name>.<format>` for each format; a CSV has everything, also where the others leave it out."""
    from bench.reporting.terminal import show  # a page needs none of it

    folder.mkdir(parents=True, exist_ok=True)
    for table in made:
        shown = runs_once(reduced(table, intervals, runs))
        for name in formats:
            text = FORMATS[name](table if name == "csv" else shown)
            (folder / f"{table.name}.{SUFFIX.get(name, name)}").write_text(text, encoding="utf-8")
        show(shown)
