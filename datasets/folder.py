"""Data sets that lie in folders of images and masks: pairs the two by stem, reads them lazily, remembers what is re-read."""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import cv2
import numpy as np

from bench.errors import DataError
from bench.image_files import Bytes, read_image
from bench.types import Dataset, Sample, Split

CACHE_BYTES = 1 << 30
MAX_ASPECT_CHANGE = 1.25  # between an image and its mask; the reference has no limit, and would train on another image's mask
GENERATED_MARK = "GENERATED.txt"  # lies in an archive's folder that `datasets.synth` wrote, and lists its files


@dataclass(frozen=True)
class Folders:
    """Where a split's images and masks lie below the archive's folder, and how their file names end."""

    images: str
    masks: str
    image_suffix: str
    mask_suffix: str


@dataclass(frozen=True)
class Pair:
    """The two files of one sample."""

    image: Path
    mask: Path


def stems(text: str) -> tuple[str, ...]:
    """The words of `text`: file stems as they are listed in a paper's repository."""
    return tuple(text.split())


class SampleCache:
    """The samples that were used last, as many as fit into `limit_bytes`; a reader's threads may share it.

    The arrays of a cached sample are made read-only: what one caller wrote into them, every later one would read.
    """

    def __init__(self, limit_bytes: int = CACHE_BYTES) -> None:
        self.limit_bytes, self.used_bytes = limit_bytes, 0
        self._samples: OrderedDict[tuple[str, str], Sample] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, split: str, name: str, read: Callable[[], Sample]) -> Sample:
        """The sample of that name, from the cache or from `read`."""
        with self._lock:
            if (split, name) in self._samples:
                self._samples.move_to_end((split, name))
                return self._samples[split, name]
        sample = read()  # outside the lock: decoding is the slow part, and reading an image twice does no harm
        self._keep((split, name), sample)
        return sample

    def _keep(self, key: tuple[str, str], sample: Sample) -> None:
        sample.image.setflags(write=False)
        sample.mask.setflags(write=False)
        with self._lock:
            if key in self._samples or _size_bytes(sample) > self.limit_bytes:
                return
            self._samples[key] = sample
            self.used_bytes += _size_bytes(sample)
            while self.used_bytes > self.limit_bytes:
                self.used_bytes -= _size_bytes(self._samples.popitem(last=False)[1])


def _size_bytes(sample: Sample) -> int:
    return sample.image.nbytes + sample.mask.nbytes


