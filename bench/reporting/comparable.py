"""What is stored and what was asked for, parted into the boards whose cells may stand in one table."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from statistics import mean, stdev
from typing import Any

import pandas as pd

from bench.errors import RequestError
from bench.grid.store import Damaged, GridCell, ResultStore
from bench.reporting.table import Cell

LONGEST_NAME = 200  # bytes; file systems allow 255, with an ending and a temporary name's
Position = tuple[str, str]  # row label, data set
Run = tuple[int, int]  # draw, seed
SAME = {  # what cells of one table should have in common
    "commit": "provenance.git.commit",
    "device": "provenance.device_name",
    "torch": "provenance.packages.torch",
}


@dataclass(frozen=True)
class CellQuery:
    """Which cells and which of their numbers a table takes; None leaves it to what is stored."""

    selection: str | None = None
    rule: str = "all"
    shots: str | None = None
    protocol: str | None = None
    backbone: str | None = None

    def takes(self, shots: str, protocol: str, backbone: str) -> bool:
        """Whether a cell of these is asked for."""
        wanted = ((self.shots, shots), (self.protocol, protocol), (self.backbone, backbone))
        return all(asked is None or asked == given for asked, given in wanted)


@dataclass(frozen=True)
class ComparableCells:
    """The cells that share a table.

    identity: (backbone, protocol, shots, checkpoint); frame: the stored cells, one row each, as `bench.grid.store.row`;
    gaps: for every cell that was asked for and is not stored, its run, phase and reason.
    """

    identity: tuple[str, str, str, str]
    selection: str
    rule: str
    frame: pd.DataFrame
    gaps: Mapping[Position, tuple[tuple[Run, str, str], ...]]
    notes: tuple[str, ...]
    scores: Mapping[Position, Mapping[Run, float]] = field(default_factory=dict)

    def labels_of(self, datasets: Iterable[str]) -> list[str]:
        """The methods, with their shown parameters, that were run or asked for on any of the data sets."""
        chosen = set(datasets)
        return sorted({label for label, dataset in (*self.scores, *self.gaps) if dataset in chosen})

    @property
    def datasets(self) -> list[str]:
        """The data sets, by name."""
        return sorted({dataset for _, dataset in (*self.scores, *self.gaps)})

    def cell(self, label: str, dataset: str) -> Cell:
        """Mean ± standard deviation over draws and seeds, or why there is none; a missing run is never averaged away."""
        scores, gaps = self.scores.get((label, dataset), {}), self.gaps.get((label, dataset), ())
        of, notes = len(scores) + len(gaps), tuple(_gap_note(gap) for gap in gaps if gap[1] != "pending" or scores)
        if not of:
            return Cell(reason="not run")
        if not scores:
            return Cell(of=of, reason=_worst(phase for _, phase, _ in gaps), notes=notes)
        if any(map(math.isnan, scores.values())):
            return Cell(of=of, reason="undefined", notes=(*notes, f"no `{self.selection}` score under the rule `{self.rule}`"))
        return Cell(mean(scores.values()), _std(scores.values()), len(scores), of, notes=notes)

    def average(self, label: str, datasets: Sequence[str]) -> Cell:
        """The mean of the data sets' means, if all of them are there; its spread is that of the runs that all of them have."""
        cells = {dataset: self.cell(label, dataset) for dataset in datasets}
        missing = [dataset for dataset, cell in cells.items() if cell.value is None]
        if missing:
            return Cell(reason=f"lacks {', '.join(missing)}")
        runs = [self.scores[label, dataset] for dataset in datasets]
        common = sorted(set.intersection(*map(set, runs)))
        same = all(len(scores) == len(common) for scores in runs)
        std = _std([mean(scores[run] for scores in runs) for run in common]) if same else None
        partial = any(cell.n != cell.of for cell in cells.values())
        notes = ("of data sets with missing runs or with different runs",) if partial or not same else ()
        return Cell(mean(_value(cell) for cell in cells.values()), std, len(common) if same else None, notes=notes)

    @property
    def context(self) -> tuple[tuple[str, str], ...]:
        """What all its numbers have in common, for a table's head."""
        backbone, protocol, shots, checkpoint = self.identity
        prompts = sorted(set(self.frame["evaluation_prompt"])) if len(self.frame) else []
        common = (("backbone", backbone), ("weights", checkpoint[:8]), ("shots", shots), ("protocol", protocol))
        return (*common, ("prompts", "+".join(prompts) or "-"), ("selection", self.selection), ("rule", self.rule))

    def name(self, kind: str) -> str:
        """A file name for a kind of table or figure of this board."""
        backbone, protocol, shots, checkpoint = self.identity
        words = (kind, backbone, checkpoint[:8], f"{shots}shot", protocol, self.selection, self.rule)
        name = re.sub(r"[^\w.=+-]+", "-", "_".join(words)).strip("-")
        if len(name.encode()) <= LONGEST_NAME:
            return name
        kept = name.encode()[:LONGEST_NAME].decode(errors="ignore")  # a protocol with many changes
        return f"{kept}-{sha256(name.encode()).hexdigest()[:8]}"

    @property
    def stand_ins(self) -> tuple[str, ...]:
        """A warning where numbers are of generated images under a real data set's name."""
        if not len(self.frame) or not self.frame["generated"].any():
            return ()
        names = ", ".join(sorted(set(self.frame.loc[self.frame["generated"], "dataset"])))
        return (f"GENERATED STAND-INS, not the real images: {names}. These numbers say nothing about the real data sets.",)

    @property
    def mixed(self) -> tuple[str, ...]:
        """A warning for each thing in which the cells of one table should not differ, and do."""
        warnings = []
        for name, column in SAME.items():
            values = sorted(map(str, self.frame.get(column, pd.Series(dtype=object)).dropna().unique()))
            if len(values) > 1:
                shown = ", ".join(value[:12] if name == "commit" else value for value in values)
                warnings.append(f"WARNING: cells of one table ({self.name('table')}) differ in {name}: {shown}.")
        return tuple(warnings)


