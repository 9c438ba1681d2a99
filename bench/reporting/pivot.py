"""Tables with any of a cell's fields as rows and columns; what stands in neither parts the tables, so nothing is ever mixed."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import pandas as pd

from bench.errors import RequestError, unknown
from bench.grid.metrics import METRICS, RULES, USUAL
from bench.grid.protocol import SELECTIONS
from bench.grid.published import Published, ordered
from bench.grid.spec import split_calls
from bench.grid.store import ResultStore
from bench.reporting.comparable import CellQuery, ComparableCells, Gap, Position, Run, comparable_cells, file_name, values_of
from bench.reporting.labels import Labels
from bench.reporting.statistics import Column as Methods
from bench.reporting.statistics import Counts, Interval
from bench.reporting.sweeps import best_in_words
from bench.reporting.table import Cell, Column, Facts, Row, Table
from bench.reporting.table_statistics import bracketed, counts_of, interval_notes

FIELDS = ("backbone", "checkpoint", "protocol", "shots", "dataset", "label", "selection", "rule")
RUN = ("draw", "seed")  # averaged over, where a pivot does not show them
PARAMETER, LR = "parameter.", "lr"  # columns of what a sweep may change
ALSO = {"method": "label", "weights": "checkpoint"}
Known = Mapping[tuple[str, ...], tuple[Counts, Interval]]


@dataclass(frozen=True)
class Pivot:
    """What a pivot shows: fields as rows and columns, and a score's name (`miou`, `dice`, `mean_image_iou`) or a record's column.

    Fields are FIELDS, RUN, and what a sweep changed: a parameter of methods (rank) or the learning rate (lr), which then is no part of
    the method's or the protocol's name.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    metric: str = USUAL
    title: str = ""

    @classmethod
    def of(cls, rows: str, columns: str, metric: str) -> "Pivot":
        """From comma-separated names; RequestError for a repeated field."""
        down, across = _names(rows), _names(columns)
        if len({*down, *across}) < len(down) + len(across) or not down or not across:
            raise RequestError("A pivot needs at least one field for its rows and one for its columns, each named once.")
        return cls(down, across, metric, f" by {_listed(down)} and {_listed(across)}")

    def by(self, metric: str) -> "Pivot":
        """The same of another metric."""
        return replace(self, metric=metric)

    @property
    def heading(self) -> str:
        """A table's title."""
        of = METRICS[self.metric].title if self.metric in METRICS else ""
        return f"{of[0].upper()}{of[1:]}{self.title}" if of else f"{self.metric}{self.title}"

    @property
    def swept(self) -> tuple[str, ...]:
        """The fields that only some cells have."""
        return tuple(name for name in (*self.rows, *self.columns) if name not in (*FIELDS, *RUN))


PIVOTS: Mapping[str, Pivot] = {
    "shots": Pivot(("label",), ("dataset", "shots"), title=" by number of shots"),
    "selections": Pivot(("label",), ("dataset", "selection"), title=" by selection rule"),
    "rules": Pivot(("label",), ("dataset", "rule"), title=" by what images without objects count"),
}


@dataclass(frozen=True)
class Entry:
    """One number of one cell, or the gap where it should be; `at` has a value for each of FIELDS and RUN."""

    at: Mapping[str, str]
    run: Run
    value: float = math.nan
    gap: Gap | None = None
    folder: str = ""
    trains: bool = True


