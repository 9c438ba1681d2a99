"""Massachusetts Roads: aerial images of 1500×1500 at 1 m, and their roads (V. Mnih, Machine Learning for Aerial Image Labeling, 2013)."""

from typing import ClassVar

from bench.grid.registry import DATASETS
from bench.types import ObjectRule, TrainingPrompts
from datasets.folder import Expected, FolderDataset, Folders


def _folders(split: str) -> Folders:
    return Folders(f"mass_roads/{split}/sat", f"mass_roads/{split}/map", ".tiff", ".tif")


@DATASETS.register("mass_roads")
class MassRoads(FolderDataset):
    """Mnih's three splits; his `valid` is `val`.

    A box around a network of roads says little: cells are evaluated by points. Neither CAT-SAM's points nor their number were released.
    Ours are five random pixels of each object, drawn from the masks by numpy's default generator with the seed crc32("mass_roads/NAME")
    of the image's name: one fixed list for whoever has the archive, which need not be stored, and could not be without it.
    """

    title = "Massachusetts Roads"
    home = "https://www.cs.toronto.edu/~vmnih/data"
    archive = "the folder mass_roads as it lies there, file by file (wget -r -np), with train, valid and test"
    licence = "none is stated on the page; the images are of the state of Massachusetts"
    ours = "the evaluation points, five of each object, which follow from the masks by a seed; what an object is; the few-shot draws"
    zips = ("mass_roads",)
    folders: ClassVar = {"train": _folders("train"), "val": _folders("valid"), "test": _folders("test")}
    threshold = 127
    expected: ClassVar = {"train": Expected(1108), "val": Expected(14), "test": Expected(49)}
    pixels = (1500, 1500)
    rule = ObjectRule(connectivity=8, min_area=20)
    training_prompts = TrainingPrompts(max_objects=25)
    settings: ClassVar = {"evaluation_prompt": "points(5)"}
