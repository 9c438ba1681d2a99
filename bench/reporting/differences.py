"""What differs between two results: cells are paired by what they are, and their settings, origins and scores are compared."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.errors import RequestError
from bench.grid.metrics import METRICS, OF_ALL, RECORDED, USUAL, metric_of
from bench.grid.rows import score_of
from bench.grid.store import RECORD, DamagedRecord, Record, ResultStore, flat, read_record, spec_to_json, trains
from bench.reporting.comparisons import MEANING, difference_cells
from bench.reporting.statistics import Column as Methods
from bench.reporting.statistics import Counts, Difference, Pair, Pooled, Run, differences, effect_size
from bench.reporting.table import Cell, Column, Row, Table
from bench.reporting.table_statistics import read_rows, same_images

EXACT = ("dataset", "label", "shots", "draw", "seed", "condition", "backbone", "protocol")
LOOSE = EXACT[:6]
TOLD_APART = ("provenance.time", "provenance.command")  # they always differ, and say nothing of why
COMMIT = re.compile(r"[0-9a-f]{7,40}")


@dataclass(frozen=True)
class Stored:
    """A cell that is compared, and where it lies."""

    record: Record
    folder: Path

    def at(self, fields: Iterable[str]) -> tuple[Any, ...]:
        """What it is, by these fields."""
        spec = self.record.spec
        return tuple(spec.method.label if name == "label" else getattr(spec, name) for name in fields)

    @property
    def facts(self) -> dict[str, Any]:
        """Everything in its spec and provenance by dotted name."""
        spec = spec_to_json(self.record.spec)
        spec["method"] = {**spec["method"], "parameters": dict(self.record.spec.method.parameters)}
        return {**flat("spec", spec), **flat("provenance", self.record.provenance)}


@dataclass(frozen=True)
class Side:
    """One of the two that are compared; `notes` say which records were left out."""

    name: str
    cells: tuple[Stored, ...]
    notes: tuple[str, ...] = ()


def side(name: str, out: Path) -> Side:
    """The cells that a cell's folder, a results folder or a commit names; RequestError where there are none."""
    folder = Path(name)
    if (folder / RECORD).is_file():
        try:
            return Side(name, (Stored(read_record(folder), folder),))
        except DamagedRecord as damage:
            raise RequestError(f"The record of {folder} cannot be compared: {damage}.") from None
    is_results = (folder / "runs").is_dir()
    if not is_results and not COMMIT.fullmatch(name):
        raise RequestError(
            f"Cannot compare {name!r}: name a cell's folder, a results folder (with runs/) or a commit of 7 to 40 hex digits; "
            "methods are compared by `python -m bench.tables --like comparisons`."
        )
    scan = ResultStore(folder if is_results else out).scan()
    paths = [] if scan.table.empty else [Path(path) for path in scan.table["path"]]
    cells = [Stored(read_record(path), path) for path in paths]
    if not is_results:
        cells = [cell for cell in cells if str((cell.record.provenance.get("git") or {}).get("commit")).startswith(name)]
    if not cells:
        raise RequestError(f"No cell is stored below {folder / 'runs' if is_results else f'{out} by commit {name}'}.")
    return Side(name, tuple(cells), tuple(f"Left out: {item.path}: {item.reason}." for item in scan.damaged))


def paired(a: Side, b: Side) -> list[tuple[Stored, Stored]]:
    """The cells of both that are the same thing: two single cells, or equal in EXACT, else in LOOSE fields.

    RequestError where no cell has a partner, or where several have the same.
    """
    if len(a.cells) == len(b.cells) == 1:
        return [(a.cells[0], b.cells[0])]
    for fields in (EXACT, LOOSE):
        left, right = ({cell.at(fields): cell for cell in of.cells} for of in (a, b))
        common = [key for key in left if key in right]
        if common and fields == LOOSE and (len(left) < len(a.cells) or len(right) < len(b.cells)):
            raise RequestError("Several cells differ in protocol or backbone alone: compare two of their folders instead.")
        if common:
            return [(left[key], right[key]) for key in common]
    raise RequestError(f"No cell of {a.name} and {b.name} has data set, method, shots, draw and seed in common.")


def differing(pairs: Sequence[tuple[Stored, Stored]]) -> Table:
    """What the pairs differ in, and in how many."""
    found: dict[tuple[str, str, str], int] = {}
    for a, b in pairs:
        mine, theirs = a.facts, b.facts
        for name in dict.fromkeys((*mine, *theirs)):
            if name not in TOLD_APART and mine.get(name) != theirs.get(name):
                change = (name, str(mine.get(name, "-")), str(theirs.get(name, "-")))
                found[change] = found.get(change, 0) + 1
    columns = (Column("", "A"), Column("", "B"), Column("", "pairs", digits=0))
    rows = tuple(Row(name, (Cell(reason=mine), Cell(reason=theirs), Cell(count))) for (name, mine, theirs), count in sorted(found.items()))
    return Table("differing", "What differs", (("pairs", str(len(pairs))),), "field", columns, rows, () if rows else ("Nothing.",))


