"""Figures of stored cells, as PDF, SVG and PNG: python -m bench.figures [--out results]

For each backbone, checkpoint, number of shots and protocol there are bars with intervals, cost against mIoU, training curves, the best
two methods image by image, and ranks over data sets; and mIoU by shots across them. What has no cells is not drawn.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.errors import one_sentence
from bench.grid.store import ResultStore
from bench.reporting.comparable import CellQuery
from bench.reporting.figures import pictures
from bench.reporting.style import save


@one_sentence
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.figures", description="Figures of the stored cells.")
    parser.add_argument("--out", default="results", type=Path, help="the results folder; figures go to its figures/")
    parser.add_argument("--rule", default="all", help="what images without any object count")
    given = parser.parse_args(arguments)
    for picture in pictures(ResultStore(given.out), CellQuery(rule=given.rule)):
        with picture.draw() as figure:
            print(*save(figure, given.out / "figures", picture.name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
