"""Figures of stored cells, as PDF, SVG and PNG: python -m bench.figures [--out results]

For each backbone, checkpoint, number of shots and protocol there are bars with intervals, cost against mIoU, training curves, the best
two methods image by image, and ranks over data sets; and mIoU by shots across them. What has no cells is not drawn. With `--rows rank
--columns lr` it is heat maps of these fields instead, as `bench.tables` makes tables of them.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.errors import one_sentence
from bench.grid.store import ResultStore
from bench.reporting.comparable import CellQuery
from bench.reporting.figures import heat_maps, pictures
from bench.reporting.pivot import POOLED, Pivot
from bench.reporting.style import save


@one_sentence
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.figures", description="Figures of the stored cells.")
    parser.add_argument(
        "--out", default=[Path("results")], type=Path, nargs="+", help="results folders; figures go to the first's figures/"
    )
    parser.add_argument("--rule", default="all", help="what images without any object count")
    parser.add_argument("--rows", help="heat maps instead: fields for their rows, as in bench.tables")
    parser.add_argument("--columns", help="and for their columns")
    parser.add_argument("--metric", default=POOLED, help="what they show")
    given = parser.parse_args(arguments)
    store, query = ResultStore(*given.out), CellQuery(rule=given.rule)
    swept = given.rows or given.columns
    drawn = heat_maps(store, query, Pivot.of(given.rows or "", given.columns or "", given.metric)) if swept else pictures(store, query)
    for picture in drawn:
        with picture.draw() as figure:
            print(*save(figure, given.out[0] / "figures", picture.name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
