"""HRSID: ships in 800×800 images of synthetic aperture radar, annotated as COCO's instances (Wei et al., IEEE Access 2020)."""

from pathlib import Path
from typing import ClassVar

from bench.grid.registry import DATASETS
from bench.types import ObjectRule, Split
from datasets.coco import read_coco
from datasets.definition import Definition
from datasets.folder import ArchiveDataset, Expected, Survey

IMAGES, ANNOTATIONS = "HRSID_JPG/JPEGImages", "HRSID_JPG/annotations"
FILES: dict[Split, str] = {"train": "train2017.json", "test": "test2017.json"}


@DATASETS.register("hrsid")
class Hrsid(ArchiveDataset):
    """The authors' split, 65 to 35. Every annotation is an object, however small, as an average precision counts them."""

    title = "HRSID"
    home = "https://github.com/chaozhong2010/HRSID"
    archive = "the JPG release, HRSID_JPG (5,604 images with 16,951 ships; not the PNG one, whose folders differ)"
    licence = "the repository states none; its page asks for a citation"
    ours = "the few-shot draws; no list was published"
    zips = ("HRSID_JPG.zip",)
    expected: ClassVar = {"train": Expected(3642), "test": Expected(1962)}
    pixels = (800, 800)
    rule = ObjectRule(min_area=0)
    metric = "ap"

    @classmethod
    def needs(cls) -> tuple[tuple[str, str], ...]:
        """One folder of images, and the annotations of both splits."""
        return ((IMAGES, ".jpg"), *((ANNOTATIONS, name) for name in FILES.values()))

    @classmethod
    def survey(cls, data: Path) -> Survey:
        """The images that the two files list; what is wrong with one of them or with an annotation is a fault."""
        root = cls.root(data)
        found = Survey({}, cls.listings(root)[1])
        for split, name in FILES.items() if not found.faults else ():
            path = root / ANNOTATIONS / name
            coco = read_coco(path, root / IMAGES, Definition())
            of_split = Survey({split: coco.images}, tuple(coco.faults), tuple(coco.notes), {f"{ANNOTATIONS}/{name}": path})
            found = found.with_part(of_split)
        return found
