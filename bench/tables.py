"""Tables of stored cells: python -m bench.tables [--like paper] [--format md,csv] [--out results]

One model of a table is filled from the store and rendered by each format. Cells of different protocols, backbones, weights or
shots never share a table. It reads files only, takes a second, and needs neither a GPU nor torch. It exits with 0, or with 2
where there is nothing to show.
"""

import argparse
import io
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from csv import writer
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pandas as pd
from tabulate import tabulate

from bench.errors import RequestError, unknown
from bench.protocol import SELECTIONS
from bench.spec import split_calls
from bench.store import Damaged, GridCell, ResultStore

PAPER = Path(__file__).parent.parent / "results" / "paper"
PUBLISHED = {"1": PAPER / "one_shot.csv"}  # by shots
RULES = ("all", "empty_as_empty", "with_objects")
Place = tuple[str, str]  # row label, data set
Run = tuple[int, int]  # draw, seed


@dataclass(frozen=True)
class Column:
    """A column below a group's heading; `digits` behind the point, `signed` shows the plus of a difference."""

    group: str
    name: str
    digits: int = 1
    signed: bool = False


@dataclass(frozen=True)
class Cell:
    """A number with its spread, or a `reason` why there is none; `notes` become footnotes, `of` is the runs asked for."""

    value: float | None = None
    spread: float | None = None
    n: int | None = None
    of: int | None = None
    reason: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """A row's heading and its cells, one a column."""

    heading: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """A table before any format: `context` says what all its numbers have in common, `notes` stand below it."""

    name: str
    title: str
    context: tuple[tuple[str, str], ...]
    corner: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()


def markdown(table: Table) -> str:
    """The table as GitHub's markdown, aligned so that it also reads in a terminal; each gap's reason is a footnote."""
    footnotes: list[str] = []
    body = [
        [_one_line(row.heading), *(_text(*pair, footnotes) for pair in zip(row.cells, table.columns, strict=True))] for row in table.rows
    ]
    heads = [table.corner, *(f"{column.group} {column.name}".strip() for column in table.columns)]
    align = ("left", *("right" for _ in table.columns))
    grid = tabulate(body, [_one_line(head) for head in heads], tablefmt="pipe", colalign=align, disable_numparse=True)
    common = " · ".join(f"{name} {value}" for name, value in table.context)
    notes = [*table.notes, *(f"[^{i}]: {note}" for i, note in enumerate(footnotes, 1))]
    return "\n\n".join([f"### {table.title}", _one_line(common), grid, *map(_one_line, notes)]) + "\n"


def csv(table: Table) -> str:
    """The table as CSV, a line a cell, in full precision; the context is repeated on every line."""
    text = io.StringIO()
    out = writer(text, lineterminator="\n")
    out.writerow([*(name for name, _ in table.context), "row", "group", "column", "value", "spread", "n", "n_asked", "reason", "notes"])
    for row in table.rows:
        for column, cell in zip(table.columns, row.cells, strict=True):
            place = [*(value for _, value in table.context), row.heading, column.group, column.name]
            out.writerow([*place, *_numbers(cell), cell.reason, "; ".join(cell.notes)])
    return text.getvalue()


FORMATS: Mapping[str, Callable[[Table], str]] = {"md": markdown, "csv": csv}


def _text(cell: Cell, column: Column, footnotes: list[str]) -> str:
    """A cell's text; adds its notes to the footnotes and refers to them."""
    for note in cell.notes:
        if note not in footnotes:
            footnotes.append(note)
    marks = "".join(f" [^{footnotes.index(note) + 1}]" for note in cell.notes)
    if cell.value is None:
        return _one_line(cell.reason or "-") + marks
    sign = "+" if column.signed else ""
    number = f"{cell.value:{sign},.{column.digits}f}"
    spread = "" if cell.spread is None else f" ± {cell.spread:.{column.digits}f}"
    return number + spread + _count(cell) + marks


def _count(cell: Cell) -> str:
    if cell.n is None or (cell.n == 1 and cell.of in (None, 1)):
        return ""
    return f" (n={cell.n})" if cell.of in (None, cell.n) else f" (n={cell.n} of {cell.of})"


def _numbers(cell: Cell) -> list[str]:
    return ["" if number is None else repr(number) for number in (cell.value, cell.spread, cell.n, cell.of)]


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


