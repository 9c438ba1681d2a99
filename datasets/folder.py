"""Data sets that lie in folders of images and masks: pairs the two by stem, reads them lazily, remembers what is re-read."""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
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

    labels: None where all foreground is of one kind; is_one: then all of it is one object, however many parts it has.
    """

    image: Path
    mask: Path
    threshold: int = 0
    bits: int = 0
    labels: Labels | None = None
    aspect_tolerance: float = ASPECT_TOLERANCE
    is_one: bool = False

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
            return Sample(name, fits, mask, labels=mask if self.is_one else None)
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

    def with_part(self, more: "Survey") -> "Survey":
        """Both together."""
        entries = {split: {**self.entries.get(split, {}), **of_split} for split, of_split in more.entries.items()}
        foreign = {split: self.foreign.get(split, 0) + count for split, count in more.foreign.items()}
        joined = ((*self.faults, *more.faults), (*self.notes, *more.notes), {**self.others, **more.others})
        return Survey({**self.entries, **entries}, *joined, {**self.foreign, **foreign})


@dataclass(frozen=True)
class Folders:
    """Where images and masks lie below the archive's folder, and how their file names end.

    part: of a split that lies in several such folders, what this one is called: its images are `part/stem`.
    """

    images: str
    masks: str
    image_suffix: str
    mask_suffix: str
    part: str = ""

    def name(self, stem: str) -> str:
        """A sample's name."""
        return f"{self.part}/{stem}" if self.part else stem


SplitFolders = Mapping[Split, Folders | tuple[Folders, ...]]


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

    def __init__(self, entries: Mapping[Split, Mapping[str, Entry]], others: Mapping[str, Path]) -> None:
        self.own_val, self._others = "val" in entries, others
        held_out = () if self.own_val else self.hold_out(tuple(sorted(entries["train"])))
        self._entries = {"val": {name: entries["train"][name] for name in held_out}, **entries}
        self._names = {split: tuple(sorted(of_split)) for split, of_split in self._entries.items()}
        self._cache = SampleCache()

    @classmethod
    def survey(cls, data: Path) -> Survey:
        """What lies below `data`, and everything that keeps it from opening."""
        raise NotImplementedError

    @classmethod
    def open(cls, data: Path) -> Self:
        """The data set that lies below `data`; DataError where a folder, a mask or an official image is absent."""
        found = cls.survey(Path(data))
        if found.faults:
            more = f" ({len(found.faults) - 1} more: `python -m datasets.prepare verify {cls.name}` names them)"
            raise DataError(f"{found.faults[0].rstrip('.')}{more if len(found.faults) > 1 else ''}.")
        return cls(found.entries, found.others)

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


class ArchiveDataset(ListedDataset):
    """A data set that is read from the folders of an official archive.

    A subclass states where the archive is found, what it and its files are called, what its licence allows, and what it is read from
    (`needs`); for `datasets.prepare` also how many images of which size (H, W) it holds. ours: what nobody published, and is decided here.
    """

    home: ClassVar[str]
    archive: ClassVar[str]
    licence: ClassVar[str] = ""
    ours: ClassVar[str] = ""
    zips: ClassVar[tuple[str, ...]] = ()
    expected: ClassVar[Mapping[Split, Expected]] = {}
    pixels: ClassVar[tuple[int, int] | None] = None

    @classmethod
    def needs(cls) -> tuple[tuple[str, str], ...]:
        """Every folder below the archive's that is read, with the ending of the files that are."""
        raise NotImplementedError

    @classmethod
    def is_generated(cls, data: Path) -> bool:
        """Whether `datasets.synth` wrote the archive."""
        return (cls.root(Path(data)) / GENERATED_MARK).is_file()

    @classmethod
    def place(cls, data: Path) -> Path:
        """Where `datasets.prepare` puts the archive, `data/<name>`: data sets of one archive have one place."""
        return data / (cls.pool or cls.name)

    @classmethod
    def root(cls, data: Path) -> Path:
        """The folder that holds the archive's, its place or `data` itself; the first also where nothing is there."""
        has_any = [any((root / folder).is_dir() for folder, _ in cls.needs()) for root in (cls.place(data), data)]
        return data if has_any == [False, True] else cls.place(data)

    @classmethod
    def listing(cls, root: Path, folder: str, suffix: str) -> dict[str, Path]:
        """The files of a folder below `root` that end in `suffix`, by stem; hidden ones (a Mac's `._name`) are none of them.

        DataError, with the way to get the archive, where there are none.
        """
        where = root / folder
        if not where.is_dir():
            raise DataError(f"Data set {cls.name}: the folder {where} does not exist; {cls.advice(root)}.")
        names = [n for n in os.listdir(where) if n.lower().endswith(suffix) and not n.startswith(".")]
        if not names:
            raise DataError(f"Data set {cls.name}: the folder {where} holds no {suffix} file; {cls.advice(root)}.")
        return {name[: -len(suffix)]: check_name(where / name) for name in names}

    @classmethod
    def listings(cls, root: Path) -> tuple[dict[tuple[str, str], dict[str, Path]], tuple[str, ...]]:
        """The listing of everything that is needed, and a sentence for each that there is not."""
        found, faults = {}, []
        for folder, suffix in cls.needs():
            try:
                found[folder, suffix] = cls.listing(root, folder, suffix)
            except DataError as error:
                faults.append(str(error))
        return found, tuple(faults)

    @classmethod
    def advice(cls, root: Path) -> str:
        """What to do where something is absent, as the end of a sentence."""
        return (
            f"get {cls.archive} from {cls.home} and unpack it into {root} (`python -m datasets.prepare {cls.name} --from ZIP` does), "
            f"or write a generated stand-in with `python -m datasets.synth --layout {cls.pool or cls.name} --out {root}`"
        )


