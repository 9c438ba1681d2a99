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

    A box around a network of roads says little: cells are evaluated by points. CAT-SAM's points were never released. Ours follow from
    the masks: of each object so many random pixels, by a generator whose seed is crc32("mass_roads/NAME") of the image's name, so that
    they are one fixed list for whoever has the archive.
    """

    title = "Massachusetts Roads"
    home = "https://www.cs.toronto.edu/~vmnih/data"
    archive = "the folder mass_roads as it lies there, file by file (wget -r -np), with train, valid and test"
    licence = "none is stated on the page; the images are of the state of Massachusetts"
    ours = "the evaluation points (their number, and which: see datasets/mass_roads.py), and what counts as an object"
    zips = ("mass_roads",)
    folders: ClassVar = {"train": _folders("train"), "val": _folders("valid"), "test": _folders("test")}
    threshold = 127
    expected: ClassVar = {"train": Expected(1108), "val": Expected(14), "test": Expected(49)}
    pixels = (1500, 1500)
    rule = ObjectRule(connectivity=8, min_area=20)
    training_prompts = TrainingPrompts(max_objects=25)
