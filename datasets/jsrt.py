"""JSRT: 247 chest radiographs, 2048×2048 of 12 bits, with SCR's outlines of lungs, heart and clavicles, 1024×1024."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np

from bench.data.image_files import Bytes, eight_bits
from bench.data.objects import class_map_of
from bench.errors import DataError
from bench.grid.registry import DATASETS
from bench.types import ObjectRule, Sample, Split
from datasets.folder import ArchiveDataset, Expected, Survey

IMAGES = "All247images"
BITS = 12
STRUCTURES = {"right lung": 1, "left lung": 1, "heart": 2, "right clavicle": 3, "left clavicle": 3}  # SCR's folders, our class ids
FOLDS: dict[Split, str] = {"train": "scratch/fold1/masks", "test": "scratch/fold2/masks"}


@dataclass(frozen=True)
class Radiograph:
    """A raw image and the masks of its structures, in the order of STRUCTURES. Masks may overlap: clavicles lie on the lungs."""

    image: Path
    masks: tuple[Path, ...]

    def read(self, name: str) -> Sample:
        """The sample at the masks' size, an object a structure."""
        image, masks = read_raw(self.image), [_mask(path) for path in self.masks]
        for path, mask in zip(self.masks, masks, strict=True):
            if image.shape != tuple(2 * side for side in mask.shape):
                sizes = f"{image.shape} pixels (H, W) and its mask {path} {mask.shape}"
                raise DataError(f"The image {self.image} has {sizes}: twice as many a side are needed.")
        objects, classes = np.stack(masks), list(STRUCTURES.values())
        small = cv2.resize(image, objects.shape[:0:-1], interpolation=cv2.INTER_AREA)
        foreground = np.asarray(objects.any(axis=0), np.uint8)
        class_map = class_map_of(objects, classes)
        return Sample(name, np.dstack([small] * 3), foreground, objects, class_map=class_map, classes=np.array(classes, np.int64))

    def files(self) -> Mapping[str, Path]:
        """The image and its five masks."""
        return {"image": self.image, **dict(zip(STRUCTURES, self.masks, strict=True))}


def read_raw(path: Path) -> Bytes:
    """A raw image (n, n): 16 bits, the high byte first, of which 12 are used for the film's density, so that black is the largest.

    The upper 8 bits are kept and turned over. DataError where it is cut short or has more than 12 bits, as with the low byte first.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"The file {path} cannot be read: {error.strerror}.") from None
    side = math.isqrt(len(content) // 2)
    if not side or 2 * side * side != len(content):
        raise DataError(f"The file {path} has {len(content):,} bytes: it is cut short, or no square image of 16 bits, as JSRT's are.")
    values = np.frombuffer(content, ">u2").reshape(side, side)
    return np.uint8(255) - eight_bits(f"image {path}", values, BITS)


def _mask(path: Path) -> np.ndarray:
    """A mask (H, W) bool of a gif, whose values are 0 and 255."""
    from PIL import Image

    try:
        with Image.open(path) as file:
            return np.asarray(file.convert("L")) > 127
    except (OSError, SyntaxError, ValueError, IndexError, EOFError) as error:
        raise DataError(f"The mask {path} cannot be read ({error}): copy it again from where it came.") from None


@DATASETS.register("jsrt")
class Jsrt(ArchiveDataset):
    """JSRT's images with SCR's masks: three classes, five objects.

    Which archive and split CAT-SAM took is not known. Here SCR's first fold (images of odd numbers) is trained on, its second tested.
    """

    title = "JSRT"
    home = "http://db.jsrt.or.jp/eng.php (images) and https://www.isi.uu.nl/Research/Databases/SCR (masks)"
    archive = "JSRT's All247images and SCR's scratch with the folders fold1 and fold2"
    licence = "images by JSRT's terms, after registration; masks for research and education, not to be passed on"
    ours = "the archive and the split: the paper's are not known; here SCR's fold1 trains and its fold2 tests; the few-shot draws"
    zips = ("All247images.zip", "scr.zip")
    expected: ClassVar = {"train": Expected(124), "test": Expected(123)}
    pixels = (1024, 1024)
    classes: ClassVar = {1: "Lungs", 2: "Heart", 3: "Clavicles"}
    rule = ObjectRule(min_area=0)
    metric = "class_miou"

    @classmethod
    def needs(cls) -> tuple[tuple[str, str], ...]:
        """The images, and a folder for each structure in each fold."""
        return ((IMAGES, ".img"), *((f"{fold}/{structure}", ".gif") for fold in FOLDS.values() for structure in STRUCTURES))

    @classmethod
    def survey(cls, data: Path) -> Survey:
        """The images of both folds; a structure's mask or an image that is absent is a fault."""
        root = cls.root(data)
        found, faults = cls.listings(root)
        if faults:
            return Survey({}, faults)
        images, survey = found[IMAGES, ".img"], Survey({})
        for split, fold in FOLDS.items():
            masks = {structure: found[f"{fold}/{structure}", ".gif"] for structure in STRUCTURES}
            survey = survey.with_part(cls._fold(root, split, images, masks))
        return survey

    @classmethod
    def _fold(cls, root: Path, split: Split, images: Mapping[str, Path], masks: Mapping[str, Mapping[str, Path]]) -> Survey:
        stems = sorted(set[str]().union(*masks.values()))
        lists = {f"image {IMAGES}/*.IMG": images, **{f"mask {FOLDS[split]}/{one}/*.gif": of for one, of in masks.items()}}
        faults = [
            f"Data set {cls.name}: {stem} has no {what} in {root}; an image and its five masks are needed."
            for stem in stems
            for what, listed in lists.items()
            if stem not in listed
        ]
        whole = [stem for stem in stems if all(stem in listed for listed in lists.values())]
        entries = {stem: Radiograph(images[stem], tuple(of[stem] for of in masks.values())) for stem in whole}
        return Survey({split: entries}, tuple(faults))
