"""The files of a generated archive, by the kinds that archives have: pairs of image and mask, COCO's annotations, raw radiographs."""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from datasets.folder import Bytes, Folders
from datasets.jsrt import STRUCTURES

Grey = Callable[[Bytes, np.random.Generator], Bytes]


@dataclass(frozen=True)
class Picture:
    """One image to write: its stem, its folders, and the key of its scene."""

    stem: str
    folders: Folders
    split: str
    index: int

    @property
    def image(self) -> str:
        """Where its image lies below the archive's folder."""
        return f"{self.folders.images}/{self.stem}{self.folders.image_suffix}"


class Pairs:
    """An image and a mask each, the mask's values made by `grey` of 0 and 1."""

    def __init__(self, grey: Grey) -> None:
        self.grey = grey

    def paths(self, picture: Picture) -> tuple[str, ...]:
        """Where a picture's files lie below the archive's folder."""
        folders = picture.folders
        return picture.image, f"{folders.masks}/{picture.stem}{folders.mask_suffix}"

    def contents(self, picture: Picture, image: Bytes, mask: Bytes, rng: np.random.Generator) -> tuple[bytes, ...]:
        """What is in them, of an image (H, W, 3) RGB and its mask (H, W) of 0 and 1."""
        files = zip(self.paths(picture), (cv2.cvtColor(image, cv2.COLOR_RGB2BGR), self.grey(mask, rng)), strict=True)
        return tuple(_encoded(Path(path).suffix, pixels) for path, pixels in files)

    def tables(self, pictures: Sequence[Picture], mask_of: Callable[[Picture], Bytes]) -> dict[str, bytes]:
        """The files that are about all of the pictures."""
        return {}


class Coco(Pairs):
    """Images, and a file of annotations a split, in which every part of a mask is an object."""

    def __init__(self, category: str) -> None:
        self.category = category

    def paths(self, picture: Picture) -> tuple[str, ...]:
        """The image alone."""
        return (picture.image,)

    def contents(self, picture: Picture, image: Bytes, mask: Bytes, rng: np.random.Generator) -> tuple[bytes, ...]:
        """The image alone."""
        return (_encoded(picture.folders.image_suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR)),)

    def tables(self, pictures: Sequence[Picture], mask_of: Callable[[Picture], Bytes]) -> dict[str, bytes]:
        """The annotations; `folders.masks` of a picture is the file that it stands in."""
        found: dict[str, dict[str, list[Any]]] = {}
        for picture in pictures:
            mask, category = mask_of(picture), {"id": 1, "name": self.category}
            of_split = found.setdefault(picture.folders.masks, {"images": [], "annotations": [], "categories": [category]})
            height, width = mask.shape
            number = len(of_split["images"]) + 1
            of_split["images"].append({"id": number, "file_name": Path(picture.image).name, "height": height, "width": width})
            of_split["annotations"] += self._annotations(number, mask, len(of_split["annotations"]) + 1)
        return {path: json.dumps(content).encode() for path, content in found.items()}

    def _annotations(self, image: int, mask: Bytes, first: int) -> list[dict[str, Any]]:
        contours = [c for c in cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0] if len(c) > 2]
        shared = {"image_id": image, "category_id": 1, "iscrowd": 0}
        return [
            {**shared, "id": at, "area": cv2.contourArea(c), "bbox": list(cv2.boundingRect(c)), "segmentation": [c.ravel().tolist()]}
            for at, c in enumerate(contours, first)
        ]


class Radiographs(Pairs):
    """A raw image of 12 bits, and a gif of half its side for each structure of a chest."""

    OVALS: Mapping[str, tuple[float, float, float, float]] = {  # centre and radii, in sides of the image
        "right lung": (0.3, 0.55, 0.14, 0.27),
        "left lung": (0.7, 0.55, 0.14, 0.27),
        "heart": (0.55, 0.65, 0.12, 0.14),
        "right clavicle": (0.3, 0.25, 0.17, 0.03),
        "left clavicle": (0.7, 0.25, 0.17, 0.03),
    }

    def __init__(self) -> None:
        pass

    def paths(self, picture: Picture) -> tuple[str, ...]:
        """The image, and a mask in each structure's folder."""
        return picture.image, *(f"{picture.folders.masks}/{name}/{picture.stem}{picture.folders.mask_suffix}" for name in STRUCTURES)

    def contents(self, picture: Picture, image: Bytes, mask: Bytes, rng: np.random.Generator) -> tuple[bytes, ...]:
        """Lungs are dark, as dense film is; of the scene the texture is left."""
        grey = 150 + image.mean(axis=2) / 8
        masks = [_oval(grey.shape, self.OVALS[name], rng) for name in STRUCTURES]
        for one, shade in zip(masks, (-90, -90, 40, 30, 30), strict=True):
            grey[one > 0] += shade
        density = 4095 - np.clip(np.kron(grey, np.ones((2, 2))) * 16, 0, 4095)
        return density.astype(">u2").tobytes(), *map(_gif, masks)


def _oval(shape: Sequence[int], oval: tuple[float, float, float, float], rng: np.random.Generator) -> Bytes:
    """A mask (H, W) of 0 and 255."""
    x, y, a, b = (np.array(oval) * (1 + 0.05 * rng.uniform(-1, 1, 4)) * shape[0]).round().astype(int).tolist()
    return np.asarray(cv2.ellipse(np.zeros(shape, np.uint8), (x, y), (a, b), 0, 0, 360, 255, -1), np.uint8)


def _gif(mask: Bytes) -> bytes:
    from PIL import Image

    held = io.BytesIO()
    Image.fromarray(mask).save(held, "GIF")
    return held.getvalue()


def _encoded(suffix: str, pixels: np.ndarray) -> bytes:
    return cv2.imencode(suffix, pixels)[1].tobytes()


def binary(mask: Bytes, rng: np.random.Generator) -> Bytes:
    """0 and 255."""
    return mask * np.uint8(255)


def noisy(mask: Bytes, rng: np.random.Generator) -> Bytes:
    """0 to 7 and 248 to 255, as a mask that once was a JPEG: what is not 0 or 255 lies along the borders."""
    kernel = np.ones((3, 3), np.uint8)
    border = cv2.dilate(mask, kernel) != cv2.erode(mask, kernel)
    noise = rng.integers(0, 8, mask.shape, np.uint8) * (border & (rng.random(mask.shape) < 0.4))
    grey: Bytes = np.where(mask > 0, 255 - noise, noise).astype(np.uint8)
    return grey


def class_ids(count: int) -> Grey:
    """The parts of a mask as class ids, 1 to `count`, drawn at random."""

    def grey(mask: Bytes, rng: np.random.Generator) -> Bytes:
        parts, labels = cv2.connectedComponents(mask)
        ids: Bytes = np.concatenate([[0], rng.integers(1, count + 1, parts - 1)]).astype(np.uint8)
        return ids[labels]

    return grey
