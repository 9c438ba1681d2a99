"""What is stored and what was asked for, grouped into the cells that may stand in one table."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pandas as pd

from bench.errors import RequestError, counted, unknown
from bench.grid.metrics import OF_ALL, RECORDED, USUAL, metric_of
from bench.grid.published import published_for
from bench.grid.rows import lacks, score_of
from bench.grid.store import COPY, COST_FIELDS, Damaged, GridCell, ResultStore, Snapshot, own_weights
from bench.reporting.labels import Labels, shots_in_words
from bench.reporting.table import Cell

LONGEST_NAME = 200  # bytes; file systems allow 255, with an ending and a temporary name's
Position = tuple[str, str]  # row label, data set
Run = tuple[int, int]  # draw, seed
Gap = tuple[Run, str, str]  # of a cell that is not stored: its run, phase and reason
Identity = tuple[str, str, str, str]  # backbone, protocol, shots, checkpoint: of one table's cells
IDENTITY = ("backbone", "protocol", "shots", "checkpoint_sha256")
MACHINE = "provenance.device_name"
TITLE, METRIC = "provenance.data.title", "provenance.data.metric"
FILES, TIME = "provenance.data.fingerprint", "provenance.time"
SAME = {  # what cells of one table should have in common
    "commit": "provenance.git.commit",
    "device": MACHINE,
    "torch": "provenance.packages.torch",
}
FEW = 4  # methods that a note names
ONLY_SAMPLE = "provenance.only_training_sample"


@dataclass(frozen=True)
class CellQuery:
    """Which cells and which of their numbers a table takes; None leaves it to what is stored. against: what methods are compared
    with, "best", "pairs" or a label. metric: None for the pooled foreground IoU, or of the paper's table what was published.
    titled: whether methods and data sets go by their titles, or by their names."""

    selection: str | None = None
    rule: str = "all"
    shots: str | None = None
    protocol: str | None = None
    backbone: str | None = None
    against: str = "best"
    titled: bool = True
    metric: str | None = None

    @classmethod
    def of(cls, given: Mapping[str, str | None]) -> "CellQuery":
        """The query of a Python caller's options; RequestError for one that there is not."""
        for name in given:
            if name not in cls.__dataclass_fields__:
                raise unknown("option", name, cls.__dataclass_fields__)
        return cls(**given)  # type: ignore[arg-type]

    def takes(self, shots: str, protocol: str, backbone: str) -> bool:
        """Whether a cell of these is asked for."""
        wanted = ((self.shots, shots), (self.protocol, protocol), (self.backbone, backbone))
        return all(asked is None or asked == given for asked, given in wanted)


