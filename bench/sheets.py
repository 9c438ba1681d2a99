"""Sheets of predictions, or of training samples: python -m bench.sheets [--out results] [--images 0104,0110] [--data data]

python -m bench.sheets --training [--methods lora --datasets whu --shots 1 --protocol paper]

For every data set of every board (backbone, weights, shots, protocol) one picture: image with prompts, ground truth, and the mask
of every method with its IoU, each of the first draw and seed that all methods have. The images are the best, the median, the worst
and the one of largest disagreement, unless they are named. It predicts, so it needs the data and the checkpoint.

--training draws what training saw instead, its first samples in order: of the stored cells, or of a grid named as for `bench.run`, before
anything is trained. It needs the data alone.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path

from bench.errors import RequestError, one_sentence
from bench.grid.plan import Request, open_dataset, specs_of
from bench.grid.plugins import add_option
from bench.grid.published import PUBLISHED, heading, ordered, read_published
from bench.grid.store import ResultStore
from bench.model.backbones import PRETRAINED, checkpoint_path
from bench.model.checkpoints import load_sam
from bench.model.sam import Sam
from bench.reporting.comparable import CellQuery, ComparableCells, comparable_cells
from bench.reporting.image_selection import selected_images
from bench.reporting.pictures import prediction_sheet
from bench.reporting.training_sheets import stored_specs, training_sheets
from bench.types import Dataset


@dataclass(frozen=True)
class Sheet:
    """A sheet to be drawn: column title -> folder of a cell."""

    comparable: ComparableCells
    dataset: str
    cells: dict[str, Path]

    @property
    def name(self) -> str:
        """Its file name; the report takes what begins with `predictions_`."""
        return f"predictions_{self.comparable.name(self.dataset)}.png"


def sheets(store: ResultStore, query: CellQuery) -> Iterator[Sheet]:
    """The sheets of all boards; a data set whose methods have no draw and seed in common has none."""
    published = read_published(PUBLISHED["1"])
    for comparable in comparable_cells(store, query):
        for dataset in comparable.datasets:
            runs = [set(scores) for (_, name), scores in comparable.scores.items() if name == dataset]
            common = sorted(set.intersection(*runs)) if runs else []
            if common:
                frame = comparable.frame[comparable.frame["dataset"] == dataset]
                mine = frame[(frame["draw"] == common[0][0]) & (frame["seed"] == common[0][1])]
                folders = dict(zip(mine["label"], map(Path, mine["path"]), strict=True))
                cells = {heading(label, published).replace(" (", "\n("): folders[label] for label in ordered(folders, published)}
                yield Sheet(comparable, dataset, cells)


def draw(sheet: Sheet, dataset: Dataset, sam: Sam, folder: Path, images: Sequence[str] = ()) -> Path:
    """Writes the sheet and returns its path; RequestError where a named image is not a test image."""
    unknown = [name for name in images if name not in dataset.names("test")]
    if unknown:
        raise RequestError(f"{sheet.dataset} has no test image named {', '.join(unknown)}; images.csv of any of its cells lists them.")
    names = {name: name for name in images} or selected_images(list(sheet.cells.values()))
    shown = {title if title == name else f"{title}\n{name}": name for title, name in names.items()}
    path = folder / sheet.name
    prediction_sheet(sheet.cells, dataset, sam, path, shown)
    return path


def _draw_training(request: Request | None, given: argparse.Namespace) -> int:
    store = ResultStore(given.out)
    specs = specs_of(request, "", given.data) if request else list(stored_specs(store))
    wanted = [spec for spec in specs if spec.method.trains and given.dataset in (None, spec.dataset)]
    if not wanted:
        raise RequestError(f"No cell that is trained is named, or stored in {store.runs}: name some by --methods, --datasets, --shots, …")
    print(*training_sheets(store, wanted, given.data), sep="\n")
    return 0


@one_sentence
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.sheets", description="Sheets of predictions of the stored cells.")
    parser.add_argument("--out", default="results", type=Path, help="the results folder; sheets go to its figures/")
    parser.add_argument("--images", default="", help="names of test images, instead of those that are picked")
    parser.add_argument("--dataset", help="only this data set")
    parser.add_argument("--data", default="data", type=Path, help="folder of the data sets")
    parser.add_argument("--pretrained", default=PRETRAINED, type=Path, help="folder of SAM's checkpoints")
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
