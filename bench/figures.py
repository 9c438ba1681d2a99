"""Figures of the stored cells, as PDF, SVG and PNG.

    python -m bench.figures                                # to results/figures/
    python -m bench.figures --out mine colleague --metric ber
    python -m bench.figures --rows rank --columns lr       # a heat map of a sweep

For each backbone, checkpoint, number of shots and protocol there are bars with intervals, cost against mIoU, training curves, the best
two methods image by image, the official draw among others, interquartile means, performance profiles, probabilities of improvement and
ranks; and mIoU by shots across them. What has no cells is not drawn. With `--rows rank --columns lr` it is heat maps of these fields
instead, as `bench.tables` makes tables of them.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.errors import RequestError, one_sentence, unknown
from bench.grid.command_line import command_parser

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@one_sentence
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = command_parser("bench.figures", __doc__)
    parser.add_argument(
        "--out", default=[Path("results")], type=Path, nargs="+", help="results folders; figures go to the first's figures/"
    )
    parser.add_argument("--rule", default="all", help="what images without any object count")
    parser.add_argument("--rows", help="heat maps instead: fields for their rows, as in bench.tables")
    parser.add_argument("--columns", help="and for their columns")
    parser.add_argument("--metric", help="of `python -m bench.list metrics`, of heat maps also a column; default: miou")
    given = parser.parse_args(arguments)
    return _draw(given)


def _draw(given: argparse.Namespace) -> int:
    from bench.grid.progress import told
    from bench.grid.store import ResultStore
    from bench.reporting.comparable import CellQuery
    from bench.reporting.figures import heat_maps, pictures
    from bench.reporting.pivot import Pivot
    from bench.reporting.style import save

    swept = given.rows or given.columns
    store, query = ResultStore(*given.out), CellQuery(rule=given.rule, metric=None if swept else given.metric)
    pivot = Pivot.of(given.rows or "", given.columns or "", given.metric or "miou") if swept else None
    drawn = heat_maps(store, query, pivot) if pivot else pictures(store, query)
    for picture in told(drawn, "Drawing figure", lambda picture: picture.name):
        print(*save(picture.draw(), given.out[0] / "figures", picture.name))
    return 0


def figure(kind: str = "bars", *, out: str | Path = "results", **of: str | None) -> "Figure":
    """One figure of the stored cells, as the command draws it: bars, parameters, memory, time, curves, images, draws, iqm,
    profile, improvement, ranks or shots.

    of: fields of `CellQuery` (shots, protocol, backbone, rule). RequestError where there is none of these, or where it is several.
    """
    from bench.grid.store import ResultStore
    from bench.reporting.comparable import CellQuery
    from bench.reporting.figures import pictures

    found = {picture.name: picture for picture in pictures(ResultStore(Path(out)), CellQuery.of(of))}
    named = [picture for name, picture in found.items() if name.partition("_")[0] == kind]
    if not named:
        raise unknown("figure", kind, {name.partition("_")[0] for name in found})
    if len(named) > 1:
        which = ", ".join(picture.name for picture in named)
        raise RequestError(f"These are {len(named)} figures: choose one by shots=, protocol= or backbone=. There are: {which}.")
    return named[0].draw()


if __name__ == "__main__":
    sys.exit(main())
