"""Tables of the stored cells: on the terminal, and as files.

    python -m bench.tables                                 # ours, with intervals
    python -m bench.tables --like paper                    # beside the published numbers
    python -m bench.tables --rows method --columns dataset,shots --format md,latex

One model of a table is filled from the store and rendered by each format. Cells of different protocols, backbones, weights or
shots never share a table, unless a pivot (`--rows method --columns dataset,shots`)
names them in its rows or columns. It reads files only, takes a second, and needs neither a GPU nor torch. It exits with 0, or with 2
where there is nothing to show.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench.errors import RequestError, need_known, one_sentence
from bench.grid.command_line import command_parser
from bench.grid.metrics import RULES, USUAL
from bench.grid.protocol import SELECTIONS

if TYPE_CHECKING:
    from bench.reporting.table import Table


@one_sentence
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    given = _parser().parse_args(arguments)
    from bench.grid.progress import working  # not before the words are read
    from bench.reporting.formats import FORMATS
    from bench.reporting.tables import KINDS, print_and_write

    need_known("kind of table", (*KINDS, "all"), given.like)
    formats = [name.strip() for name in given.format.split(",")]
    need_known("table format", FORMATS, *formats)
    with working("Making tables"):
        made = _asked(given)
    print_and_write(made, formats, given.out[0] / "tables", not given.no_intervals, not given.no_n)
    return 0


def table(
    like: str = "plain", *, out: str | Path = "results", rows: str = "", columns: str = "", metric: str | None = None, **of: str | None
) -> "Table":
    """One table of the stored cells, which a notebook shows, and whose `frame()` has its numbers; `rows` and `columns` as in the command.

    of: fields of `CellQuery` (shots, protocol, backbone, selection, rule, against). RequestError where nothing is stored of these, or
    where it is several tables.
    """
    from bench.grid.store import ResultStore
    from bench.reporting.comparable import CellQuery
    from bench.reporting.pivot import Pivot
    from bench.reporting.tables import pivoted, tables

    query, store = CellQuery.of({**of, "metric": None if rows or columns else metric}), ResultStore(Path(out))
    made = pivoted(store, query, Pivot.of(rows, columns, metric or USUAL)) if rows or columns else tables(store, query, like)
    made = [one for one in made if one.name.startswith(f"{like}_")] or made  # of what says several things, the first
    if len(made) > 1:
        which = "; ".join(", ".join(f"{name} {value}" for name, value in one.context) for one in made)
        raise RequestError(f"These are {len(made)} tables: choose one by shots=, protocol= or backbone=. There are: {which}.")
    return made[0]


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("bench.tables", __doc__)
    kinds = "plain, paper (published beside ours), comparisons, efficiency, draws, aggregates, robustness, retention, tuning, "
    kinds += "shots, selections, rules, or all"
    parser.add_argument("--like", default="plain", metavar="KIND", help=kinds)
    parser.add_argument("--rows", help="a table of your own: fields for its rows (backbone, protocol, shots, dataset, method, …)")
    parser.add_argument("--columns", help="and for its columns")
    of_metric = "of `python -m bench.list metrics` , of a table of your own also a column as cost.steps; default: miou, of paper its own"
    parser.add_argument("--metric", help=of_metric)
    parser.add_argument("--format", default="md,csv", help="files to write: md, csv, latex, html")
    parser.add_argument("--no-intervals", action="store_true", help="leave intervals out, but in the CSV")
    parser.add_argument("--no-n", action="store_true", help="leave numbers of runs out, but in the CSV")
    parser.add_argument("--names", action="store_true", help="names as commands take them, instead of titles")
    parser.add_argument("--out", default=[Path("results")], type=Path, nargs="+", help="results folders; tables go to the first's tables/")
    parser.add_argument("--selection", choices=SELECTIONS, help="default: the one that the protocol puts first")
    parser.add_argument("--rule", default="all", choices=RULES, help="what images without any object count")
    parser.add_argument("--shots", help="only cells of this number of shots, or 'full'")
    parser.add_argument("--protocol", help="only cells of this protocol")
    parser.add_argument("--backbone", help="only cells of this backbone")
    parser.add_argument("--against", default="best", help="of comparisons and draws: each column's best, one method, or all pairs")
    return parser


def _asked(given: argparse.Namespace) -> "list[Table]":
    """The tables of a command line."""
    from bench.grid.store import ResultStore
    from bench.reporting.comparable import CellQuery
    from bench.reporting.pivot import Pivot
    from bench.reporting.tables import pivoted, tables

    query = CellQuery(given.selection, given.rule, given.shots, given.protocol, given.backbone, given.against, not given.names)
    if given.rows or given.columns:
        return pivoted(ResultStore(*given.out), query, Pivot.of(given.rows or "", given.columns or "", given.metric or USUAL))
    query = replace(query, metric=given.metric)
    return tables(ResultStore(*given.out), query, given.like)


if __name__ == "__main__":
    sys.exit(main())