def pivot_tables(store: ResultStore, query: CellQuery, pivot: Pivot, published: Published, telling: bool = False) -> list[Table]:
    """The pivot's tables, one for each combination of the fields that it does not show; methods are named as published. telling: only
    those that `says_more` is true of.

    RequestError where there is no cell, or a field or the metric is in no record.
    """
    comparables = comparable_cells(store, replace(query, metric=pivot.metric if pivot.metric in METRICS else None))
    selections = {of.selection for of in comparables if len(of.frame)}
    if len(selections) == 1:  # where nothing is stored yet, what is asked for will have the same
        comparables = [replace(of, selection=next(iter(selections))) for of in comparables]
    swept = [LR, *(str(name).removeprefix(PARAMETER) for of in comparables for name in of.frame.columns if str(name).startswith(PARAMETER))]
    for name in pivot.swept:
        if name not in swept:
            raise unknown("field", name, dict.fromkeys((*FIELDS, *RUN, *ALSO, *swept)))
    found = [entry for comparable in comparables for entry in entries(comparable, pivot)]
    if all(math.isnan(entry.value) for entry in found) and any(entry.gap is None for entry in found):
        lack = [note for of in comparables for note in of.notes if note.startswith(f"{pivot.metric} cannot")]
        allowed = "name a metric (`python -m bench.list metrics`) or a column of bench.results()"
        raise RequestError(lack[0] if lack else f"No record has {pivot.metric!r}: {allowed}.")
    fixed = [name for name in FIELDS if name not in (*pivot.rows, *pivot.columns)]

    def part(entry: Entry) -> tuple[str, ...]:
        return tuple(entry.at[name] for name in fixed)

    notes = tuple(dict.fromkeys(note for comparable in comparables for note in (*comparable.warnings, *comparable.notes)))
    titles = {name: title for of in comparables for name, title in of.titles.items()} if query.titled else None
    unprompted = frozenset[str]().union(*(comparable.unprompted for comparable in comparables))
    tables = []
    for key, of in ((key, list(of)) for key, of in groupby(sorted(found, key=part), key=part)):
        naming, shared = _naming(of, published, titles, unprompted), dict(zip(fixed, key, strict=True))
        if not telling or says_more(_table(of, pivot, shared, naming, {})):
            known = _known(of, pivot)
            own = interval_notes(_counted(of, pivot, known), naming) + _best(of, pivot, store, naming)
            tables.append(replace(_table(of, pivot, shared, naming, known), notes=(*own, *notes)))
    return tables


def says_more(table: Table) -> bool:
    """Whether a pivot is more than a table of the methods once more: some of its columns, of one data set, differ."""
    groups: dict[str, set[tuple[float | None, ...]]] = {}
    for k, column in enumerate(table.columns):
        groups.setdefault(column.group, set()).add(tuple(row.cells[k].value for row in table.rows))
    return any(len(values) > 1 for values in groups.values())


def _naming(found: Sequence[Entry], published: Published, titles: Mapping[str, str] | None, unprompted: frozenset[str]) -> Labels:
    return Labels.of({entry.at["label"] for entry in found}, {entry.at["dataset"] for entry in found}, published, titles, unprompted)


def _best(found: Sequence[Entry], pivot: Pivot, store: ResultStore, naming: Labels) -> tuple[str, ...]:
    """What is said of a sweep's best variants."""
    sweeps: dict[str, dict[str, dict[Run, Path]]] = {}
    for entry in (entry for entry in found if pivot.swept and entry.folder and entry.trains):
        place = naming.place(entry.at["label"], entry.at["dataset"])
        variant = ", ".join(f"{name} {entry.at[name]}" for name in pivot.swept)
        sweeps.setdefault(place, {}).setdefault(variant, {})[entry.run] = Path(entry.folder)
    return best_in_words(sweeps, found[0].at["selection"], store.history)


def _counted(found: Sequence[Entry], pivot: Pivot, known: Known) -> dict[Position, Counts]:
    place_of = _place(pivot)
    places = {(entry.at["label"], entry.at["dataset"]): place_of(entry.at) for entry in found}
    return {name: known[place][0] for name, place in places.items() if place in known}


def _known(found: Sequence[Entry], pivot: Pivot) -> Known:
    """Counts and interval of every place of a pivot of mIoU that has rows by image; methods of one column share what runs tell."""
    columns: dict[tuple[str, ...], dict[str, Counts]] = {}
    stored = [entry for entry in found if entry.folder and pivot.metric in METRICS]
    place_of = _place(pivot)
    for place, of in groupby(sorted(stored, key=lambda entry: (place_of(entry.at), entry.run)), key=lambda entry: place_of(entry.at)):
        runs = list(of)
        at, folders = runs[0].at, [(entry.run, Path(entry.folder)) for entry in runs]
        counts = counts_of(at["dataset"], folders, at["selection"], at["rule"], runs[0].trains, pivot.metric)
        if isinstance(counts, Counts):
            columns.setdefault(place[:-1], {})[place[-1]] = counts
    made = {key: Methods({label: counts.pooled for label, counts in of.items()}) for key, of in columns.items()}
    return {(*key, label): (counts, made[key].mean(label).interval()) for key, of in columns.items() for label, counts in of.items()}


