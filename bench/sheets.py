"""Sheets of predictions, or of training samples.

    python -m bench.sheets                                 # predictions of the stored cells
    python -m bench.sheets --images 0104,0110 --dataset kvasir
    python -m bench.sheets --training --methods lora --datasets synth_polyps --backbone tiny --protocol demo

For every data set of every backbone, checkpoint, number of shots and protocol one picture: image with prompts, ground truth, and the
mask of every method with its IoU, each of the first draw and seed that all methods have. The images are the best, the median, the worst
and the one of largest disagreement, unless they are named. It predicts, so it needs the data and the checkpoint.

--training draws what training saw instead, its first samples in order: of the stored cells, or of a grid named as for `bench.run`, before
anything is trained. It needs the data alone.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import cache
from pathlib import Path

from bench.errors import RequestError, one_sentence
from bench.grid.command_line import add_common, command_parser
from bench.grid.plan import Request, open_dataset, specs_of
from bench.grid.plugins import add_option
from bench.grid.progress import told
from bench.grid.store import ResultStore, read_record


def _draw_training(request: Request | None, given: argparse.Namespace) -> int:
    from bench.reporting.training_sheets import stored_specs, training_sheets

    store = ResultStore(given.out)
    specs = specs_of(request, "", given.data, out=given.out) if request else list(stored_specs(store))
    wanted = [spec for spec in specs if spec.method.trains and given.dataset in (None, spec.dataset)]
    if not wanted:
        raise RequestError(f"No cell that is trained is named, or stored in {store.runs}: name some by --methods, --datasets, --shots, …")
    for path in told(training_sheets(store, wanted, given.data), "Drawing sheet", str):
        print(path)
    return 0


@one_sentence
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = command_parser("bench.sheets", __doc__)
    parser.add_argument("--out", default="results", type=Path, help="the results folder; sheets go to its figures/")
    parser.add_argument("--images", default="", help="names of test images, instead of those that are picked")
    parser.add_argument("--dataset", help="only this data set")
    add_common(parser, "data", "pretrained")
    parser.add_argument("--training", action="store_true", help="training samples instead: of the stored cells, or of those named by")
    for field in fields(Request):
        parser.add_argument(f"--{field.name}", help="with --training, as for bench.run")
    add_option(parser)
    given = parser.parse_args(arguments)
    named = {field.name: value for field in fields(Request) if (value := getattr(given, field.name)) is not None}
    if named and not given.training:
        raise RequestError(f"--{next(iter(named))}: only with --training; sheets of predictions are of what is stored.")
    if given.training:
        return _draw_training(replace(Request(), **named) if named else None, given)
    return _draw(given)


def _draw(given: argparse.Namespace) -> int:
    from bench.model.checkpoints import load_sam
    from bench.reporting.comparable import CellQuery
    from bench.reporting.sheets import draw, sheets
    from bench.running.adapted import tuned_on

    images = [name.strip() for name in given.images.split(",") if name.strip()]
    load = cache(load_sam)  # once, for all its sheets
    wanted = [sheet for sheet in sheets(ResultStore(given.out), CellQuery()) if given.dataset in (None, sheet.dataset)]
    for sheet in told(wanted, "Drawing sheet", lambda sheet: sheet.name):
        cell = next(iter(sheet.cells.values()))
        sam = load(sheet.comparable.identity[0], tuned_on(cell, read_record(cell).spec, given.pretrained))
        opened = open_dataset(sheet.dataset, given.data)
        print(draw(sheet, opened, sam, given.out / "figures", images))
    return 0


if __name__ == "__main__":
    sys.exit(main())
