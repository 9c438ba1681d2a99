"""COCO's instance annotations: every annotation is an object, polygons and run lengths alike, touching or overlapping or not.

What is marked `iscrowd` is a group that nobody told apart: it is no object and no foreground here, as COCO's own evaluation ignores it.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.data.image_files import ROTATED, orientation, read_image
from bench.data.objects import class_map_of
from bench.errors import DataError, is_text, unknown
from bench.grid.files import composed
from bench.types import Sample
from datasets.definition import Definition
from datasets.folder import named

Masks = NDArray[np.bool_]


@dataclass(frozen=True)
class CocoImage:
    """An image and its objects, each as (annotation's id, segmentation, category's id); height and width are the annotations'.
    has_classes: whether its categories are told apart."""

    image: Path
    height: int
    width: int
    objects: tuple[tuple[int, Any, int], ...]
    source: Path
    bits: int = 0
    has_classes: bool = False

    def read(self, name: str) -> Sample:
        """The sample, its objects in the order of their ids; DataError where the image has another size, or an object no mask."""
        image = read_image(self.image, self.bits)
        if image.shape[:2] != (self.height, self.width):
            tag = orientation(self.image)
            turned = f", turned upright by its orientation tag, {tag}" if tag >= ROTATED else ""
            raise DataError(
                f"The image {self.image} has {image.shape[:2]} pixels (H, W){turned}, but {self.source} says {(self.height, self.width)}: "
                f"they must agree."
            )
        objects: Masks = np.zeros((len(self.objects), self.height, self.width), bool)
        for at, (_, segmentation, _) in enumerate(self.objects):
            objects[at] = self._mask(segmentation)
        mask = np.asarray(objects.any(axis=0), np.uint8)
        if not self.has_classes:
            return Sample(name, image, mask, objects)
        classes = [category for *_, category in self.objects]
        return Sample(name, image, mask, objects, class_map=class_map_of(objects, classes), classes=np.array(classes, np.int64))

    def files(self) -> Mapping[str, Path]:
        """The image; the annotations are a file of the whole split."""
        return {"image": self.image}

    def _mask(self, segmentation: Any) -> Masks:
        """The mask (H, W) of one annotation that is not bad (see `_bad_mask`): pycocotools draws whatever it finds, or crashes."""
        from pycocotools import mask

        runs = segmentation
        if isinstance(runs, dict):
            runs = {"size": [self.height, self.width], "counts": _counts(runs["counts"])}
        drawn = mask.frPyObjects(runs, self.height, self.width)
        found: Masks = mask.decode(mask.merge(drawn) if isinstance(drawn, list) else drawn) > 0
        return found


def _counts(counts: Any) -> Any:
    """Run lengths as a list, packed or not."""
    return run_lengths(counts) if isinstance(counts, str) else counts


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


def read_coco(path: Path, folder: Path, definition: Definition, source: Path | None = None) -> CocoFile:
    """The images of a file of instance annotations, by file name without its ending.

    Of the definition, which `source` has if it is somebody's own, count `categories`, `classes`, `empty_images`, `skip_bad_annotations`
    and `bits`. DataError where the file cannot be read; what is wrong with single images and annotations are faults.
    """
    images, annotations, categories = _tables(path, definition.categories)
    wanted = definition.categories or categories.values()
    found, bad, crowds = CocoFile(), [], 0
    objects: dict[int, list[tuple[int, Any, int]]] = {image["id"]: [] for image in images}
    sizes = {image["id"]: (image["height"], image["width"]) for image in images}
    for annotation in sorted(annotations, key=lambda annotation: annotation["id"]):
        if annotation["category_id"] in categories and categories[annotation["category_id"]] not in wanted:
            continue
        if reason := _bad_annotation(annotation, sizes, categories) or _unnamed(annotation["category_id"], definition, source):
            bad.append(f"Annotation {annotation['id']} in {path} {reason}.")
        elif annotation.get("iscrowd"):
            crowds += 1
        else:
            objects[annotation["image_id"]].append((annotation["id"], annotation["segmentation"], annotation["category_id"]))
    if definition.skip_bad_annotations:
        found.notes += [f"Left out: {fault}" for fault in bad]
    else:
        found.faults += bad
    if bad:
        has_key = source and not definition.skip_bad_annotations
        advice = f" With `skip_bad_annotations = true` in {source} the others are left out." if has_key else ""
        found.notes.append(f"{len(annotations) - len(bad):,} of {len(annotations):,} annotations in {path} can be used.{advice}")
    if crowds:
        found.notes.append(f"Crowds in {path}, which are neither objects nor foreground: {crowds:,}.")
    used = [image for image in images if definition.empty_images or objects[image["id"]]]
    _enter(found, used, objects, path, folder, definition)
    return found


def _unnamed(category: int, definition: Definition, source: Path | None) -> str:
    classes = {number: name for name, number in definition.classes.items()}
    if not classes or category in classes:
        return ""
    return f"is of the class id {category}, which {source or '`classes`'} does not name: {named(classes)}"


def _bad_annotation(annotation: Mapping[str, Any], sizes: Mapping[int, tuple[int, int]], categories: Mapping[int, str]) -> str:
    """Why an annotation cannot be used, as a predicate; empty where it can."""
    if annotation["image_id"] not in sizes:
        return f"is of image {annotation['image_id']}, which the file does not list"
    if annotation["category_id"] not in categories:
        return f"is of category {annotation['category_id']}, which the file does not list"
    if annotation.get("iscrowd") not in (None, 0, 1):
        return f"has iscrowd = {annotation['iscrowd']!r}: 0 and 1 are allowed"
    return "" if annotation.get("iscrowd") else _bad_mask(annotation.get("segmentation"), *sizes[annotation["image_id"]])


def _enter(
    found: CocoFile,
    images: Sequence[Mapping[str, Any]],
    objects: Mapping[int, Sequence[tuple[int, Any, int]]],
    path: Path,
    folder: Path,
    definition: Definition,
) -> None:
    """Enters the images whose file is there; a fault for every other one, and for two of one name."""
    if not folder.is_dir():
        found.faults.append(f"The folder {folder}, which should hold the images of {path}, does not exist.")
        return
    there = {composed(file.relative_to(folder).as_posix()): file for file in folder.rglob("*")}
    for image in images:
        listed = PurePosixPath(image["file_name"].replace("\\", "/"))  # which leaves ./ out
        file, name = there.get(composed(str(listed))), str(listed.with_suffix("")) if listed.name else ""
        if not is_text(str(listed)):
            found.faults.append(f"{path} lists the image {image['file_name']!a}, whose name is not UTF-8.")
        elif file is None:
            found.faults.append(f"The image {folder / image['file_name']} of {path} does not exist.")
        elif name in found.images:
            found.faults.append(f"{path} lists two images named {name}; a name must be unique.")
        else:
            size, of = (image["height"], image["width"]), tuple(objects[image["id"]])
            found.images[name] = CocoImage(file, *size, of, path, definition.bits, bool(definition.classes))


Rows = list[dict[str, Any]]
MOST_PIXELS = 2**30
FARTHEST = 10  # sides of its image that a coordinate may lie outside; pycocotools needs memory for every pixel of a border, or crashes
NEEDED: Mapping[str, Mapping[str, type]] = {
    "images": {"id": int, "file_name": str, "height": int, "width": int},
    "annotations": {"id": int, "image_id": int, "category_id": int},
    "categories": {"id": int, "name": str},
}


def _tables(path: Path, categories: Sequence[str]) -> tuple[Rows, Rows, dict[int, str]]:
    """The images, the annotations and the categories' names by id; DataError where the file is not of COCO's form, or lacks a category
    of `categories`."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"The annotations {path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
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
    for image in images:
        if not (image["height"] > 0 and image["width"] > 0 and image["height"] * image["width"] <= MOST_PIXELS):
            raise DataError(
                f"The image {image['id']} in {path} has {(image['height'], image['width'])} pixels (H, W): 1 to 2^30 are allowed."
            )
    return images, annotations, {row["id"]: row["name"] for row in known}


def _checked(path: Path, table: str, rows: Rows, columns: Mapping[str, type]) -> Rows:
    for at, row in enumerate(rows):
        bad = [name for name, kind in columns.items() if not isinstance(row, dict) or type(row.get(name)) is not kind]
        if bad:
            raise DataError(f"Entry {at} of {table!r} in {path} has no {bad[0]} of type {columns[bad[0]].__name__}.")
    if repeated := [number for number, count in Counter(row["id"] for row in rows).items() if count > 1]:
        raise DataError(f"The id {repeated[0]} stands twice in {table!r} of {path}; ids must be unique.")
    return rows


def _bad_mask(segmentation: Any, height: int, width: int) -> str:
    """Why a segmentation cannot be an object's mask, as a predicate; empty where it can."""
    if isinstance(segmentation, list) and segmentation:
        return next(filter(None, (_bad_polygon(polygon, height, width) for polygon in segmentation)), "")
    if isinstance(segmentation, dict) and segmentation.get("size") == [height, width]:
        counts = segmentation.get("counts")
        lengths = _counts(counts) if isinstance(counts, str | list) else []
        fill = all(type(n) is int and n >= 0 for n in lengths) and sum(lengths) == height * width
        return "" if fill else "has run lengths that do not fill its image"
    if isinstance(segmentation, dict):
        return f"has run lengths of the size {segmentation.get('size')} (H, W), its image {[height, width]}"
    return "has no segmentation, a list of polygons or run lengths"


def _bad_polygon(polygon: Any, height: int, width: int) -> str:
    numbers = isinstance(polygon, list) and all(type(x) in (int, float) for x in polygon)
    if not numbers or len(polygon) < 6 or len(polygon) % 2:
        return "has a polygon that is not a list of x, y, x, y … of at least three points"
    limit = FARTHEST * max(height, width)
    far = [x for x in polygon if not -limit <= x <= limit]  # not a number is neither
    return f"has a polygon with the coordinate {Decimal(far[0]):.6g}, far outside its image of {width}×{height} pixels" if far else ""
