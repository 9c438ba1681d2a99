"""Marine debris in a water tank, seen by forward-looking sonar: 480×320 grey images with eleven classes (arXiv 2108.06800)."""

from typing import ClassVar

from bench.grid.registry import DATASETS
from bench.types import ObjectRule, Split, hash_order
from datasets.folder import Expected, FolderDataset, Folders

IMAGES, TESTED = 1868, 617
FOLDERS = Folders("watertank-segmentation/Images", "watertank-segmentation/Masks", ".png", ".png")
STEM = "marine-debris-aris3k-{}".format
TEST = frozenset(hash_order([STEM(number) for number in range(IMAGES)], "fls", "test")[:TESTED])  # whichever of them are there


@DATASETS.register("fls")
class Fls(FolderDataset):
    """The images of one folder; a mask's values are class ids, and each connected part of a class is an object.

    The authors trained on 1,000 images, chose on 251 and tested on 617, and published no list: the 617 whose name has the smallest
    hash are our test split, and 251 of the others are `val`. It is not the split of any paper.
    """

    title = "Marine debris (FLS)"
    home = "https://github.com/mvaldenegro/marine-debris-fls-datasets"
    archive = "the folder md_fls_dataset/data/watertank-segmentation of the repository, whose zip is as good"
    licence = "the repository states none"
    ours = "the split: 617 test and 251 val images by a hash of their names, as many as the authors took, who published no list; the draws"
    zips = ("marine-debris-fls-datasets-master.zip",)
    folders: ClassVar = {"train": FOLDERS, "test": FOLDERS}
    threshold = 0
    classes: ClassVar = dict(
        enumerate(
            ["Bottle", "Can", "Chain", "Drink-carton", "Hook", "Propeller", "Shampoo-bottle", "Standing-bottle", "Tire", "Valve", "Wall"],
            start=1,
        )
    )
    expected: ClassVar = {"train": Expected(IMAGES - TESTED), "test": Expected(TESTED)}
    pixels = (480, 320)
    rule = ObjectRule(connectivity=8, min_area=10)
    val_images = 251
    metric = "class_miou"

    @classmethod
    def uses(cls, split: Split, stem: str) -> bool:
        """By the hash of its name."""
        return (stem in TEST) == (split == "test")
