"""WHU Building: aerial tiles with roofs, 512×512 at 0.3 m."""

from typing import ClassVar

from bench.grid.registry import DATASETS
from bench.types import ObjectRule, TrainingPrompts
from datasets.folder import Expected, FolderDataset, Folders, stems

TILES = "3. The cropped image tiles and raster labels"


@DATASETS.register("whu")
class Whu(FolderDataset):
    """The archive's `val` folder is the test split, as in the reference; its own `test` folder is another split, and unused."""

    title = "WHU Building"
    home = "http://gpcv.whu.edu.cn/data/building_dataset.html"
    archive = f"the 0.3 m aerial set '{TILES}' (8,189 tiles of 512×512, not the 0.2 m one)"
    zips = ("3. The cropped aerial image tiles and raster labels.zip",)
    folders: ClassVar = {
        "train": Folders(f"{TILES}/train/image", f"{TILES}/train/label", ".tif", ".tif"),
        "test": Folders(f"{TILES}/val/image", f"{TILES}/val/label", ".tif", ".tif"),
    }
    threshold = 254
    expected: ClassVar = {
        "train": Expected(4736, tolerance=1, why="the page says 8,189 tiles, but 4,736 + 1,036 + 2,416 of train, val and test are 8,188"),
        "test": Expected(1036),
    }
    pixels = (512, 512)
    rule = ObjectRule(connectivity=4, min_area=20)
    training_prompts = TrainingPrompts(max_objects=25, noise_scale=2, noise_threshold=0.0)
    official: ClassVar = {
        1: ("2432",),
        16: stems("168 515 807 1176 1552 1901 2432 2679 3130 3486 3678 3939 4263 4335 4640 4725"),
    }
