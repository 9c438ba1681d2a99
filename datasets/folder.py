"""Data sets that lie in folders of images and masks: pairs the two by stem, reads them lazily, remembers what is re-read."""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Protocol, Self

import cv2
import numpy as np

from bench.data.image_files import ROTATED, Bytes, Values, check_name, orientation, read_image, read_labels, read_mask
from bench.data.objects import class_objects, label_map
from bench.errors import DataError
from bench.types import Dataset, ObjectRule, Sample, Split

CACHE_BYTES = 1 << 30
ASPECT_TOLERANCE = 0.25  # between an image and its mask; the reference has no limit, and would train on another image's mask
GENERATED_MARK = "GENERATED.txt"  # lies in an archive's folder that `datasets.synth` wrote, and lists its files


class Entry(Protocol):
    """What an open data set knows of a sample before it is read."""

    def read(self, name: str) -> Sample:
        """The sample; DataError, naming the file, where it is broken."""

    def files(self) -> Mapping[str, Path]:
        """Its files, by kind ("image", "mask")."""


@dataclass(frozen=True)
class Labels:
    """What a mask's values are beside background: the ids of objects, or classes, whose connected parts are objects by `rule`.

    classes: id -> name, of a data set whose classes are told apart; then no mask may have another value. source: what names them.
    """

    are_ids: bool
    rule: ObjectRule
    classes: Mapping[int, str] = field(default_factory=dict)
    source: str = ""


@dataclass(frozen=True)
class Pair:
    """The two files of one sample; foreground is what is above `threshold` in the mask. bits: see `read_image`.

    labels: None where all foreground is of one kind.
    """

    image: Path
    mask: Path
    threshold: int = 0
    bits: int = 0
    labels: Labels | None = None
    aspect_tolerance: float = ASPECT_TOLERANCE

    def read(self, name: str) -> Sample:
        """The sample; the mask gives the size."""
        return self.sample(name, *self.pixels())

    def pixels(self) -> tuple[Bytes, Values]:
        """The image (H, W, 3) RGB and the mask's values (H, W), each of its own size."""
        values = read_mask(self.mask) if self.labels is None else read_labels(self.mask)
        return read_image(self.image, self.bits), values

    def sample(self, name: str, image: Bytes, values: Values) -> Sample:
        """The sample of what `pixels` gave."""
        mask = (values > self.threshold).astype(np.uint8)
        fits, of = fitted(image, self, values.shape), self.labels
        if of is None:
            return Sample(name, fits, mask)
        if not of.classes:
            return Sample(name, fits, mask, labels=label_map(np.where(mask, values, 0), of.are_ids, of.rule))
        class_map = self._class_map(np.where(mask, values, 0), of)
        labels, classes = class_objects(class_map, of.rule)
        return Sample(name, fits, mask, labels=labels, class_map=class_map, classes=classes)

    def _class_map(self, values: Values, of: Labels) -> Bytes:
        if unnamed := sorted(set(np.unique(values).tolist()) - {0, *of.classes}):
            raise DataError(f"The mask {self.mask} has the class id {unnamed[0]}, which {of.source} does not name: {named(of.classes)}.")
        return values.astype(np.uint8)

    def files(self) -> Mapping[str, Path]:
        """The image and the mask."""
        return {"image": self.image, "mask": self.mask}