def _value(cell: Cell) -> float:
    if cell.value is None:
        raise ValueError("a cell without a value has no part in an average")
    return cell.value


def _std(values: Iterable[float]) -> float | None:
    numbers = list(values)
    return stdev(numbers) if len(numbers) > 1 else None


def _worst(phases: Iterable[str]) -> str:
    found = set(phases)
    return next(phase for phase in ("failed", "unfinished", "pending") if phase in found)


def _gap_note(gap: tuple[Run, str, str]) -> str:
    (draw, seed), phase, reason = gap
    run = f"seed {seed}" if draw == 0 else f"draw {draw} seed {seed}"
    return f"{run}: {phase}" if phase == "pending" else f"{run}: {phase}: {reason}"


def comparable_cells(store: ResultStore, query: CellQuery) -> list[ComparableCells]:
    """What is stored and what the last run asked for, parted by backbone, protocol, shots and weights.

    RequestError, one sentence, where there is no cell at all, or none that is asked for.
    """
    scan, grid = store.scan(), store.grid()
    if scan.table.empty and not grid:
        lost = f" ({len(scan.damaged)} damaged records were left out)" if scan.damaged else ""
        raise RequestError(f"No cell is stored or asked for below {store.runs}{lost}: start one with `python -m bench.run`.")
    stored = {_identity(key): frame for key, frame in _grouped(scan.table, ["backbone", "protocol", "shots", "checkpoint_sha256"])}
    asked: dict[tuple[str, str, str, str], list[GridCell]] = {}
    for cell in grid:
        asked.setdefault(_identity((cell.backbone, cell.protocol, cell.shots, cell.checkpoint_sha256)), []).append(cell)
    found = sorted({*stored, *asked})
    taken = [key for key in found if query.takes(key[2], key[1], key[0])]
    if not taken:
        there = "; ".join(f"{backbone}, {protocol}, {shots} shots" for backbone, protocol, shots, _ in found)
        raise RequestError(f"No cell is of the shots, protocol and backbone asked for; there are: {there}.")
    notes = _damage_notes(store, scan.damaged)
    return [_comparable(store, query, key, stored.get(key, scan.table.head(0)), asked.get(key, []), notes) for key in taken]


