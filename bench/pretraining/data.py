"""Images and prompts to pre-train on: a cache of home images on disk, and batches that are a pure function of (seed, step)."""

import hashlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench import ROOT
from bench.data.objects import Masks, stacked_objects
from bench.errors import DataError, untouched_by_interrupts
from bench.training.prompts import box_prompts, point_prompts, prompts_of
from bench.training.streams import FreshStream
from bench.types import Prompts, TrainingPrompts
from datasets.scenes import home, rng_for

Bytes = NDArray[np.uint8]
CHUNK = 250  # images that one worker makes at a time
MIN_AREA = 40  # pixels of an object at 128×128: what turned out smaller is not asked for
KINDS = ("box", "point", "mask")


@dataclass(frozen=True)
class Cache:
    """Home images on disk: images (N, S, S, 3) and instance labels (N, S, S), 0 the background; both uint8 and mapped."""

    images: Bytes
    labels: Bytes


@dataclass(frozen=True)
class Batch:
    """Images (3, S, S) uint8, the objects asked for in each (n, S, S) bool, and one prompt for each object."""

    images: list[Tensor]
    objects: list[Masks]
    prompts: list[Prompts]

    def targets(self) -> Tensor:
        """All objects of all images in order, (N, S, S) float 0/1."""
        return torch.from_numpy(np.concatenate(self.objects)).float()


def open_cache(folder: Path, count: int, size: int, workers: int, say: Callable[[str], None]) -> Cache:
    """The first `count` home images of `size` pixels, made by `workers` processes where `folder` does not hold them yet.

    Another count or size has another file name. DataError for a cache that is not what was written (its checksum differs).
    """
    stem = folder / f"home-{size}px-{count}-{_code_sha256()[:8]}"
    done = stem.with_suffix(".sha256")
    if not done.is_file():
        say(f"making {count} home images of {size} pixels with {workers} processes")
        _make(stem, count, size, workers)
        done.write_text(_sha256(stem))
    elif done.read_text() != _sha256(stem):
        raise DataError(f"The image cache {stem}.*.npy is damaged (its checksum differs): delete it and it is made again.")
    images, labels = (np.load(path, mmap_mode="r") for path in _files(stem))
    return Cache(images, labels)


def _files(stem: Path) -> tuple[Path, Path]:
    return stem.with_suffix(".images.npy"), stem.with_suffix(".labels.npy")


def _code_sha256() -> str:
    """Of the generators' source: images of another version of them are other images."""
    sources = sorted((ROOT / "datasets" / "scenes").glob("*.py"))
    used = [p for p in sources if p.stem in ("home", "outline", "texture")]
    return hashlib.sha256(b"".join(p.read_bytes() for p in used)).hexdigest()


def _make(stem: Path, count: int, size: int, workers: int) -> None:
    stem.parent.mkdir(parents=True, exist_ok=True)
    shapes = ((count, size, size, 3), (count, size, size))
    for path, shape in zip(_files(stem), shapes, strict=True):
        np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape).flush()
    starts = range(0, count, CHUNK)
    if workers < 2:
        for start in starts:
            _fill(stem, start, size)
        return
    with ProcessPoolExecutor(workers) as pool:
        with untouched_by_interrupts():
            filled = pool.map(_fill, [stem] * len(starts), starts, [size] * len(starts))
        list(filled)


def _fill(stem: Path, start: int, size: int) -> None:
    """Makes the images `start` … of one chunk; image i is the same whoever makes it."""
    images, labels = (np.load(path, mmap_mode="r+") for path in _files(stem))
    for i in range(start, min(start + CHUNK, len(images))):
        images[i], labels[i] = home(rng_for("pretrain", "train", i), size)
    images.flush()
    labels.flush()


def _sha256(stem: Path) -> str:
    digest = hashlib.sha256()
    for path in _files(stem):
        if not path.is_file():
            return "absent"
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def training_batch(
    cache: Cache, key: tuple[int, ...], images: int, objects: int, shares: tuple[float, ...], side: int, half: bool
) -> Batch:
    """The batch that belongs to `key`: `images` of the cache, augmented, and up to `objects` objects of each.

    shares: of the kinds of prompts, in the order of KINDS; an image's prompts are of one kind. side: of a mask prompt.
    half: the images at half their size.
    """
    rng = np.random.default_rng(key)
    chosen = rng.choice(len(cache.images), size=images, replace=images > len(cache.images))
    batch = Batch([], [], [])
    for i in chosen:
        image, labels = augmented(cache.images[i], cache.labels[i], rng)
        if half:
            image, labels = halved(image), labels[::2, ::2]
        masks = object_masks(labels)
        masks = masks[np.sort(rng.permutation(len(masks))[:objects])]
        kind = KINDS[int(rng.choice(len(KINDS), p=shares))]
        batch.images.append(torch.from_numpy(image).permute(2, 0, 1))
        batch.objects.append(masks)
        batch.prompts.append(prompts_of(kind, stacked_objects(masks), FreshStream(rng), TrainingPrompts(), side))
    return batch


def halved(image: Bytes) -> Bytes:
    """An image (S, S, 3) at half its size, averaged over 2×2 pixels."""
    return np.asarray(cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), np.uint8)


def augmented(image: Bytes, labels: Bytes, rng: np.random.Generator) -> tuple[Bytes, Bytes]:
    """A quarter turn, a flip, a permutation of the channels, and now and then a change of contrast and brightness."""
    turns, flip, channels = int(rng.integers(4)), rng.random() < 0.5, rng.permutation(3)
    image, labels = np.rot90(image, turns), np.rot90(labels, turns)
    if flip:
        image, labels = image[:, ::-1], labels[:, ::-1]
    image = image[..., channels]
    if rng.random() < 0.5:
        contrast, brightness = rng.uniform(0.75, 1.25), rng.uniform(-20, 20)
        table = np.clip((np.arange(256) - 128) * contrast + 128 + brightness, 0, 255).astype(np.uint8)
        image = table[image]
    return np.ascontiguousarray(image), np.ascontiguousarray(labels)


def object_masks(labels: Bytes) -> Masks:
    """The objects of instance labels (S, S) that are big enough, (n, S, S) bool."""
    areas = np.bincount(labels.ravel())[1:]
    least = MIN_AREA * labels.size / 128**2
    kept = 1 + np.flatnonzero(areas >= least)
    masks: Masks = labels[None] == kept[:, None, None].astype(np.uint8)
    return masks


@dataclass(frozen=True)
class HeldOut:
    """Home images that no training sees, in batches, with tight boxes and with one point for each object."""

    boxes: list[Batch]
    points: list[Batch]

    @property
    def objects(self) -> int:
        """How many objects are asked for with each kind of prompt."""
        return sum(len(masks) for batch in self.boxes for masks in batch.objects)


def held_out(count: int, size: int, batch: int = 32) -> HeldOut:
    """The first `count` held-out home images of `size` pixels: the same ones whatever the seed of a training."""
    scenes = [home(rng_for("pretrain", "held-out", i), size) for i in range(count)]
    found = HeldOut([], [])
    for start in range(0, count, batch):
        part = scenes[start : start + batch]
        images = [torch.from_numpy(image).permute(2, 0, 1) for image, _ in part]
        objects = [object_masks(labels) for _, labels in part]
        points = [
            point_prompts(stacked_objects(masks), FreshStream(rng_for("pretrain", "point", start + i))) for i, masks in enumerate(objects)
        ]
        found.boxes.append(Batch(images, objects, [box_prompts(stacked_objects(masks)) for masks in objects]))
        found.points.append(Batch(images, objects, points))
    return found