@dataclass(frozen=True)
class Survey:
    """What the listings of a data set's folders say, before any image is read.

    faults: a sentence for each thing that keeps it from opening; notes: what is worth knowing; others: further files that
    samples depend on, by name; foreign: how many images of a split's folder are not part of the data set.
    """

    entries: Mapping[Split, Mapping[str, Entry]]
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    others: Mapping[str, Path] = field(default_factory=dict)
    foreign: Mapping[Split, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Folders:
    """Where a split's images and masks lie below the archive's folder, and how their file names end."""

    images: str
    masks: str
    image_suffix: str
    mask_suffix: str


@dataclass(frozen=True)
class Expected:
    """What an official archive holds for a split: used images, of which copies may differ by `tolerance` (`why`), and foreign ones."""

    images: int
    tolerance: int = 0
    foreign: int = 0
    why: str = ""


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
        for array in _arrays(sample):
            array.setflags(write=False)
        with self._lock:
            if key in self._samples or _size_bytes(sample) > self.limit_bytes:
                return
            self._samples[key] = sample
            self.used_bytes += _size_bytes(sample)
            while self.used_bytes > self.limit_bytes:
                self.used_bytes -= _size_bytes(self._samples.popitem(last=False)[1])


def _arrays(sample: Sample) -> list[np.ndarray]:
    arrays = (sample.image, sample.mask, sample.objects, sample.labels, sample.class_map, sample.classes)
    return [array for array in arrays if array is not None]


def _size_bytes(sample: Sample) -> int:
    return sum(array.nbytes for array in _arrays(sample))


class ListedDataset(Dataset):
    """A data set of files: `survey` looks at listings only, and a file is decoded when its sample is asked for.

    Where there is no `val` split of its own, it is held out of the training images.
    """

    def __init__(
        self,
        entries: Mapping[Split, Mapping[str, Entry]],
        cache_bytes: int = CACHE_BYTES,
        others: Mapping[str, Path] | None = None,
    ) -> None:
        self.own_val, self._others = "val" in entries, dict(others or {})
        held_out = () if self.own_val else self.hold_out(tuple(sorted(entries["train"])))
        self._entries = {"val": {name: entries["train"][name] for name in held_out}, **entries}
        self._names = {split: tuple(sorted(of_split)) for split, of_split in self._entries.items()}
        self._cache = SampleCache(cache_bytes)

    @classmethod
    def survey(cls, data: Path) -> Survey:
        """What lies below `data`, and everything that keeps it from opening."""
        raise NotImplementedError

    @classmethod
    def open(cls, data: Path, cache_bytes: int = CACHE_BYTES) -> Self:
        """The data set that lies below `data`; DataError where a folder, a mask or an official image is absent."""
        found = cls.survey(Path(data))
        if found.faults:
            more = f" ({len(found.faults) - 1} more: `python -m datasets.prepare verify {cls.name}` names them)"
            raise DataError(f"{found.faults[0].rstrip('.')}{more if len(found.faults) > 1 else ''}.")
        return cls(found.entries, cache_bytes, found.others)

    def names(self, split: Split) -> tuple[str, ...]:
        """The names of a split's images, sorted."""
        return self._names[split]

    def entry(self, split: Split, name: str) -> Entry:
        """What is known of a sample before it is read; DataError for a name that the split does not have."""
        found = self._entries[split].get(name)
        if found is None:
            known = f"{len(self.names(split))} are, such as {', '.join(self.names(split)[:2])}"
            raise DataError(f"Data set {self.name}: {name!r} is not in its {split} split; {known}.")
        return found

    def load(self, split: Split, name: str) -> Sample:
        """Reads one sample; DataError, naming the file, where it is broken, and for a name that the split does not have."""
        entry = self.entry(split, name)
        # a val image that is held out is a training image: one copy of it is enough
        folder = "train" if split == "val" and not self.own_val else split
        return self._cache.get(folder, name, lambda: entry.read(name))

    def files(self) -> Mapping[str, Path]:
        """Every file that a sample is read from: "train/2432/image" and the like."""
        listed = [split for split in self._entries if split != "val" or self.own_val]
        found = [(split, name, entry.files()) for split in listed for name, entry in self._entries[split].items()]
        return {**self._others, **{f"{split}/{name}/{kind}": path for split, name, of in found for kind, path in of.items()}}


class FolderDataset(ListedDataset):
    """An official archive of image and mask files with a training and a test folder.

    A subclass states where its archive is found, which folders and file names it has, and above which grey value a mask is
    foreground; for `datasets.prepare` also the files to download, and how many images of which size (H, W) they hold. Where it states
    `classes`, a mask's values above the threshold are their ids, and the connected parts of each are objects.
    """

    home: ClassVar[str]
    archive: ClassVar[str]
    zips: ClassVar[tuple[str, ...]] = ()
    folders: ClassVar[Mapping[Split, Folders]]
    threshold: ClassVar[int]
    expected: ClassVar[Mapping[Split, Expected]] = {}
    pixels: ClassVar[tuple[int, int] | None] = None

    @classmethod
    def is_generated(cls, data: Path) -> bool:
        """Whether `datasets.synth` wrote the archive."""
        return (cls.root(Path(data)) / GENERATED_MARK).is_file()

    @classmethod
    def uses(cls, split: Split, stem: str) -> bool:
        """Whether the image `stem` of a split's folder belongs to the data set; a subclass may leave some out."""
        return True

    @classmethod
    def root(cls, data: Path) -> Path:
        """The folder that holds the archive's, `data/<name>` or `data` itself; the first also where nothing is there."""
        wanted = data / cls.name
        has_any = [any((root / f.images).is_dir() for f in cls.folders.values()) for root in (wanted, data)]
        return data if has_any == [False, True] else wanted

    @classmethod
    def survey(cls, data: Path) -> Survey:
        """The pairs of both splits; an absent folder, an image without its mask and an official image that is absent are faults."""
        root, found, faults = cls.root(data), {}, []
        for split in cls.folders:
            try:
                found[split] = cls._pairs(root, split)
            except DataError as error:
                faults.append(str(error))
        faults += [fault for of_split in found.values() for fault in of_split.faults]
        entries = {split: of_split.entries[split] for split, of_split in found.items()}
        faults += cls._absent_official(root, entries.get("train"))
        notes = [note for of_split in found.values() for note in of_split.notes]
        return Survey(entries, tuple(faults), tuple(notes), foreign={split: found[split].foreign[split] for split in found})

    @classmethod
    def _pairs(cls, root: Path, split: Split) -> Survey:
        """The pairs of a split by stem from the listings of its two folders; a fault for each image without a mask."""
        folders = cls.folders[split]
        images = cls._listing(root, root / folders.images, folders.image_suffix)
        masks = cls._listing(root, root / folders.masks, folders.mask_suffix)
        used = [stem for stem in images if cls.uses(split, stem)]
        if not used:
            raise DataError(f"Data set {cls.name}: none of the images in {root / folders.images} belongs to it; {cls._advice(root)}.")
        where = root / folders.masks
        bare = [
            f"Data set {cls.name}: the image {images[stem]} has no mask {stem}{folders.mask_suffix} in {where}; every image needs one."
            for stem in sorted(set(used) - set(masks))
        ]
        labels = Labels(False, cls.rule, cls.classes, f"the data set {cls.name}") if cls.classes else None
        pairs = {stem: Pair(images[stem], masks[stem], cls.threshold, labels=labels) for stem in used if stem in masks}
        return Survey({split: pairs}, tuple(bare), tuple(unused_masks(masks, images)), foreign={split: len(images) - len(used)})

    @classmethod
    def _listing(cls, root: Path, folder: Path, suffix: str) -> dict[str, Path]:
        """The files of `folder` that end in `suffix`, by stem; hidden ones (a Mac's `._name`) are none of them."""
        if not folder.is_dir():
            raise DataError(f"Data set {cls.name}: the folder {folder} does not exist; {cls._advice(root)}.")
        names = [n for n in os.listdir(folder) if n.lower().endswith(suffix) and not n.startswith(".")]
        if not names:
            raise DataError(f"Data set {cls.name}: the folder {folder} holds no {suffix} file; {cls._advice(root)}.")
        return {name[: -len(suffix)]: check_name(folder / name) for name in names}

    @classmethod
    def _absent_official(cls, root: Path, train: Mapping[str, Entry] | None) -> list[str]:
        if train is None:
            return []
        folders = cls.folders["train"]
        lists = sorted(cls.official.items(), reverse=True)  # an image of several lists is named by the shortest
        absent = {stem: shots for shots, listed in lists for stem in listed if stem not in train}
        return [
            f"Data set {cls.name}: {stem}{folders.image_suffix} of the official {shots}-shot list is not in "
            f"{root / folders.images} with its mask; `python -m datasets.prepare where {cls.name}` says which archive is needed."
            for stem, shots in sorted(absent.items(), key=lambda item: item[1])
        ]

    @classmethod
    def _advice(cls, root: Path) -> str:
        return (
            f"get {cls.archive} from {cls.home} and unpack it into {root} (`python -m datasets.prepare {cls.name} --from ZIP` does), "
            f"or write a generated stand-in with `python -m datasets.synth --layout {cls.name} --out {root}`"
        )


def named(classes: Mapping[int, str]) -> str:
    """What class ids there are, as the end of a sentence."""
    return f"{', '.join(f'{number} ({name})' for number, name in sorted(classes.items()))} are allowed"


def unused_masks(masks: Mapping[str, Path], wanted: Iterable[str]) -> list[str]:
    """A sentence if there are masks that are not among those wanted, which no image has."""
    left = sorted(masks.keys() - set(wanted))
    return [f"{len(left)} masks without an image are not used, such as {masks[left[0]]}."] if left else []


def fitted(image: Bytes, pair: Pair, shape: tuple[int, ...]) -> Bytes:
    """`image` at its mask's size (H, W): transposed where the sizes are swapped, else resized; the reference does the same.

    DataError where the shapes differ so much that the mask cannot be this image's, or are swapped by the image's orientation tag.
    """
    if image.shape[:2] == shape:
        return image
    if image.shape[:2] == shape[::-1]:
        if (tag := orientation(pair.image)) >= ROTATED:
            raise DataError(
                f"The image {pair.image} is turned upright by its orientation tag, {tag}, and its mask {pair.mask} has the size that it "
                f"has without: turn the mask, or save the image without the tag."
            )
        return np.ascontiguousarray(image.transpose(1, 0, 2))
    aspect, expected = image.shape[1] / image.shape[0], shape[1] / shape[0]
    if max(aspect / expected, expected / aspect) > 1 + pair.aspect_tolerance:
        raise DataError(
            f"The mask {pair.mask} has {shape} pixels (H, W) and its image {image.shape[:2]}: the aspect ratios must agree within "
            f"{pair.aspect_tolerance:.0%}, or within aspect_tolerance of a data set of your own."
        )
    return cv2.resize(image, shape[::-1], interpolation=cv2.INTER_LINEAR).astype(np.uint8, copy=False)