@dataclass(frozen=True)
class ComparableCells:
    """The cells that share a table.

    identity: (backbone, protocol, shots, checkpoint); frame: the stored cells, one row each, as `bench.grid.store.row`;
    gaps: for every cell that was asked for and is not stored, its run, phase and reason. other_files: a sentence for each run on other
    data files than its data set's newest cell has. reevaluated: the re-evaluations of the stored cells, which no other table has.
    """

    identity: Identity
    selection: str
    rule: str
    frame: pd.DataFrame
    gaps: Mapping[Position, tuple[Gap, ...]]
    notes: tuple[str, ...]
    scores: Mapping[Position, Mapping[Run, float]] = field(default_factory=dict)
    against: str = "best"
    titled: bool = True
    other_files: Mapping[Position, tuple[str, ...]] = field(default_factory=dict)
    reevaluated: pd.DataFrame = field(default_factory=pd.DataFrame)
    metric: str = USUAL
    statistics: dict[tuple[object, ...], Any] = field(default_factory=dict, init=False, compare=False, repr=False)  # made of it, kept

    def of_frame(self, frame: pd.DataFrame) -> "ComparableCells":
        """The same of other rows, whose labels and data sets may be any that a table has."""
        return replace(self, frame=frame, gaps={}, other_files={}, scores=_scores(frame, self.selection, self.rule, self.metric))

    def scored_by(self, metric: str, datasets: Sequence[str] = ()) -> "ComparableCells":
        """The same cells, whose scores are by another metric; of which it cannot be computed is said of these data sets, or all."""
        asked = self.frame[self.frame["dataset"].isin(list(datasets))] if datasets and len(self.frame) else self.frame
        lack = () if metric in RECORDED else _lack(asked, self.selection, metric)
        lack += () if metric_of(metric).terms else (f"{metric} {OF_ALL}, so that it has no interval and nothing is tested by it.",)
        scores = _scores(self.frame, self.selection, self.rule, metric)
        return replace(self, metric=metric, scores=scores, notes=(*self.notes, *lack))

    @property
    def sign(self) -> int:
        """1 where more is better, else -1."""
        return metric_of(self.metric).sign

    @property
    def measured(self) -> str:
        """What its scores are, as a title says it."""
        return metric_of(self.metric).title

    @property
    def in_title(self) -> str:
        """The same as a title begins with it."""
        return self.measured[0].upper() + self.measured[1:]

    @property
    def quantity(self) -> str:
        """The same as a column or an axis has it, without the unit."""
        return "mIoU" if self.metric == USUAL else self.measured.removesuffix(" (%)")

    def labels_of(self, datasets: Iterable[str]) -> list[str]:
        """The methods, with their shown parameters, that were run or asked for on any of the data sets."""
        chosen = set(datasets)
        return sorted({label for label, dataset in (*self.scores, *self.gaps) if dataset in chosen})

    @property
    def datasets(self) -> list[str]:
        """The data sets, by name."""
        return sorted({dataset for _, dataset in (*self.scores, *self.gaps)})

    @property
    def titles(self) -> dict[str, str]:
        """The data sets' titles, as the records say them."""
        return self._said(TITLE)

    @property
    def own_metrics(self) -> dict[str, str]:
        """The metrics of data sets that have one of their own, as the records say them."""
        return self._said(METRIC)

    def _said(self, column: str) -> dict[str, str]:
        stored = self.frame[["dataset", column]].dropna() if column in self.frame else pd.DataFrame({"dataset": [], column: []})
        return dict(zip(stored["dataset"], stored[column], strict=True))

    @cached_property
    def naming(self) -> Labels:
        """How its methods and data sets are called in tables and figures."""
        return Labels.of(
            self.labels_of(self.datasets),
            self.datasets,
            published_for(self.identity[2]),
            self.titles if self.titled else None,
            self.unprompted,
        )

    @cached_property
    def unprompted(self) -> frozenset[str]:
        """The methods that are asked without prompts, where others are asked with some."""
        asked = dict(self.frame.groupby("label")["evaluation_prompt"].agg(set)) if len(self.frame) else {}
        none = frozenset(str(label) for label, prompts in asked.items() if "none" in prompts)
        return none if len(none) < len(asked) else frozenset()

    def cell(self, label: str, dataset: str) -> Cell:
        """Mean ± standard deviation over draws and seeds, or why there is none; a missing run is never averaged away."""
        key = ("cell", label, dataset)
        if key not in self.statistics:
            self.statistics[key] = self._cell(label, dataset)
        found: Cell = self.statistics[key]
        return found

    def _cell(self, label: str, dataset: str) -> Cell:
        scores, gaps = self.scores.get((label, dataset), {}), self.gaps.get((label, dataset), ())
        of, notes = len(scores) + len(gaps), tuple(_gap_note(gap) for gap in gaps if gap[1] != "pending" or scores)
        notes += self.other_files.get((label, dataset), ())
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
            return Cell(reason=f"lacks {self.naming.dataset(missing[0]) if len(missing) == 1 else counted(len(missing), 'data set')}")
        runs = [self.scores[label, dataset] for dataset in datasets]
        common = sorted(set.intersection(*map(set, runs)))
        same = all(len(scores) == len(common) for scores in runs)
        std = _std([mean(scores[run] for scores in runs) for run in common]) if same else None
        partial = any(cell.n != cell.of for cell in cells.values())
        notes = ("of data sets with missing runs or with different runs",) if partial or not same else ()
        return Cell(mean(cell.value for cell in cells.values() if cell.value is not None), std, len(common) if same else None, notes=notes)

    @property
    def context(self) -> tuple[tuple[str, str], ...]:
        """What all its numbers have in common, for a table's head."""
        backbone, protocol, shots, checkpoint = self.identity
        prompts = sorted(set(self.frame["evaluation_prompt"])) if len(self.frame) else []
        common = (("backbone", backbone), ("weights", checkpoint[:8]), ("shots", shots), ("protocol", protocol))
        trials = sorted({int(count) for count in self.frame["trials"] if count > 0}) if len(self.frame) else []
        tuned = (("tuned", f"{' or '.join(map(str, trials))} trials"),) if trials else ()
        how = (("prompts", "+".join(prompts) or "-"), ("selection", self.selection), ("rule", self.rule))
        metric = () if self.metric == USUAL else (("metric", f"{self.metric}, {metric_of(self.metric).better} is better"),)
        return (*common, *tuned, *how, *metric, *self.naming.shared)

    def name(self, kind: str) -> str:
        """A file name for a kind of table or figure of these cells."""
        backbone, protocol, shots, checkpoint = self.identity
        metric = () if self.metric == USUAL else (self.metric,)
        return file_name((kind, backbone, checkpoint[:8], f"{shots}shot", protocol, self.selection, self.rule, *metric))

    @cached_property
    def fixed(self) -> frozenset[Position]:
        """Where methods train nothing, so that their one number is that of all draws and seeds."""
        columns = zip(*(self.frame.get(name, ()) for name in ("label", "dataset", "trains")), strict=True)
        return frozenset((label, dataset) for label, dataset, trains in columns if not trains)

    @cached_property
    def stand_ins(self) -> tuple[str, ...]:
        """A warning where numbers are of generated images under a real data set's name."""
        if not len(self.frame) or not self.frame["generated"].any():
            return ()
        names = ", ".join(map(self.naming.dataset, sorted(set(self.frame.loc[self.frame["generated"], "dataset"]))))
        return (f"GENERATED STAND-INS, not the real images: {names}. These numbers say nothing about the real data sets.",)

    @cached_property
    def training(self) -> tuple[str, ...]:
        """What a reader would not expect of the cells' training: one picture for all epochs; dropout that stops."""
        if not len(self.frame):
            return ()
        learnt, notes = self.frame[trained(self.frame)], []
        repeated = learnt[learnt["augmentation_stream"] != "fresh"]
        if self.identity[2] == "1" and len(repeated):
            samples = repeated.get(ONLY_SAMPLE, pd.Series(None, index=repeated.index, dtype=object))
            counts = samples.fillna("not the reference's, but one that an earlier version drew").value_counts()
            shown = "; ".join(f"{sample} ({count} of {len(repeated)} cells)" for sample, count in counts.items())
            notes.append(f"ONE PICTURE: one-shot training repeats a single augmented sample in every epoch: {shown}.")
        stopped = map(self.naming.method, sorted(set(learnt.loc[learnt["eval_mode_after_first_look"], "label"])))
        if self.unprompted:
            names = ", ".join(map(self.naming.method, sorted(self.unprompted)))
            notes.append(f"WITHOUT PROMPTS: {names}: it finds the objects by itself, and the others are told where they are.")
        if names := ", ".join(stopped):
            notes.append(f"Trained in evaluation mode, without dropout, after the first evaluation: {names}.")
        return tuple(notes)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is to be known before its numbers are read."""
        return (*self.stand_ins, *self.training, *self.mixed)

    @cached_property
    def mixed(self) -> tuple[str, ...]:
        """A warning for each thing in which the cells of one table should not differ, and do."""
        warnings = []
        for name, column in SAME.items():
            values = sorted(map(str, self.frame.get(column, pd.Series(dtype=object)).dropna().unique()))
            if len(values) > 1:
                shown = ", ".join(value[:12] if name == "commit" else value for value in values)
                warnings.append(f"WARNING: cells of one table ({self.name('table')}) differ in {name}: {shown}.")
        return tuple(warnings)


def file_name(words: Iterable[str]) -> str:
    """A name of these words that every file system allows, without an ending."""
    name = re.sub(r"[^\w.=+-]+", "-", "_".join(words)).strip("-")
    if len(name.encode()) <= LONGEST_NAME:
        return name
    kept = name.encode()[:LONGEST_NAME].decode(errors="ignore")  # a protocol with many changes
    return f"{kept}-{sha256(name.encode()).hexdigest()[:8]}"


def _std(values: Iterable[float]) -> float | None:
    numbers = list(values)
    return stdev(numbers) if len(numbers) > 1 else None


def _worst(phases: Iterable[str]) -> str:
    found = set(phases)
    return next(phase for phase in ("failed", "unfinished", "pending") if phase in found)


def _gap_note(gap: Gap) -> str:
    run, phase, reason = gap
    return f"{_in_words(*run)}: {phase}" if phase == "pending" else f"{_in_words(*run)}: {phase}: {reason}"


def _in_words(draw: int, seed: int) -> str:
    return f"draw {draw} seed {seed}" if draw else f"seed {seed}"


@dataclass(frozen=True)
class Part:
    """What belongs to one table: its stored cells, those of what trains nothing, and what was asked for."""

    frame: pd.DataFrame
    untrained: pd.DataFrame
    asked: Sequence[GridCell]


def comparable_cells(store: ResultStore, query: CellQuery) -> list[ComparableCells]:
    """What is stored and what the last run asked for, parted by backbone, protocol, shots and weights.

    What trains nothing has no shots of its own: it stands once in every table of its backbone, protocol and weights.
    RequestError, one sentence, where there is no cell at all, or none that is asked for. Of a snapshot they are the same objects again.
    """
    query = replace(query, metric=None) if query.metric == USUAL else query
    if isinstance(store, Snapshot):
        return list(store.once(("comparable", query), lambda: _comparable_cells(store, query)))
    return _comparable_cells(store, query)


def _comparable_cells(store: ResultStore, query: CellQuery) -> list[ComparableCells]:
    scan, grid = store.scan(), store.grid()
    if scan.table.empty and not grid:
        lost = f" ({len(scan.damaged)} damaged records were left out)" if scan.damaged else ""
        raise RequestError(f"No cell is stored or asked for below {store.runs}{lost}: start one with `python -m bench.run`.")
    parts = _parts(_with_costs(own_weights(scan.table), store.costs()), grid)
    taken = [key for key in parts if query.takes(key[2], key[1], key[0])]
    if not taken:
        others = "; ".join(f"{backbone}, {protocol}, {shots_in_words(shots)}" for backbone, protocol, shots, _ in parts)
        raise RequestError(f"No cell is of the shots, protocol and backbone asked for; there are: {others}.")
    notes = _damage_notes(store, scan.damaged)
    found = [_comparable(store, query, key, parts[key], notes) for key in taken]
    return [replace(of, reevaluated=_reevaluated(scan.table, of.frame)) for of in found]


def _reevaluated(table: pd.DataFrame, parents: pd.DataFrame) -> pd.DataFrame:
    return table[table["parent"].isin(parents["key"])] if len(table) and len(parents) else pd.DataFrame()


def _with_costs(frame: pd.DataFrame, costs: Mapping[tuple[str, str, str], Mapping[str, float]]) -> pd.DataFrame:
    """The cells with `measured.*`, what was measured of their method, backbone and machine apart from them; NaN where nothing was."""
    if frame.empty or not costs:
        return frame
    which = list(zip(*(frame.get(name, [""] * len(frame)) for name in ("backbone", "method_id", MACHINE)), strict=True))
    columns = {f"measured.{name}": [costs.get(key, {}).get(name, math.nan) for key in which] for name in COST_FIELDS}
    return frame.assign(**columns)


def _parts(table: pd.DataFrame, grid: Sequence[GridCell]) -> dict[Identity, Part]:
    """The cells of one table after another, in order; what trains nothing has a table of its own only where nothing else is stored."""
    trained = table[table["trains"].astype(bool)] if len(table) else table
    once = _once(table.drop(trained.index), grid)
    stored, alone = ({_identity(key): of for key, of in _grouped(frame, list(IDENTITY))} for frame in (trained, once))
    asked: dict[Identity, list[GridCell]] = {}
    for cell in grid:
        asked.setdefault(_identity(getattr(cell, name) for name in IDENTITY), []).append(cell)
    keys = {*stored, *(key for key, of in asked.items() if any(cell.trains for cell in of))}
    for key in sorted({*alone, *asked} - keys):
        keys |= {key} if not any(family(key) == family(other) for other in keys) else set()
    parts = {}
    for key in sorted(keys):
        own = [cell for cell in asked.get(key, []) if cell.trains]
        shared = [cell for other, of in asked.items() if family(other) == family(key) for cell in of if not cell.trains]
        rows = [of for other, of in alone.items() if family(other) == family(key)]
        parts[key] = Part(stored.get(key, table.head(0)), pd.concat(rows) if rows else table.head(0), (*own, *shared))
    return parts


def _once(frame: pd.DataFrame, grid: Sequence[GridCell]) -> pd.DataFrame:
    """Of what trains nothing one cell a data set, whatever shots, draws and seeds it is stored with: as the last run asked for it,
    else the newest."""
    place = ("backbone", "protocol", "checkpoint_sha256", "label", "dataset")
    asked: dict[tuple[Any, ...], set[str]] = {}
    for cell in grid:
        asked.setdefault((cell.backbone, cell.protocol, cell.checkpoint_sha256, cell.method, cell.dataset), set()).add(cell.recipe)
    kept = []
    for key, rows in _grouped(_ranked(frame), list(place)):
        kept.append((rows[rows["recipe"].isin(asked[key])] if key in asked else rows).tail(1))
    return pd.concat(kept) if kept else frame


def family(key: Identity) -> tuple[str, str, str]:
    """What tables that differ in the number of shots alone have in common."""
    backbone, protocol, _, checkpoint = key
    return backbone, protocol, checkpoint


def _identity(key: Iterable[object]) -> Identity:
    backbone, protocol, shots, checkpoint = map(str, key)
    return backbone, protocol, shots, checkpoint


def _grouped(frame: pd.DataFrame, columns: list[str]) -> list[tuple[Any, pd.DataFrame]]:
    return [] if frame.empty else list(frame.groupby(columns, sort=False))


def _damage_notes(store: ResultStore, damaged: Sequence[Damaged]) -> tuple[str, ...]:
    """A sentence for each record that is left out, and one for all copies beyond the first few, as folders of two people have them."""
    more = [item for item in damaged if item.reason.startswith(COPY)][FEW:]
    notes = tuple(f"Left out: {_below(item.path, store).as_posix()}: {item.reason}." for item in damaged if item not in more)
    return (*notes, f"Left out: {len(more)} more copies of cells.") if more else notes


def _below(path: Path, store: ResultStore) -> Path:
    return path.relative_to(store.root) if path.is_relative_to(store.root) else path


def _comparable(store: ResultStore, query: CellQuery, key: Identity, part: Part, notes: tuple[str, ...]) -> ComparableCells:
    frame, asked = part.frame, part.asked
    one_method = _current(_of_newest_samples(frame), ["label"], "method_id", {(cell.method,): cell.method_id for cell in asked})
    current = _current(one_method, ["label", "dataset"], "recipe", {(cell.method, cell.dataset): cell.recipe for cell in asked})
    left_out = len(frame) - len(current)
    if left_out:
        notes = (*notes, f"Left out: cells of an older revision or of other settings under the same names ({left_out}).")
    known = set(zip(*(part.untrained.get(name, []) for name in ("label", "dataset")), strict=True))
    gaps = _gaps(store, [cell for cell in asked if (cell.method, cell.dataset) not in known], set(frame.get("key", ())))
    current = pd.concat([current, part.untrained]) if len(current) and len(part.untrained) else max(current, part.untrained, key=len)
    selection = query.selection or _first_selection(current)
    scores = _scores(current, selection, query.rule)
    made = ComparableCells(key, selection, query.rule, current, gaps, notes, scores, query.against, query.titled)
    others = _other_files(current, made.naming)
    notes = (*_rates(current, made.naming), *notes)
    if others:
        notes = (*notes, f"Cells of other data files are compared with none of the newer ones ({sum(map(len, others.values()))}).")
    made = replace(made, notes=notes, other_files=others)
    return made.scored_by(query.metric) if query.metric else made


def _other_files(frame: pd.DataFrame, naming: Labels) -> dict[Position, tuple[str, ...]]:
    """See ComparableCells; what is not known to differ does not."""
    found: dict[Position, tuple[str, ...]] = {}
    if not {FILES, TIME} <= set(frame):
        return found
    known = frame[frame[FILES].map(lambda files: isinstance(files, str)).astype(bool)].sort_values(
        TIME, kind="stable", key=lambda time: time.astype(str)
    )
    newest = dict(zip(known["dataset"], known[FILES], strict=True))
    for label, dataset, draw, seed, files in zip(*(known[name] for name in ("label", "dataset", "draw", "seed", FILES)), strict=True):
        if files != newest[dataset]:
            than = f"the newest cell of {naming.dataset(dataset)} ({newest[dataset][:8]}), not compared with it"
            note = f"{_in_words(draw, seed)}: of other data files ({files[:8]}) than {than}"
            found[label, dataset] = (*found.get((label, dataset), ()), note)
    return found


def trained(frame: pd.DataFrame) -> "pd.Series[bool]":
    """Which of the stored cells were trained, and not only evaluated."""
    return frame.get("cost.steps", pd.Series(math.nan, index=frame.index)) != 0


def _of_newest_samples(frame: pd.DataFrame) -> pd.DataFrame:
    """Without cells that were trained on samples of an earlier version, where there are others, and without those that were trained on
    images without objects, where the draw's own are there; what is not trained stays."""
    if frame.empty:
        return frame
    learnt = frame[trained(frame)]
    newest = learnt.groupby("augmentation_stream")["stream_revision"].transform("max")
    drawn = learnt.groupby(["label", "dataset", "draw", "seed"])["draw_revision"].transform("max")
    return frame.drop(learnt.index[(learnt["stream_revision"] < newest) | (learnt["draw_revision"] < drawn)])