class FolderDataset(Dataset):
    """A data set of image and mask files with a training and a test folder; `val` is held out of the training images.

    A subclass states where its archive is found, which folders and file names it has, and above which grey value a mask is
    foreground. `open` looks at the folders' listings only; a file is decoded when its sample is asked for.
    """

    home: ClassVar[str]
    archive: ClassVar[str]
    folders: ClassVar[Mapping[str, Folders]]
    threshold: ClassVar[int]

    def __init__(self, pairs: Mapping[Split, Mapping[str, Pair]], cache_bytes: int = CACHE_BYTES) -> None:
        self._pairs = {"train": pairs["train"], "test": pairs["test"]}
        held_out = self.hold_out(tuple(sorted(pairs["train"])))
        self._pairs["val"] = {name: pairs["train"][name] for name in held_out}
        self._names = {split: tuple(sorted(of_split)) for split, of_split in self._pairs.items()}
        self._cache = SampleCache(cache_bytes)

    @classmethod
    def is_generated(cls, data: Path) -> bool:
        """Whether `datasets.synth` wrote the archive."""
        return (cls._root(Path(data)) / GENERATED_MARK).is_file()

    @classmethod
    def open(cls, data: Path, cache_bytes: int = CACHE_BYTES) -> Self:
        """The data set in `data/<name>`, or directly in `data`; DataError where a folder, a mask or an official image is absent."""
        root = cls._root(Path(data))
        train, test = cls._pair_up(root, "train"), cls._pair_up(root, "test")
        cls._check_official(root, train)
        return cls({"train": train, "test": test}, cache_bytes)

    @classmethod
    def uses(cls, split: Split, stem: str) -> bool:
        """Whether the image `stem` of a split's folder belongs to the data set; a subclass may leave some out."""
        return True

    def names(self, split: Split) -> tuple[str, ...]:
        """The stems of a split's images, sorted."""
        return self._names[split]

    def load(self, split: Split, name: str) -> Sample:
        """Reads one sample; DataError, naming the file, where it is broken, and for a name that the split does not have."""
        pair = self._pairs[split].get(name)
        if pair is None:
            known = f"{len(self.names(split))} are, such as {', '.join(self.names(split)[:2])}"
            raise DataError(f"Data set {self.name}: {name!r} is not in its {split} split; {known}.")
        folder = "train" if split == "val" else split  # a val image is a training image: one copy of it is enough
        return self._cache.get(folder, name, lambda: read_sample(name, pair, self.threshold))

    @classmethod
    def _root(cls, data: Path) -> Path:
        """The folder that holds the archive's; `data/<name>` also where nothing is there, for the error to name."""
        wanted = data / cls.name
        has_any = [any((root / f.images).is_dir() for f in cls.folders.values()) for root in (wanted, data)]
        return data if has_any == [False, True] else wanted

    @classmethod
    def _pair_up(cls, root: Path, split: Split) -> dict[str, Pair]:
        """The pairs of a split by stem, from the listings of its two folders."""
        folders = cls.folders[split]
        images = cls._listing(root, root / folders.images, folders.image_suffix)
        masks = cls._listing(root, root / folders.masks, folders.mask_suffix)
        used = [stem for stem in images if cls.uses(split, stem)]
        bare = sorted(stem for stem in used if stem not in masks)
        if bare:
            more = f" (nor have {len(bare) - 1} others)" if len(bare) > 1 else ""
            raise DataError(
                f"Data set {cls.name}: the image {images[bare[0]]} has no mask {bare[0]}{folders.mask_suffix} "
                f"in {root / folders.masks}{more}; every image needs one."
            )
        if not used:
            raise DataError(f"Data set {cls.name}: none of the images in {root / folders.images} belongs to it; {cls._advice(root)}.")
        return {stem: Pair(images[stem], masks[stem]) for stem in used}

    @classmethod
    def _listing(cls, root: Path, folder: Path, suffix: str) -> dict[str, Path]:
        """The files of `folder` that end in `suffix`, by stem; hidden ones (a Mac's `._name`) are none of them."""
        if not folder.is_dir():
            raise DataError(f"Data set {cls.name}: the folder {folder} does not exist; {cls._advice(root)}.")
        names = [n for n in os.listdir(folder) if n.lower().endswith(suffix) and not n.startswith(".")]
        if not names:
            raise DataError(f"Data set {cls.name}: the folder {folder} holds no {suffix} file; {cls._advice(root)}.")
        return {name[: -len(suffix)]: folder / name for name in names}

    @classmethod
    def _check_official(cls, root: Path, train: Mapping[str, Pair]) -> None:
        for shots, listed in cls.official.items():
            missing = [stem for stem in listed if stem not in train]
            if missing:
                folders = cls.folders["train"]
                raise DataError(
                    f"Data set {cls.name}: {missing[0]}{folders.image_suffix} of the official {shots}-shot list is not in "
                    f"{root / folders.images} ({len(missing)} of {shots} missing); {cls._advice(root)}."
                )

    @classmethod
    def _advice(cls, root: Path) -> str:
        return (
            f"get {cls.archive} from {cls.home} and unpack it into {root}, or write a generated stand-in with "
            f"`python -m datasets.synth --layout {cls.name} --out {root}`"
        )


def read_sample(name: str, pair: Pair, threshold: int) -> Sample:
    """Decodes both files; foreground is what is brighter than `threshold` in the mask. The mask gives the size."""
    mask = read_image(pair.mask, cv2.IMREAD_GRAYSCALE)
    image = cv2.cvtColor(read_image(pair.image, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    return Sample(name, _fitted(image.astype(np.uint8, copy=False), mask.shape, pair.mask), (mask > threshold).astype(np.uint8))


def _fitted(image: Bytes, shape: tuple[int, ...], mask: Path) -> Bytes:
    """`image` at its mask's size (H, W): transposed where the sizes are swapped, else resized; the reference does the same.

    DataError where the shapes differ so much that the mask cannot be this image's.
    """
    if image.shape[:2] == shape:
        return image
    if image.shape[:2] == shape[::-1]:
        return np.ascontiguousarray(image.transpose(1, 0, 2))
    aspect, expected = image.shape[1] / image.shape[0], shape[1] / shape[0]
    if max(aspect / expected, expected / aspect) > MAX_ASPECT_CHANGE:
        raise DataError(
            f"The mask {mask} has {shape} pixels (H, W) and its image {image.shape[:2]}: the aspect ratios must agree within "
            f"{MAX_ASPECT_CHANGE - 1:.0%}."
        )
    return cv2.resize(image, shape[::-1], interpolation=cv2.INTER_LINEAR).astype(np.uint8, copy=False)
