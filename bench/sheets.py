"""Sheets of predictions: python -m bench.sheets [--out results] [--images 0104,0110] [--data data] [--pretrained pretrained]

For every data set of every backbone, checkpoint, number of shots and protocol one picture: image with prompts, ground truth, and the
mask of every method with its IoU, each of the first draw and seed that all methods have. The images are the best, the median, the worst
and the one of largest disagreement, unless they are named. It predicts, so it needs the data and the checkpoint.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from bench.errors import one_sentence
from bench.grid.plan import open_dataset
from bench.grid.plugins import add_option
from bench.grid.store import ResultStore
from bench.model.backbones import PRETRAINED, checkpoint_path
from bench.model.checkpoints import load_sam
from bench.reporting.comparable import CellQuery
from bench.reporting.sheets import draw, sheets


@one_sentence
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.sheets", description="Sheets of predictions of the stored cells.")
    parser.add_argument("--out", default="results", type=Path, help="the results folder; sheets go to its figures/")
    parser.add_argument("--images", default="", help="names of test images, instead of those that are picked")
    parser.add_argument("--dataset", help="only this data set")
    parser.add_argument("--data", default="data", type=Path, help="folder of the data sets")
    parser.add_argument("--pretrained", default=PRETRAINED, type=Path, help="folder of SAM's checkpoints")
    add_option(parser)
    given = parser.parse_args(arguments)
    images = [name.strip() for name in given.images.split(",") if name.strip()]
    load = cache(lambda backbone: load_sam(backbone, checkpoint_path(backbone, given.pretrained)))  # once, for all its sheets
    wanted = [sheet for sheet in sheets(ResultStore(given.out), CellQuery()) if given.dataset in (None, sheet.dataset)]
    for sheet in wanted:
        backbone = sheet.comparable.identity[0]
        sam = load(backbone)
        opened = open_dataset(sheet.dataset, given.data)
        print(draw(sheet, opened, sam, given.out / "figures", images))
    return 0


if __name__ == "__main__":
    sys.exit(main())