def _rates(frame: pd.DataFrame, naming: Labels) -> tuple[str, ...]:
    """A note with the learning rates of the methods that train, where they are not all the same."""
    learnt = frame if frame.empty else frame[trained(frame)]
    if learnt.empty or learnt["lr"].nunique() < 2:
        return ()
    by_rate: dict[str, list[str]] = {}
    for label, cells in learnt.groupby("label"):
        for rate, of in cells.groupby("lr"):
            where = "" if len(of) == len(cells) else f" on {', '.join(map(naming.dataset, sorted(set(of['dataset']))))}"
            by_rate.setdefault(str(rate), []).append(f"{naming.method(str(label))}{where}")
    usual = max(by_rate, key=lambda rate: len(by_rate[rate]))
    others = f"; all others {usual}" if len(by_rate[usual]) > FEW else ""
    said = (f"{rate}: {', '.join(labels)}" for rate, labels in sorted(by_rate.items()) if not others or rate != usual)
    return (f"Learning rates: {'; '.join(said)}{others}.",)


def _current(frame: pd.DataFrame, names: list[str], identity: str, asked: Mapping[tuple[str, ...], str]) -> pd.DataFrame:
    """Of the cells that go by the same names, those of one identity: the one that the last run asked for, else the one of
    the highest revision, else the one stored last."""
    if frame.empty:
        return frame
    newest = _ranked(frame).groupby(names)[identity].transform("last").reindex(frame.index)
    places = zip(*(frame[name] for name in names), strict=True)
    chosen = [asked.get(place, other) for place, other in zip(places, newest, strict=True)]
    return frame[frame[identity] == chosen]