@dataclass(frozen=True)
class Ask:
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
class Board:
    """The cells that share a table.

    identity: (backbone, protocol, shots, checkpoint); frame: the stored cells, one row each, as `bench.store.row`;
    gaps: for every cell that was asked for and is not stored, its run, phase and reason.
    """

    identity: tuple[str, str, str, str]
    selection: str
    rule: str
    frame: pd.DataFrame
    gaps: Mapping[Place, tuple[tuple[Run, str, str], ...]]
    notes: tuple[str, ...]
    scores: Mapping[Place, Mapping[Run, float]] = field(default_factory=dict)

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
        return Cell(mean(scores.values()), _spread(scores.values()), len(scores), of, notes=notes)

    def average(self, label: str, datasets: Sequence[str]) -> Cell:
        """The mean of the data sets' means, if all of them are there; its spread is that of the runs that all of them have."""
        cells = {dataset: self.cell(label, dataset) for dataset in datasets}
        missing = [dataset for dataset, cell in cells.items() if cell.value is None]
        if missing:
            return Cell(reason=f"lacks {', '.join(missing)}")
        runs = [self.scores[label, dataset] for dataset in datasets]
        common = sorted(set.intersection(*map(set, runs)))
        same = all(len(scores) == len(common) for scores in runs)
        spread = _spread([mean(scores[run] for scores in runs) for run in common]) if same else None
        partial = any(cell.n != cell.of for cell in cells.values())
        notes = ("of data sets with missing runs or with different runs",) if partial or not same else ()
        return Cell(mean(_value(cell) for cell in cells.values()), spread, len(common) if same else None, notes=notes)


def _value(cell: Cell) -> float:
    if cell.value is None:
        raise ValueError("a cell without a value has no part in an average")
    return cell.value


def _spread(values: Iterable[float]) -> float | None:
    numbers = list(values)
    return stdev(numbers) if len(numbers) > 1 else None


def _worst(phases: Iterable[str]) -> str:
    found = set(phases)
    return next(phase for phase in ("failed", "unfinished", "pending") if phase in found)


def _gap_note(gap: tuple[Run, str, str]) -> str:
    (draw, seed), phase, reason = gap
    run = f"seed {seed}" if draw == 0 else f"draw {draw} seed {seed}"
    return f"{run}: {phase}" if phase == "pending" else f"{run}: {phase}: {reason}"


def boards(store: ResultStore, ask: Ask) -> list[Board]:
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
    taken = [key for key in found if ask.takes(key[2], key[1], key[0])]
    if not taken:
        there = "; ".join(f"{backbone}, {protocol}, {shots} shots" for backbone, protocol, shots, _ in found)
        raise RequestError(f"No cell is of the shots, protocol and backbone asked for; there are: {there}.")
    notes = _damage_notes(store, scan.damaged)
    return [_board(store, ask, key, stored.get(key, scan.table.head(0)), asked.get(key, []), notes) for key in taken]


def _identity(key: Iterable[object]) -> tuple[str, str, str, str]:
    backbone, protocol, shots, checkpoint = map(str, key)
    return backbone, protocol, shots, checkpoint


def _grouped(frame: pd.DataFrame, columns: list[str]) -> list[tuple[tuple[Any, ...], pd.DataFrame]]:
    if frame.empty:
        return []
    return [(key if isinstance(key, tuple) else (key,), part) for key, part in frame.groupby(columns, sort=False)]


def _damage_notes(store: ResultStore, damaged: Iterable[Damaged]) -> tuple[str, ...]:
    return tuple(f"Left out: {item.path.relative_to(store.root).as_posix()}: {item.reason}." for item in damaged)


def _board(
    store: ResultStore, ask: Ask, key: tuple[str, str, str, str], frame: pd.DataFrame, asked: list[GridCell], notes: tuple[str, ...]
) -> Board:
    one_method = _current(frame, ["label"], "method_id", {(cell.method,): cell.method_id for cell in asked})
    current = _current(one_method, ["label", "dataset"], "recipe", {(cell.method, cell.dataset): cell.recipe for cell in asked})
    left_out = len(frame) - len(current)
    if left_out:
        notes = (*notes, f"Left out: cells of an older revision or of other settings under the same names ({left_out}).")
    selection = ask.selection or _first_selection(current)
    scores = _scores(current, f"{selection}.miou_{ask.rule}")
    return Board(key, selection, ask.rule, current, _gaps(store, asked, set(frame.get("key", ()))), notes, scores)


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


def _scores(frame: pd.DataFrame, column: str) -> dict[Place, dict[Run, float]]:
    scores: dict[Place, dict[Run, float]] = {}
    values = frame[column] if column in frame else [math.nan] * len(frame)
    for label, dataset, draw, seed, value in zip(
        *(frame.get(name, []) for name in ("label", "dataset", "draw", "seed")), values, strict=True
    ):
        scores.setdefault((label, dataset), {})[int(draw), int(seed)] = float(value)
    return scores


