"""COCO's instance annotations: every annotation is an object, polygons and run lengths alike, touching or overlapping or not.

What is marked `iscrowd` is a group that nobody told apart: it is no object and no foreground here, as COCO's own evaluation ignores it.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from bench.data.image_files import read_image
from bench.errors import DataError, unknown
from bench.types import Sample

Masks = NDArray[np.bool_]


@dataclass(frozen=True)
class CocoImage:
    """An image and its objects, each as (annotation's id, segmentation); height and width are the annotations'."""

    image: Path
    height: int
    width: int
    objects: tuple[tuple[int, Any], ...]
    source: Path

    def read(self, name: str) -> Sample:
        """The sample, its objects in the order of their ids; DataError where the image has another size, or an object no mask."""
        image = cv2.cvtColor(read_image(self.image, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)
        if image.shape[:2] != (self.height, self.width):
            raise DataError(
                f"The image {self.image} has {image.shape[:2]} pixels (H, W), but {self.source} says {(self.height, self.width)}: "
                f"they must agree."
            )
        objects: Masks = np.zeros((len(self.objects), self.height, self.width), bool)
        for at, (number, segmentation) in enumerate(self.objects):
            objects[at] = self._mask(number, segmentation)
        mask = np.asarray(objects.any(axis=0), np.uint8)
        return Sample(name, image, mask, objects)

    def files(self) -> Mapping[str, Path]:
        """The image; the annotations are a file of the whole split."""
        return {"image": self.image}

    def _mask(self, number: int, segmentation: Any) -> Masks:
        """The mask (H, W) of one annotation."""
        from pycocotools import mask

        runs = segmentation
        if isinstance(runs, dict):
            counts = runs["counts"] if isinstance(runs["counts"], list) else run_lengths(runs["counts"])
            if min(counts, default=0) < 0 or sum(counts) != self.height * self.width:  # pycocotools draws what it finds
                raise DataError(f"Annotation {number} in {self.source} has run lengths that do not fill {self.image}.")
            runs = {"size": [self.height, self.width], "counts": counts}
        drawn = mask.frPyObjects(runs, self.height, self.width)
        found: Masks = mask.decode(mask.merge(drawn) if isinstance(drawn, list) else drawn) > 0
        return found


def run_lengths(text: str) -> list[int]:
    """The run lengths that COCO packs into a text: five bits a character, the lowest first, a sixth that says that more follow;
    from the fourth number on, each is its difference from the last but one."""
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            continue
        if bits & 0x10:  # the sign
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    return counts


@dataclass
class CocoFile:
    """What a file of annotations says of a folder of images; faults and notes are sentences."""

    images: dict[str, CocoImage] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_coco(path: Path, folder: Path, categories: Sequence[str] = (), empty_images: bool = True) -> CocoFile:
    """The images of a file of instance annotations, by file name without its ending.

    categories: names whose annotations count (empty: all); empty_images: whether an image without any of them is used.
    DataError where the file cannot be read; what is wrong with single images and annotations are faults.
    """
    images, annotations, wanted = _tables(path, categories)
    found, crowds = CocoFile(), 0
    objects: dict[int, list[tuple[int, Any]]] = {image["id"]: [] for image in images}
    sizes = {image["id"]: (image["height"], image["width"]) for image in images}
    for annotation in sorted(annotations, key=lambda annotation: annotation["id"]):
        if annotation["category_id"] not in wanted:
            continue
        if annotation["image_id"] not in objects:
            found.faults.append(
                f"Annotation {annotation['id']} in {path} is of image {annotation['image_id']}, which the file does not list."
            )
        elif annotation.get("iscrowd"):
            crowds += 1
        elif reason := _bad_mask(annotation.get("segmentation"), *sizes[annotation["image_id"]]):
            found.faults.append(f"Annotation {annotation['id']} in {path} {reason}.")
        else:
            objects[annotation["image_id"]].append((annotation["id"], annotation["segmentation"]))
    if crowds:
        found.notes.append(f"Crowds in {path}, which are neither objects nor foreground: {crowds:,}.")
    used = [image for image in images if empty_images or objects[image["id"]]]
    _enter(found, used, objects, path, folder)
    return found


def _enter(found: CocoFile, images: Sequence[Mapping[str, Any]], objects: Mapping[int, Any], path: Path, folder: Path) -> None:
    """Enters the images whose file is there; a fault for every other one, and for two of one name."""
    there = {file.relative_to(folder).as_posix() for file in folder.rglob("*")} if folder.is_dir() else set()
    if not folder.is_dir():
        found.faults.append(f"The folder {folder}, which should hold the images of {path}, does not exist.")
        return
    for image in images:
        name = Path(image["file_name"]).with_suffix("").as_posix()
        if image["file_name"] not in there:
            found.faults.append(f"The image {folder / image['file_name']} of {path} does not exist.")
        elif name in found.images:
            found.faults.append(f"{path} lists two images named {name}; a name must be unique.")
        else:
            entry = CocoImage(folder / image["file_name"], image["height"], image["width"], tuple(objects[image["id"]]), path)
            found.images[name] = entry


Rows = list[dict[str, Any]]
NEEDED: Mapping[str, Mapping[str, type]] = {
    "images": {"id": int, "file_name": str, "height": int, "width": int},
    "annotations": {"id": int, "image_id": int, "category_id": int},
    "categories": {"id": int, "name": str},
}


def _tables(path: Path, categories: Sequence[str]) -> tuple[Rows, Rows, set[int]]:
    """The images, the annotations and the ids of the wanted categories; DataError where the file is not of COCO's form."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"The annotations {path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise DataError(f"The annotations {path} are no JSON: {' '.join(str(error).split())}.") from None
    tables = []
    for table, columns in NEEDED.items():
        rows = content.get(table) if isinstance(content, dict) else None
        if not isinstance(rows, list):
            raise DataError(f"The annotations {path} have no list {table!r}; COCO's have images, annotations and categories.")
        tables.append(_checked(path, table, rows, columns))
    images, annotations, known = tables
    names = {row["name"] for row in known}
    for name in categories:
        if name not in names:
            raise DataError(str(unknown(f"category in {path}", name, names)))
    return images, annotations, {row["id"] for row in known if not categories or row["name"] in categories}


def _checked(path: Path, table: str, rows: Rows, columns: Mapping[str, type]) -> Rows:
    for at, row in enumerate(rows):
        bad = [name for name, kind in columns.items() if not isinstance(row, dict) or type(row.get(name)) is not kind]
        if bad:
            raise DataError(f"Entry {at} of {table!r} in {path} has no {bad[0]} of type {columns[bad[0]].__name__}.")
    repeated = _repeated(row["id"] for row in rows)
    if repeated:
        raise DataError(f"The id {repeated[0]} stands twice in {table!r} of {path}; ids must be unique.")
    return rows


def _repeated(ids: Iterable[int]) -> list[int]:
    return [number for number, count in Counter(ids).items() if count > 1]


def _bad_mask(segmentation: Any, height: int, width: int) -> str:
    """Why a segmentation cannot be an object's mask, as a predicate; empty where it can."""
    if isinstance(segmentation, list) and segmentation:
        for polygon in segmentation:
            numbers = isinstance(polygon, list) and all(type(x) in (int, float) for x in polygon)
            if not numbers or len(polygon) < 6 or len(polygon) % 2 or not np.isfinite(polygon).all():
                return "has a polygon that is not a list of x, y, x, y … of at least three points"
        return ""
    if isinstance(segmentation, dict) and segmentation.get("size") == [height, width]:
        counts = segmentation.get("counts")
        if isinstance(counts, str) and counts:
            return ""
        if isinstance(counts, list) and all(type(n) is int and n >= 0 for n in counts) and sum(counts) == height * width:
            return ""
        return "has run lengths that do not fill its image"
    if isinstance(segmentation, dict):
        return f"has run lengths of the size {segmentation.get('size')} (H, W), its image {[height, width]}"
    return "has no segmentation, a list of polygons or run lengths"