def _ranked(frame: pd.DataFrame) -> pd.DataFrame:
    """The newest last."""
    if frame.empty:
        return frame
    time = frame[TIME].fillna("") if TIME in frame else ""
    return (
        frame.assign(time=time)
        .sort_values(["method_revision", "dataset_revision", "time", "method_id", "recipe"], kind="stable")
        .drop(columns="time")
    )


def _first_selection(frame: pd.DataFrame) -> str:
    return str(frame["selection"].value_counts(sort=False).sort_index().idxmax()) if len(frame) else "not known yet"


def values_of(frame: pd.DataFrame, selection: str, rule: str, metric: str) -> "pd.Series[float]":
    """A metric's value of every cell, from its record or else from its rows by image; NaN where it cannot be computed."""
    column = f"{selection}.{metric}_{rule}"
    if column in frame or metric in RECORDED:
        return frame.get(column, pd.Series(math.nan, index=frame.index))
    return pd.Series([score_of(Path(path), selection, rule, metric) for path in frame.get("path", ())], frame.index, dtype=float)


def _lack(frame: pd.DataFrame, selection: str, metric: str) -> tuple[str, ...]:
    """One sentence: from which cells a metric cannot be computed; none where it can from all."""
    found = {str(path): names for path in frame.get("path", ()) if (names := lacks(Path(path), selection, metric))}
    if not found:
        return ()
    path, names = next(iter(found.items()))
    columns = " and ".join(f"`{name}`" for name in names)
    return (f"{metric} cannot be computed from {len(found)} of {len(frame)} cells, whose images.csv has no {columns}: such as {path}.",)


def _scores(frame: pd.DataFrame, selection: str, rule: str, metric: str = USUAL) -> dict[Position, dict[Run, float]]:
    scores: dict[Position, dict[Run, float]] = {}
    values = values_of(frame, selection, rule, metric)
    for label, dataset, draw, seed, value in zip(
        *(frame.get(name, []) for name in ("label", "dataset", "draw", "seed")), values, strict=True
    ):
        scores.setdefault((label, dataset), {})[int(draw), int(seed)] = float(value)
    return scores


def _gaps(store: ResultStore, asked: Iterable[GridCell], stored: set[str]) -> dict[Position, tuple[Gap, ...]]:
    gaps: dict[Position, tuple[Gap, ...]] = {}
    for cell in sorted((cell for cell in asked if cell.key not in stored), key=lambda cell: (cell.draw, cell.seed)):
        status = store.status_of(store.found(cell.folder))
        if status.phase != "stored":  # under another name than the grid's file has
            gap = ((cell.draw, cell.seed), status.phase, status.reason)
            gaps[cell.method, cell.dataset] = (*gaps.get((cell.method, cell.dataset), ()), gap)
    return gaps
