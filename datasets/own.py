"""Data sets that a TOML file describes, without code: a folder of images with a folder of masks, or with COCO's annotations.

`configs/datasets/NAME.toml`, and for who does not want to touch the checkout `NAME.toml` in the data folder, is the data set NAME.
A file whose name begins with `_` is an example and passed over; `_folders.toml` and `_coco.toml` explain every key.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self, cast

from bench.errors import DataError, RequestError, is_text
from bench.grid.files import composed, read_text
from bench.grid.registry import DATASETS
from bench.types import SPLITS, Dataset, ObjectRule, Split, hash_order
from datasets.coco import read_coco
from datasets.definition import Definition, SplitFiles, read_definition
from datasets.folder import Entry, Labels, ListedDataset, Pair, Survey, unused_masks

CONFIGS = Path(__file__).parent.parent / "configs" / "datasets"
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
Entries = Mapping[str, Entry]


@dataclass(frozen=True)
class Listing:
    """What lies in one folder of images with its truth: see Survey."""

    entries: Entries = field(default_factory=dict)
    faults: Sequence[str] = ()
    notes: Sequence[str] = ()
    others: Mapping[str, Path] = field(default_factory=dict)


class OwnDataset(ListedDataset):
    """A data set of somebody's own; every definition has a subclass, made by `register_own`.

    Its revision is a hash of the definition and of the lists that it refers to: of all but the images and masks themselves,
    which the fingerprint in a record is for.
    """

    source: ClassVar[Path]
    definition: ClassVar[Definition]

    def __init__(self, entries: Mapping[Split, Entries], others: Mapping[str, Path]) -> None:
        type(self).official = {shots: _known(names, entries["train"]) for shots, names in self.official.items()}  # of `open`'s class
        super().__init__(entries, others)

    @classmethod
    def revision_of(cls, data: Path) -> int:
        """See the class."""
        lists = {file: read_names(cls.name, data / file) for file in cls.definition.lists()}
        content = json.dumps([cls.definition.keyed(), lists], sort_keys=True)
        return int(hashlib.sha256(content.encode()).hexdigest()[:12], 16)

    @classmethod
    def open(cls, data: Path) -> Self:
        """As of every data set; the class of what is opened knows the few-shot lists too, which may stand in files below `data`."""
        bound: Any = type(cls.__name__, (cls,), {"official": cls._few_shot(Path(data))})
        return cast(Self, super(OwnDataset, bound).open(Path(data)))

    @classmethod
    def survey(cls, data: Path) -> Survey:
        """The images of every split. Faults are: what a list names and is not there, what has no mask, what is in two splits."""
        splits = [split for split in SPLITS if split == "train" or split in cls.definition.splits]
        places = {split: replace(cls.definition.split(split), list="") for split in splits}
        listings = {place: cls._listing(data, place) for place in dict.fromkeys(places.values())}
        entries = {split: listings[places[split]].entries for split in splits}
        faults = [fault for listing in listings.values() for fault in listing.faults]
        for split in splits:
            if list_file := cls.definition.split(split).list:
                names = _known(read_names(cls.name, data / list_file), entries[split])
                faults += cls._not_in(names, entries[split], f"{data / list_file}", places[split].images)
                entries[split] = {name: entries[split][name] for name in names if name in entries[split]}
        if cls.definition.test_share:
            entries = cls._shared_out(entries["train"])
        if not faults:
            faults = [*cls._bad_splits(entries), *cls._bad_shots(data, entries["train"])]
        others = {name: path for listing in listings.values() for name, path in listing.others.items()}
        return Survey(entries, tuple(faults), tuple(note for listing in listings.values() for note in listing.notes), others)

    @classmethod
    def _listing(cls, data: Path, place: SplitFiles) -> Listing:
        """The entries of one folder, whatever splits they are in."""
        if place.annotations:
            path = data / place.annotations
            found = read_coco(path, data / place.images, cls.definition, cls.source)
            return Listing(found.images, [cls._fault(fault) for fault in found.faults], found.notes, {place.annotations: path})
        images, doubled = cls._files(data / place.images, cls.definition.extensions)
        masks, doubled_masks = cls._files(data / place.masks, cls.definition.mask_extensions)
        suffix = cls.definition.mask_suffix
        if suffix and place.images == place.masks:  # one folder for both: what has a mask's name is no image
            images = {name: path for name, path in images.items() if not name.endswith(suffix)}
        masks = {name: path for name, path in masks.items() if name.endswith(suffix)}
        same = {composed(name): name for name in masks}
        of_image = {name: same.get(composed(name + suffix), name + suffix) for name in images}
        bare = [
            cls._fault(f"the image {images[name]} has no mask {of_image[name]} in {data / place.masks}")
            for name in sorted(images)
            if of_image[name] not in masks
        ]
        pairs = {name: cls._pair(images[name], masks[of_image[name]]) for name in images if of_image[name] in masks}
        return Listing(pairs, [*doubled, *doubled_masks, *bare], unused_masks(masks, of_image.values()))

    @classmethod
    def _pair(cls, image: Path, mask: Path) -> Pair:
        told = cls.definition
        labels = None if told.mask_values == "foreground" else Labels(told.mask_values == "ids", cls.rule, cls.classes, str(cls.source))
        return Pair(image, mask, told.threshold, told.bits, labels, told.aspect_tolerance)

    @classmethod
    def _files(cls, folder: Path, extensions: Sequence[str]) -> tuple[dict[str, Path], list[str]]:
        """The files of a folder by name without extension, and a fault for each name that stands for two."""
        if not folder.is_dir():
            raise DataError(cls._fault(f"the folder {folder} does not exist; {cls.source} names it, relative to the data folder"))
        found: dict[str, Path] = {}
        faults = []
        wanted = {extension.lower() for extension in extensions}
        for path in sorted(Path(entry.path) for entry in os.scandir(folder) if not entry.name.startswith(".")):
            if path.suffix.lower() not in wanted:
                continue
            if not is_text(path.name):
                faults.append(cls._fault(f"the name of the file {str(path)!a} is not UTF-8: rename it"))
                continue
            if path.stem in found:
                faults.append(cls._fault(f"{found[path.stem]} and {path.name} have the same name; `extensions` in {cls.source} can choose"))
            found[path.stem] = path
        if not found:
            raise DataError(cls._fault(f"the folder {folder} holds no file that ends in {', '.join(sorted(wanted))}"))
        return found, faults

    @classmethod
    def _shared_out(cls, entries: Entries) -> dict[Split, Entries]:
        """Train and test by the hash of the names, so that a new image moves no other one but at the border."""
        order = hash_order(list(entries), cls.name, "test")
        test = order[: max(1, round(cls.definition.test_share * len(order)))]
        return {"train": {name: entries[name] for name in entries if name not in set(test)}, "test": {name: entries[name] for name in test}}

    @classmethod
    def _bad_splits(cls, entries: Mapping[Split, Entries]) -> Iterator[str]:
        seen: dict[Path, str] = {}
        for split, of_split in entries.items():
            if not of_split:
                yield cls._fault(f"its {split} split has no image")
            for name, entry in of_split.items():
                path = entry.files()["image"]
                if path in seen:
                    yield cls._fault(f"the image {name} is in the {seen[path]} and in the {split} split")
                seen[path] = split

    @classmethod
    def _bad_shots(cls, data: Path, train: Entries) -> Iterator[str]:
        for shots, names in cls._few_shot(data).items():
            yield from cls._not_in(_known(names, train), train, f"the {shots}-shot list", "the train split")
            if len(set(names)) != shots:
                yield cls._fault(f"the {shots}-shot list has {len(set(names))} different images")

    @classmethod
    def _few_shot(cls, data: Path) -> dict[int, tuple[str, ...]]:
        listed = cls.definition.few_shot.items()
        return {shots: names if isinstance(names, tuple) else read_names(cls.name, data / names) for shots, names in listed}

    @classmethod
    def _not_in(cls, names: Sequence[str], entries: Entries, where: str, what: str) -> list[str]:
        return [cls._fault(f"the image {name} of {where} is not in {what}") for name in names if name not in entries]

    @classmethod
    def _fault(cls, text: str) -> str:
        return f"Data set {cls.name}: {text.rstrip('.')}."


def read_names(dataset: str, path: Path) -> tuple[str, ...]:
    """The names in a text file, one a line, with or without an image's extension; # begins a comment. DataError as usual."""
    try:
        lines = [line.partition("#")[0].strip().removeprefix("./") for line in read_text(path).splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise DataError(f"Data set {dataset}: the list {path} cannot be read: {reason}.") from None
    ends = [(line, Path(line).suffix) for line in lines if line]  # a name may have a point in it
    return tuple(dict.fromkeys(line.removesuffix(end) if end.lower() in Definition.extensions else line for line, end in ends))


def _known(names: Sequence[str], entries: Entries) -> tuple[str, ...]:
    """The names as the entries have them, whatever form of Unicode they are listed in."""
    same = {composed(name): name for name in entries}
    return tuple(same.get(composed(name), name) for name in names)


class BrokenDataset(Dataset):
    """A definition that cannot be read: it is known by name, and says why as soon as somebody asks for it."""

    error: ClassVar[RequestError]

    @classmethod
    def revision_of(cls, data: Path) -> int:
        """Raises the reason."""
        raise cls.error

    @classmethod
    def open(cls, data: Path) -> Self:
        """Raises the reason."""
        raise cls.error


def register_own(folder: Path) -> None:
    """Enters the definitions of folders; one that is entered already is replaced if its file changed.

    RequestError for a name that another data set has, or that a cell's folder cannot have.
    """
    for path in sorted(path for path in folder.glob("*.toml") if not path.name.startswith("_")):
        if not NAME.fullmatch(path.stem):
            raise RequestError(f"{path}: {path.stem!r} cannot be a data set's name: letters, digits and _ are allowed, a letter first.")
        held: Any = DATASETS.get(path.stem) if path.stem in DATASETS.names() else None
        cls = own_class(path)
        source = getattr(held, "source", None)
        if source == path and getattr(held, "definition", None) == getattr(cls, "definition", object()):
            continue
        if source is not None and source != path and CONFIGS in (source.parent, path.parent) and source.is_file():
            raise RequestError(f"The data set {path.stem} is described twice, in {source} and in {path}; one is enough.")
        DATASETS.register(path.stem)(cls)


def own_class(path: Path) -> type[Dataset]:
    """The class of a definition's file."""
    about = f"What {path} describes."
    shared = {"name": path.stem, "source": path, "__module__": __name__, "__qualname__": path.stem, "__doc__": about}
    try:
        definition = read_definition(path)
    except RequestError as error:
        return type(path.stem, (BrokenDataset,), {**shared, "title": path.stem, "error": error})
    rule = ObjectRule(definition.connectivity, definition.min_area, definition.relative_area)
    told = {
        "title": definition.title or path.stem,
        "rule": rule,
        "training_prompts": definition.training_prompts,
        "val_images": definition.val_images,
        "classes": {number: name for name, number in definition.classes.items()},
        "metric": definition.metric,
        "settings": definition.settings,
        "definition": definition,
        "threshold": definition.threshold,
    }
    return type(path.stem, (OwnDataset,), {**shared, **told})


register_own(CONFIGS)
DATASETS.finders.append(register_own)
