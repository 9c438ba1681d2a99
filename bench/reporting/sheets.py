"""Which sheets of predictions a store gives, of which cells, and on which images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.errors import RequestError
from bench.grid.published import ordered
from bench.grid.store import ResultStore
from bench.model.sam import Sam
from bench.reporting.comparable import CellQuery, ComparableCells, comparable_cells
from bench.reporting.image_selection import selected_images
from bench.reporting.pictures import prediction_sheet
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
    """The sheets of all comparable cells; a data set whose methods have no draw and seed in common has none."""
    for comparable in comparable_cells(store, query):
        for dataset in comparable.datasets:
            runs = [set(scores) for (_, name), scores in comparable.scores.items() if name == dataset]
            common = sorted(set.intersection(*runs)) if runs else []
            if common:
                frame = comparable.frame[comparable.frame["dataset"] == dataset]
                mine = frame[(frame["draw"] == common[0][0]) & (frame["seed"] == common[0][1])]
                folders = dict(zip(mine["label"], map(Path, mine["path"]), strict=True))
                naming = comparable.naming
                cells = {naming.method(label).replace(" (", "\n("): folders[label] for label in ordered(folders, naming.published)}
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