def _gaps(store: ResultStore, asked: Iterable[GridCell], stored: set[str]) -> dict[Place, tuple[tuple[Run, str, str], ...]]:
    gaps: dict[Place, tuple[tuple[Run, str, str], ...]] = {}
    for cell in sorted((cell for cell in asked if cell.key not in stored), key=lambda cell: (cell.draw, cell.seed)):
        status = store.status_of(store.runs / cell.folder)
        gap = ((cell.draw, cell.seed), status.phase, status.reason)
        gaps[cell.method, cell.dataset] = (*gaps.get((cell.method, cell.dataset), ()), gap)
    return gaps


@dataclass(frozen=True)
class Published:
    """A published table: titles and numbers by method name; `source` is where they stand."""

    titles: Mapping[str, str]
    numbers: Mapping[Place, float]
    datasets: tuple[str, ...]
    source: str

    def of(self, label: str, column: str) -> float | None:
        """The number for a row; None where parameters other than the decoder were changed, or nothing was published."""
        name, others = _parts(label)
        return None if others else self.numbers.get((name, column))


def read_published(path: Path) -> Published:
    """A file of `results/paper`: method, label, a column a data set, average, source."""
    frame = pd.read_csv(path, index_col="method")
    columns = [str(name) for name in frame.columns if name not in ("label", "source")]
    numbers = {(str(method), name): float(value) for name in columns for method, value in frame[name].dropna().items()}
    titles = {str(method): str(title) for method, title in frame["label"].items()}
    return Published(titles, numbers, tuple(name for name in columns if name != "average"), str(frame["source"].iloc[0]))


NOTHING_PUBLISHED = Published({}, {}, (), "")


def paper_table(board: Board, published: Published, paper_shots: bool = True) -> Table:
    """Methods as rows in the paper's order; for its data sets and their average: ours, the published number and Δ.

    `paper_shots`: whether the published numbers are of this board's number of shots; where they are not, none is shown.
    """
    groups = (*published.datasets, "average")
    columns = tuple(Column(group, name, signed=name == "Δ") for group in groups for name in ("ours", "published", "Δ"))
    rows = []
    for label in _ordered(board.labels_of(published.datasets), published):
        ours = [*(board.cell(label, dataset) for dataset in published.datasets), board.average(label, published.datasets)]
        theirs = [published.of(label, group) if paper_shots else None for group in groups]
        rows.append(Row(_heading(label, published), tuple(cell for pair in zip(ours, theirs, strict=True) for cell in _beside(*pair))))
    return Table(
        _name("paper", board),
        "Foreground mIoU (%): ours, published, and Δ = ours - published",
        _context(board),
        "method",
        columns,
        tuple(rows),
        (*_published_notes(board, published, paper_shots), *board.notes),
    )


def _beside(ours: Cell, theirs: float | None) -> tuple[Cell, Cell, Cell]:
    difference = None if ours.value is None or theirs is None else ours.value - theirs
    return ours, Cell(theirs), Cell(difference)


def _published_notes(board: Board, published: Published, paper_shots: bool) -> tuple[str, ...]:
    if not paper_shots:
        return (f"No numbers were published for {board.identity[2]} shots.",)
    notes = [f"Published: {published.source}."]
    if board.identity[0].replace("_", "-").lower() not in published.source.lower():
        notes.append(f"Δ compares different backbones: ours is {board.identity[0]}.")
    if board.rule != "all":
        notes.append("Δ compares different rules for images without objects: the published numbers count them all.")
    return tuple(notes)


def plain_table(board: Board, published: Published, paper_shots: bool = True) -> Table:
    """Methods as rows; trainable parameters and their share, every data set, and the average where there are several."""
    datasets = board.datasets
    several = ["average"] if len(datasets) > 1 else []
    columns = (Column("", "trainable", digits=0), Column("", "share %", digits=2), *(Column("", name) for name in (*datasets, *several)))
    sizes = _sizes(board.frame)
    rows = []
    for label in _ordered(board.labels_of(datasets), published):
        scores = [board.cell(label, dataset) for dataset in datasets] + [board.average(label, datasets) for _ in several]
        rows.append(Row(_heading(label, published), (*_size_cells(sizes.get(label, set())), *scores)))
    return Table(_name("plain", board), "Foreground mIoU (%)", _context(board), "method", columns, tuple(rows), board.notes)


def _sizes(frame: pd.DataFrame) -> dict[str, set[tuple[int, int]]]:
    """The (trainable, total) parameters of each row's cells."""
    sizes: dict[str, set[tuple[int, int]]] = {}
    columns = ("label", "cost.trainable_parameters", "cost.total_parameters")
    for label, trainable, total in zip(*(frame.get(name, [math.nan] * len(frame)) for name in columns), strict=True):
        if not (pd.isna(trainable) or pd.isna(total)):
            sizes.setdefault(label, set()).add((int(trainable), int(total)))
    return sizes