def results(pairs: Sequence[tuple[Stored, Stored]], selection: str | None, rule: str, metric: str = USUAL) -> Table:
    """The pairs by data set, method and shots: both means, A - B with its interval, corrected p, effect size and a verdict."""
    groups: dict[tuple[Any, ...], list[tuple[Stored, Stored]]] = {}
    for a, b in pairs:
        groups.setdefault(a.at(("dataset", "label", "shots")), []).append((a, b))
    groups = {key: of if any(trains(pair[i].record.cost) for pair in of for i in (0, 1)) else of[:1] for key, of in groups.items()}
    known = {key: pair for key, of in groups.items() if (pair := _pair(of, selection, rule, metric))}
    tested = dict(zip(known, differences(list(known.values())), strict=True))
    rows = []
    for key, of in sorted(groups.items(), key=lambda item: tuple(map(str, item[0]))):
        means = [_mean([_score(pair[i], selection, rule, metric) for pair in of]) for i in (0, 1)]
        rows.append(Row(" ".join(map(str, key)), (*means, *_verdict(means, tested.get(key)))))
    numbers = (Column("", "A"), Column("", "B"), Column("", "A - B", 2, True), Column("", "p", 4), Column("", "d", 2, True))
    columns = (*numbers, Column("", "verdict"))
    of_metric = metric_of(metric)
    untested = "" if of_metric.terms else f" It {OF_ALL}, so that nothing is tested by it."
    notes = (MEANING, *([f"{metric}: {of_metric.better} is better.{untested}"] if metric != USUAL else []))
    shown = (("selection", selection or "the first of each protocol"), ("rule", rule))
    return Table("results", f"{of_metric.title[0].upper()}{of_metric.title[1:]}", shown, "cells", columns, tuple(rows), notes)


def _mean(scores: Sequence[float]) -> Cell:
    mean = float(np.mean(scores))
    return Cell(reason="undefined") if np.isnan(mean) else Cell(mean, n=len(scores))


def _verdict(means: Sequence[Cell], found: Difference | None) -> tuple[Cell, Cell, Cell, Cell]:
    if found is None:
        gap = None if means[0].value is None or means[1].value is None else means[0].value - means[1].value
        return Cell(gap), Cell(), Cell(), Cell(reason="not tested: other images or data files, too few, or a metric without intervals")
    delta, p, effect = difference_cells(found)
    if found.p is None:
        return delta, Cell(), effect, Cell(reason="one run cannot tell")
    higher = "A is higher" if found.value > 0 else "A is lower"
    return delta, p, effect, Cell(reason=higher if found.significant else "inside the noise")


def _score(cell: Stored, selection: str | None, rule: str, metric: str) -> float:
    chosen = selection or cell.record.spec.settings.selections[0]
    if metric not in RECORDED:
        return score_of(cell.folder, chosen, rule, metric)
    return cell.record.scores.get(chosen, {}).get(f"{metric}_{rule}", float("nan"))


def _pair(pairs: Sequence[tuple[Stored, Stored]], selection: str | None, rule: str, metric: str) -> Pair | None:
    """The two to be compared; None where the images are not known to be the same."""
    if any(len({cell.record.fingerprint for cell in pair} - {""}) > 1 for pair in pairs):
        return None
    runs = tuple((pair[0].at(("draw", "backbone", "protocol")), pair[0].record.spec.seed) for pair in pairs)
    a, b = (_counts([pair[i] for pair in pairs], runs, selection, rule, metric) for i in (0, 1))
    if a is None or b is None or a.images != b.images:
        return None
    methods = Methods({"A": Pooled.of(a), "B": Pooled.of(b)})
    return Pair(methods.difference("A", "B"), methods.tells("A", "B"), effect_size(a, b), len(a.runs), len(a.images))


def _counts(cells: Sequence[Stored], runs: tuple[Run, ...], selection: str | None, rule: str, metric: str) -> Counts | None:
    """The counts of one side; None unless all have rows for the same images, and enough of them."""
    if METRICS[metric].terms is None:
        return None
    tables = [read_rows(cell.folder, selection or cell.record.spec.settings.selections[0], rule, metric) for cell in cells]
    if (found := same_images(tables)) is None:
        return None
    images, pixels = found
    counts = Counts(runs, images, pixels[:, :, 0], pixels[:, :, 1], any(trains(cell.record.cost) for cell in cells))
    return None if counts.lack else counts
