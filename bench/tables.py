"""Tables of stored cells: python -m bench.tables [--like paper] [--format md,csv] [--out results]

One model of a table is filled from the store and rendered by each format. Cells of different protocols, backbones, weights or
shots never share a table. It reads files only, takes a second, and needs neither a GPU nor torch. It exits with 0, or with 2
where there is nothing to show.
"""

import argparse
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from bench.boards import Ask, Board, Place, boards
from bench.errors import RequestError, unknown
from bench.protocol import SELECTIONS
from bench.spec import split_calls
from bench.store import ResultStore
from bench.table import FORMATS, Cell, Column, Row, Table, markdown

PAPER = Path(__file__).parent.parent / "results" / "paper"
PUBLISHED = {"1": PAPER / "one_shot.csv"}  # by shots
RULES = ("all", "empty_as_empty", "with_objects")


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
        (*_stand_ins(board), *_published_notes(board, published, paper_shots), *board.notes),
    )


def _beside(ours: Cell, theirs: float | None) -> tuple[Cell, Cell, Cell]:
    difference = None if ours.value is None or theirs is None else ours.value - theirs
    return ours, Cell(theirs), Cell(difference)


def _stand_ins(board: Board) -> tuple[str, ...]:
    """A warning where numbers are of generated images under a real data set's name."""
    if not len(board.frame) or not board.frame["generated"].any():
        return ()
    names = ", ".join(sorted(set(board.frame.loc[board.frame["generated"], "dataset"])))
    return (f"GENERATED STAND-INS, not the real images: {names}. These numbers say nothing about the real data sets.",)


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
    return Table(
        _name("plain", board), "Foreground mIoU (%)", _context(board), "method", columns, tuple(rows), (*_stand_ins(board), *board.notes)
    )


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