def _size_cells(sizes: set[tuple[int, int]]) -> tuple[Cell, Cell]:
    if not sizes:
        return Cell(), Cell()
    trainable, total = max(sizes)
    notes = ("the largest of its cells, which differ",) if len(sizes) > 1 else ()
    return Cell(trainable, notes=notes), Cell(100 * trainable / max(total, 1), notes=notes)


LIKE: Mapping[str, Callable[[Board, Published, bool], Table]] = {"paper": paper_table, "plain": plain_table}


def _ordered(labels: Iterable[str], published: Published) -> list[str]:
    """Rows in the paper's order, then other methods, then variants with other parameters."""
    order = {name: i for i, name in enumerate(published.titles)}

    def rank(label: str) -> tuple[bool, int, str]:
        name, others = _parts(label)
        return bool(others), order.get(name, len(order)), label

    return sorted(labels, key=rank)


def _parts(label: str) -> tuple[str, list[str]]:
    """A label's method and its changed parameters, the decoder left aside."""
    name, _, shown = label.partition("(")
    return name, [part for part in split_calls(shown.removesuffix(")")) if not part.startswith("decoder=")]


def _heading(label: str, published: Published) -> str:
    name, _, shown = label.partition("(")
    values = ", ".join(split_calls(shown.removesuffix(")"))).replace("=", ": ")
    return published.titles.get(name, name) + (f" ({values})" if values else "")


def _context(board: Board) -> tuple[tuple[str, str], ...]:
    backbone, protocol, shots, checkpoint = board.identity
    prompts = sorted(set(board.frame["evaluation_prompt"])) if len(board.frame) else []
    common = (("backbone", backbone), ("weights", checkpoint[:8]), ("shots", shots), ("protocol", protocol))
    return (*common, ("prompts", "+".join(prompts) or "-"), ("selection", board.selection), ("rule", board.rule))


def _name(kind: str, board: Board) -> str:
    backbone, protocol, shots, checkpoint = board.identity
    words = (kind, backbone, checkpoint[:8], f"{shots}shot", protocol, board.selection, board.rule)
    return re.sub(r"[^\w.=+-]+", "-", "_".join(words)).strip("-")


READING = "Mean ± standard deviation over the n draws and seeds (one where no n is given); mIoU is pooled over all test pixels."


def tables(store: ResultStore, ask: Ask, like: str = "plain") -> list[Table]:
    """The tables that a kind (`LIKE`) makes of the store; RequestError, one sentence, where there is nothing to show."""
    made = []
    reference = read_published(PUBLISHED["1"])
    for board in boards(store, ask):
        path = PUBLISHED.get(board.identity[2])
        made.append(LIKE[like](board, read_published(path) if path else reference, path is not None))
    shown = [replace(table, notes=(READING, *table.notes)) for table in made if table.rows]
    if not shown:
        raise RequestError(f"No cell is of the data sets {', '.join(reference.datasets)}, which --like {like} is about: leave it out.")
    return shown


def write(table: Table, formats: Iterable[str], folder: Path) -> None:
    """Writes `<folder>/<name>.<format>` for each format."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in formats:
        (folder / f"{table.name}.{name}").write_text(FORMATS[name](table))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.tables", description="Tables of the stored cells, printed as markdown.")
    parser.add_argument("--like", default="plain", choices=LIKE, help="the paper's table, beside its numbers, or a plain one")
    parser.add_argument("--format", default="md,csv", help=f"files to write: {','.join(FORMATS)}")
    parser.add_argument("--out", default="results", type=Path, help="the results folder; tables go to its tables/")
    parser.add_argument("--selection", choices=SELECTIONS, help="default: the one that the protocol puts first")
    parser.add_argument("--rule", default="all", choices=RULES, help="what images without any object count")
    parser.add_argument("--shots", help="only cells of this number of shots, or 'full'")
    parser.add_argument("--protocol", help="only cells of this protocol")
    parser.add_argument("--backbone", help="only cells of this backbone")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    given = _parser().parse_args(arguments)
    try:
        formats = [name.strip() for name in given.format.split(",")]
        for name in formats:
            if name not in FORMATS:
                raise unknown("table format", name, FORMATS)
        ask = Ask(given.selection, given.rule, given.shots, given.protocol, given.backbone)
        for table in tables(ResultStore(given.out), ask, given.like):
            write(table, formats, given.out / "tables")
            print(markdown(table))
    except BrokenPipeError:  # the reader has seen enough (`| head`); nothing may be flushed to it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (RequestError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