def _place(pivot: Pivot) -> Callable[[Mapping[str, str]], tuple[str, ...]]:
    """Of what an entry is at, all but the draw and seed that the pivot does not show; the method last."""
    shown = [name for name in RUN if name in (*pivot.rows, *pivot.columns)]
    names = [*(name for name in FIELDS if name != "label"), *shown, *pivot.swept, "label"]
    return itemgetter(*names)


def entries(comparable: ComparableCells, pivot: Pivot) -> list[Entry]:
    """A pivot's numbers and gaps, cell by cell; selections and rules are told apart only where the pivot shows them."""
    return [
        entry
        for selection in _selections(comparable, pivot)
        for rule in _rules(comparable, pivot)
        for entry in _entries(comparable, selection, rule, pivot)
    ]


def _rules(comparable: ComparableCells, pivot: Pivot) -> Sequence[str]:
    return RULES if "rule" in (*pivot.rows, *pivot.columns) else (comparable.rule,)


def _selections(comparable: ComparableCells, pivot: Pivot) -> list[str]:
    if "selection" not in (*pivot.rows, *pivot.columns):
        return [comparable.selection]
    stored = {str(name).partition(".")[0] for name in comparable.frame.columns}
    return [name for name in SELECTIONS if name in stored] or [comparable.selection]


def _entries(comparable: ComparableCells, selection: str, rule: str, pivot: Pivot) -> list[Entry]:
    backbone, protocol, shots, checkpoint = comparable.identity
    common = {"backbone": backbone, "protocol": protocol, "shots": shots, "checkpoint": checkpoint[:8]}
    common |= {"selection": selection, "rule": rule}
    frame, metric = comparable.frame, pivot.metric
    is_score = metric in METRICS and metric not in frame
    values = values_of(frame, selection, rule, metric) if is_score else frame.get(metric, pd.Series(math.nan, index=frame.index))
    names = [list(frame.get(name, ())) for name in ("label", "dataset", "draw", "seed", "path", "trains")]
    swept = [dict(zip(pivot.swept, of, strict=True)) for of in zip(*(_swept(frame, name) for name in pivot.swept), strict=True)]
    stored = []
    for label, dataset, draw, seed, path, trains, value, own in zip(*names, values, swept or [{}] * len(frame), strict=True):
        run = int(draw), int(seed)
        at = _at({**common, **own}, label, dataset, run, pivot.swept)
        stored.append(Entry(at, run, _float(metric, value), None, str(path), bool(trains)))
    unknown_of = dict.fromkeys(pivot.swept, "default")  # where a cell that is not there does not name it
    for (label, dataset), gaps in comparable.gaps.items():
        own = {**unknown_of, **{name: _shown(value) for call in (label, protocol) for name, value in _values(call).items()}}
        at = {**common, **{name: own[name] for name in pivot.swept}}
        stored += [Entry(_at(at, label, dataset, gap[0], pivot.swept), gap[0], gap=gap) for gap in gaps]
    return stored


def _swept(frame: pd.DataFrame, name: str) -> list[str]:
    """A swept field's value in every cell, "-" where a method has no such parameter."""
    return [_shown(value) for value in frame.get(LR if name == LR else f"{PARAMETER}{name}", [math.nan] * len(frame))]


def _shown(value: Any) -> str:
    missing = isinstance(value, float) and math.isnan(value)
    return "-" if missing else f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _at(common: Mapping[str, str], label: str, dataset: str, run: Run, swept: Sequence[str]) -> dict[str, str]:
    names = {"label": _without(label, swept), "protocol": _without(common["protocol"], swept), "dataset": dataset}
    return {**common, **names, "draw": str(run[0]), "seed": str(run[1])}


def _values(call: str) -> dict[str, str]:
    """The values in a stored name, as it has them: "clean(lr=0.001,selections=last+val)"."""
    pairs = split_calls(call.partition("(")[2].removesuffix(")"))
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def _without(call: str, swept: Sequence[str]) -> str:
    """A method's or protocol's name without the values that stand in fields of their own."""
    if not swept or "=" not in call:
        return call
    kept = ",".join(f"{name}={value}" for name, value in _values(call).items() if name not in swept)
    return f"{call.partition('(')[0]}({kept})" if kept else call.partition("(")[0]