class FolderDataset(ArchiveDataset):
    """An official archive of image and mask files.

    A subclass states which folders and file names its splits have, above which grey value a mask is foreground, and whether all of
    that is one object. Where it states `classes`, a mask's values above the threshold are their ids, and the connected parts of each are
    objects.
    """

    folders: ClassVar[SplitFolders]
    threshold: ClassVar[int]
    is_one: ClassVar[bool] = False

    @classmethod
    def uses(cls, split: Split, stem: str) -> bool:
        """Whether the image `stem` of a split's folder belongs to the split; a subclass may leave some out."""
        return True

    @classmethod
    def parts(cls, split: Split) -> tuple[Folders, ...]:
        """The folders of a split."""
        found = cls.folders[split]
        return found if isinstance(found, tuple) else (found,)

    @classmethod
    def needs(cls) -> tuple[tuple[str, str], ...]:
        """The folders of images and of masks."""
        parts = [part for split in cls.folders for part in cls.parts(split)]
        needed = [pair for of in parts for pair in ((of.images, of.image_suffix), (of.masks, of.mask_suffix))]
        return tuple(dict.fromkeys(needed))

    @classmethod
    def survey(cls, data: Path) -> Survey:
        """The pairs of all splits; an absent folder, an image without its mask and an official image that is absent are faults."""
        root, found, faults = cls.root(data), Survey({}), []
        for split in cls.folders:
            for folders in cls.parts(split):
                try:
                    found = found.with_part(cls._pairs(root, split, folders))
                except DataError as error:
                    faults.append(str(error))
        faults += [*found.faults, *cls._absent_official(root, found.entries.get("train"))]
        return replace(found, faults=tuple(faults))

    @classmethod
    def _pairs(cls, root: Path, split: Split, folders: Folders) -> Survey:
        """The pairs of a folder by stem from the listings of images and masks; a fault for each image without a mask."""
        images = cls.listing(root, folders.images, folders.image_suffix)
        masks = cls.listing(root, folders.masks, folders.mask_suffix)
        used = [stem for stem in images if cls.uses(split, stem)]
        if not used:
            where = root / folders.images
            raise DataError(f"Data set {cls.name}: none of the images in {where} belongs to its {split} split; {cls.advice(root)}.")
        bare = [
            f"Data set {cls.name}: the image {images[stem]} has no mask {stem}{folders.mask_suffix} in {root / folders.masks}; "
            f"every image needs one."
            for stem in sorted(set(used) - set(masks))
        ]
        labels = Labels(False, cls.rule, cls.classes, f"the data set {cls.name}") if cls.classes else None
        pairs = {
            folders.name(stem): Pair(images[stem], masks[stem], cls.threshold, labels=labels, is_one=cls.is_one)
            for stem in used
            if stem in masks
        }
        others = [other for other in cls.folders if folders in cls.parts(other)]
        foreign = sum(not any(cls.uses(other, stem) for other in others) for stem in images)
        return Survey({split: pairs}, tuple(bare), tuple(unused_masks(masks, images)), foreign={split: foreign})

    @classmethod
    def _absent_official(cls, root: Path, train: Mapping[str, Entry] | None) -> list[str]:
        if train is None:
            return []
        folders = cls.parts("train")[0]
        lists = sorted(cls.official.items(), reverse=True)  # an image of several lists is named by the shortest
        absent = {stem: shots for shots, listed in lists for stem in listed if stem not in train}
        return [
            f"Data set {cls.name}: {stem}{folders.image_suffix} of the official {shots}-shot list is not in "
            f"{root / folders.images} with its mask; `python -m datasets.prepare where {cls.name}` says which archive is needed."
            for stem, shots in sorted(absent.items(), key=lambda item: item[1])
        ]


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
