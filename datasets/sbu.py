"""SBU-shadow: photographs with cast shadows."""

from typing import ClassVar

from bench.grid.registry import DATASETS
from bench.types import ObjectRule
from datasets.folder import Expected, FolderDataset, Folders, stems

TRAIN, TEST = "SBU-shadow/SBUTrain4KRecoveredSmall", "SBU-shadow/SBU-Test"


@DATASETS.register("sbu")
class Sbu(FolderDataset):
    """The recovered small training set and the 638 test images."""

    title = "SBU Shadow"
    home = "https://www3.cs.stonybrook.edu/~cvl/projects/shadow_noisy_label"
    archive = "the archive SBU-shadow"
    zips = ("SBU-shadow.zip",)
    folders: ClassVar = {
        "train": Folders(f"{TRAIN}/ShadowImages", f"{TRAIN}/ShadowMasks", ".jpg", ".png"),
        "test": Folders(f"{TEST}/ShadowImages", f"{TEST}/ShadowMasks", ".jpg", ".png"),
    }
    threshold = 0
    expected: ClassVar = {
        "train": Expected(4089, tolerance=4, why="4,089 is the published number; copies with a few images fewer are in use"),
        "test": Expected(638),
    }
    rule = ObjectRule(connectivity=8, min_area=10, relative_area=0.001)
    official: ClassVar = {
        1: ("lssd1109",),
        16: stems("""
            lssd3356 lssd1409 lssd1090 lssd3732 lssd2011 lssd1901 lssd1821 lssd1512
            lssd3713 lssd1376 lssd3493 lssd3729 lssd610 lssd3008 lssd1319 lssd1109
            """),
    }