def _listed(names: Sequence[str]) -> str:
    return " × ".join("method" if name == "label" else name for name in names)


def _names(text: str) -> tuple[str, ...]:
    return tuple(ALSO.get(name.strip(), name.strip()) for name in text.split(",") if name.strip())


def _float(metric: str, value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise RequestError(f"The column {metric!r} holds {value!r}, which is not a number: choose one that does.") from None


def _table(found: Sequence[Entry], pivot: Pivot, fixed: Mapping[str, str], naming: Labels, known: Known) -> Table:
    scores: dict[tuple[str, str], dict[Run, float]] = {}
    gaps: dict[tuple[str, str], tuple[Gap, ...]] = {}
    rows, columns = _keys(found, pivot.rows, naming.published), _keys(found, pivot.columns, naming.published)
    behind: dict[tuple[str, str], list[Entry]] = {}
    for entry in found:
        place = "\n".join(_key(entry, pivot.rows)), "\n".join(_key(entry, pivot.columns))
        if entry.gap is None:
            scores.setdefault(place, {})[entry.run] = entry.value
            behind.setdefault(place, []).append(entry)
        else:
            gaps[place] = (*gaps.get(place, ()), entry.gap)
    identity = (fixed.get("backbone", ""), fixed.get("protocol", ""), fixed.get("shots", ""), fixed.get("checkpoint", ""))
    comparable = ComparableCells(identity, fixed.get("selection", "shown"), fixed.get("rule", "shown"), pd.DataFrame(), gaps, (), scores)
    words = {key: naming.values(pivot.columns, key) for key in columns}
    heads = tuple(
        Column(" ".join(said[:-1]), said[-1], _digits(pivot.metric), about=_about(pivot.columns, key)) for key, said in words.items()
    )
    body = tuple(
        Row(
            " / ".join(naming.values(pivot.rows, key)),
            tuple(_cell(comparable, key, column, pivot, behind, known) for column in columns),
            _about(pivot.rows, key),
        )
        for key in rows
    )
    name = file_name(("pivot", *pivot.rows, "by", *pivot.columns, pivot.metric, *fixed.values()))
    corner = " / ".join("method" if name == "label" else name for name in pivot.rows)
    in_words = {"label": naming.method, "dataset": naming.dataset}
    context = tuple(("method" if key == "label" else key, in_words.get(key, str)(value)) for key, value in fixed.items())
    return Table(name, pivot.heading, (*context, *naming.shared), corner, heads, body)


def _about(names: Sequence[str], key: Sequence[str]) -> Facts:
    """What a page can filter a row or column by."""
    return tuple(("method" if name == "label" else name, value) for name, value in zip(names, key, strict=True))


def _cell(
    comparable: ComparableCells,
    row: tuple[str, ...],
    column: tuple[str, ...],
    pivot: Pivot,
    behind: Mapping[Position, Sequence[Entry]],
    known: Known,
) -> Cell:
    place = "\n".join(row), "\n".join(column)
    cell = comparable.cell(*place)
    if cell.reason == "undefined":
        return replace(cell, notes=(*cell.notes[:-1], f"a run without `{pivot.metric}` here"))
    found = known.get(_place(pivot)(behind[place][0].at)) if cell.value is not None else None
    return bracketed(cell, found[1], len(found[0].images)) if found else cell


def _digits(metric: str) -> int:
    return 3 if "." in metric else 1


def _key(entry: Entry, names: Iterable[str]) -> tuple[str, ...]:
    return tuple(entry.at[name] for name in names)


def _keys(found: Iterable[Entry], names: Sequence[str], published: Published) -> list[tuple[str, ...]]:
    """The places along one side, in order: methods as published, numbers of shots as numbers, selections and rules as listed."""
    keys = {_key(entry, names) for entry in found}
    labels = ordered({key[names.index("label")] for key in keys}, published) if "label" in names else []
    listed = {"selection": list(SELECTIONS), "rule": list(RULES), "label": labels}
    return sorted(keys, key=lambda key: [_rank(value, name, listed.get(name, [])) for name, value in zip(names, key, strict=True)])


def _rank(value: str, name: str, listed: Sequence[str]) -> tuple[float, str]:
    if value in listed:
        return listed.index(value), value
    if name in FIELDS and name != "shots":
        return 0, value
    try:
        return float(value), value
    except ValueError:
        return math.inf, value