def _identity(key: Iterable[object]) -> tuple[str, str, str, str]:
    backbone, protocol, shots, checkpoint = map(str, key)
    return backbone, protocol, shots, checkpoint


def _grouped(frame: pd.DataFrame, columns: list[str]) -> list[tuple[tuple[Any, ...], pd.DataFrame]]:
    if frame.empty:
        return []
    return [(key if isinstance(key, tuple) else (key,), part) for key, part in frame.groupby(columns, sort=False)]


def _damage_notes(store: ResultStore, damaged: Iterable[Damaged]) -> tuple[str, ...]:
    return tuple(f"Left out: {item.path.relative_to(store.root).as_posix()}: {item.reason}." for item in damaged)


def _comparable(
    store: ResultStore, query: CellQuery, key: tuple[str, str, str, str], frame: pd.DataFrame, asked: list[GridCell], notes: tuple[str, ...]
) -> ComparableCells:
    one_method = _current(frame, ["label"], "method_id", {(cell.method,): cell.method_id for cell in asked})
    current = _current(one_method, ["label", "dataset"], "recipe", {(cell.method, cell.dataset): cell.recipe for cell in asked})
    left_out = len(frame) - len(current)
    if left_out:
        notes = (*notes, f"Left out: cells of an older revision or of other settings under the same names ({left_out}).")
    selection = query.selection or _first_selection(current)
    scores = _scores(current, f"{selection}.miou_{query.rule}")
    return ComparableCells(key, selection, query.rule, current, _gaps(store, asked, set(frame.get("key", ()))), notes, scores)


def _current(frame: pd.DataFrame, names: list[str], identity: str, asked: Mapping[tuple[str, ...], str]) -> pd.DataFrame:
    """Of the cells that go by the same names, those of one identity: the one that the last run asked for, else the one of
    the highest revision, else the one stored last."""
    if frame.empty:
        return frame
    time = frame["provenance.time"].fillna("") if "provenance.time" in frame else ""
    ranked = frame.assign(time=time).sort_values(["method_revision", "dataset_revision", "time", identity], kind="stable")
    newest = ranked.groupby(names)[identity].transform("last").reindex(frame.index)
    places = zip(*(frame[name] for name in names), strict=True)
    chosen = [asked.get(place, other) for place, other in zip(places, newest, strict=True)]
    return frame[frame[identity] == chosen]


def _first_selection(frame: pd.DataFrame) -> str:
    return str(frame["selection"].value_counts(sort=False).sort_index().idxmax()) if len(frame) else "not known yet"


def _scores(frame: pd.DataFrame, column: str) -> dict[Position, dict[Run, float]]:
    scores: dict[Position, dict[Run, float]] = {}
    values = frame[column] if column in frame else [math.nan] * len(frame)
    for label, dataset, draw, seed, value in zip(
        *(frame.get(name, []) for name in ("label", "dataset", "draw", "seed")), values, strict=True
    ):
        scores.setdefault((label, dataset), {})[int(draw), int(seed)] = float(value)
    return scores


def _gaps(store: ResultStore, asked: Iterable[GridCell], stored: set[str]) -> dict[Position, tuple[tuple[Run, str, str], ...]]:
    gaps: dict[Position, tuple[tuple[Run, str, str], ...]] = {}
    for cell in sorted((cell for cell in asked if cell.key not in stored), key=lambda cell: (cell.draw, cell.seed)):
        status = store.status_of(store.runs / cell.folder)
        gap = ((cell.draw, cell.seed), status.phase, status.reason)
        gaps[cell.method, cell.dataset] = (*gaps.get((cell.method, cell.dataset), ()), gap)
    return gaps
