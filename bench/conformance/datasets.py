"""The conformance suite for data sets: what every one must keep, tried on its own files.

`python -m bench.check whu --data DIR` prints what it finds.
"""

import random
from functools import cached_property
from pathlib import Path

import numpy as np

from bench.conformance.checks import Check, NotPromised, need
from bench.data.objects import sample_objects
from bench.grid.registry import DATASETS
from bench.types import SPLITS, Dataset, ObjectRule, Sample, Split

DRAWS = (1, 2, 3)


class DatasetSubject:
    """A data set below the folder `data`. Of each split at most `images` samples are read, evenly spaced; 0 reads all.

    DataError where it cannot be opened.
    """

    def __init__(self, name: str, data: Path, images: int = 16) -> None:
        self.cls, self.data, self.images = DATASETS.get(name), data, images
        self.dataset = self.reopened()

    def reopened(self) -> Dataset:
        """The data set, opened anew."""
        opened: Dataset = self.cls.open(self.data)  # type: ignore[attr-defined]
        return opened

    def chosen(self, split: Split) -> list[str]:
        """The names that are looked at."""
        names = self.dataset.names(split)
        count = min(self.images or len(names), len(names))
        return [names[i * len(names) // count] for i in range(count)]

    @cached_property
    def samples(self) -> list[tuple[Split, str, Sample]]:
        """Samples of all splits, the official few-shot images among them."""
        official = [name for names in self.dataset.official.values() for name in names]
        wanted = [(split, name) for split in SPLITS for name in self.chosen(split)]
        wanted += [("train", name) for name in dict.fromkeys(official) if ("train", name) not in wanted]
        return [(split, name, self.dataset.load(split, name)) for split, name in wanted]


def describes_itself(data: DatasetSubject) -> str:
    cls = data.cls
    need(isinstance(getattr(cls, "title", None), str) and cls.title, "It has no title: a text is needed.")  # type: ignore[attr-defined]
    revision = getattr(cls, "revision", None)
    need(type(revision) is int and revision >= 1, f"Its revision is {revision!r}: a whole number from 1 is needed.")
    need(
        isinstance(getattr(cls, "rule", None), ObjectRule),
        "It has no rule that says which components are objects: an ObjectRule is needed.",
    )
    need(cls.__doc__, "It has no docstring, which says what it shows.")
    generated = cls.is_generated(data.data)  # type: ignore[attr-defined]
    need(type(generated) is bool, f"is_generated says {generated!r}: True or False is needed.")
    return f"{cls.title}, revision {revision}" + (", a generated stand-in" if generated else "")  # type: ignore[attr-defined]


def names_are_unique_and_sorted(data: DatasetSubject) -> str:
    counts = []
    for split in SPLITS:
        names = data.dataset.names(split)
        need(names or split == "val", f"Its {split} split is empty.")
        need(all(isinstance(name, str) and name for name in names), f"Its {split} split has names that are no texts.")
        twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
        need(not twice, f"Its {split} split has {twice[0] if twice else ''} more than once.")
        need(list(names) == sorted(names), f"The names of its {split} split are not sorted.")
        counts.append(f"{split} {len(names)}")
    return ", ".join(counts)


def splits_are_disjoint(data: DatasetSubject) -> str:
    train, val, test = (set(data.dataset.names(split)) for split in SPLITS)
    both = sorted(test & train) + sorted(test & val)
    need(not both, f"{len(both)} names are in test and in train or val: {', '.join(both[:3])}.")
    need(val <= train or not val & train, f"{len(val & train)} of {len(val)} val images are in train: all or none must be.")
    return "val is held out of train" if val <= train and val else "val is apart from train" if val else "no image is held out"


def official_lists_are_training_images(data: DatasetSubject) -> str:
    official, train = data.dataset.official, set(data.dataset.names("train"))
    if not official:
        raise NotPromised("it has no official few-shot list; draw 0 is a hash as the others are")
    for shots, names in official.items():
        need(len(set(names)) == shots, f"Its official {shots}-shot list has {len(set(names))} images.")
        missing = [name for name in names if name not in train]
        need(not missing, f"{len(missing)} images of its official {shots}-shot list are not in train: {', '.join(missing[:3])}.")
        need(data.dataset.support(shots) == names, f"support({shots}) is not its official list.")
        held = set(names) & set(data.dataset.names("val"))
        need(not held, f"{len(held)} images of its official {shots}-shot list are held out as val.")
    return f"for {', '.join(map(str, official))} shots"


def support_depends_on_its_arguments_alone(data: DatasetSubject) -> str:
    pool = len(set(data.dataset.names("train")) - set(data.dataset.names("val")))
    asked = [(shots, draw) for shots in sorted({1, min(4, pool)}) for draw in DRAWS]
    first = {which: data.dataset.support(*which) for which in asked}
    random.seed(1)
    np.random.seed(1)
    other = data.reopened()
    for which in reversed(asked):
        for again in (other.support(*which), data.dataset.support(*which)):
            need(again == first[which], f"support{which} is {first[which][:3]} first and {again[:3]} later.")
    return f"{len(asked)} draws, twice, in another order"


def support_is_drawn_from_the_training_images(data: DatasetSubject) -> str:
    train, val = set(data.dataset.names("train")), set(data.dataset.names("val"))
    shots = min(4, len(train - val))
    draws = [data.dataset.support(shots, draw) for draw in DRAWS]
    for draw, names in zip(DRAWS, draws, strict=True):
        need(len(set(names)) == shots, f"support({shots}, {draw}) has {len(set(names))} images.")
        strange = [name for name in names if name not in train - val]
        need(not strange, f"support({shots}, {draw}) has {', '.join(strange[:3])}, which are held out or no training images.")
        bare = [name for name in names if not data.dataset.rule.count(data.dataset.load("train", name))]
        need(not bare, f"support({shots}, {draw}) has {', '.join(bare[:3])}, without any object to prompt with.")
    need(len(train - val) <= 2 * shots or len(set(draws)) > 1, f"Draws {DRAWS} are the same images.")
    held = set(data.dataset.support("full", hold_out_val=True)) & val
    need(not held, f"support('full', hold_out_val=True) has {len(held)} held-out images.")
    return f"{shots} images, another choice for another draw"


def samples_have_the_promised_form(data: DatasetSubject) -> str:
    for split, name, sample in data.samples:
        where = f"{split} {name}"
        need(sample.name == name, f"The sample {where} is named {sample.name!r}.")
        image, mask = sample.image, sample.mask
        need(
            image.dtype == np.uint8 and image.ndim == 3 and image.shape[-1] == 3,
            f"The image of {where} is {image.dtype} {image.shape}: uint8 (H, W, 3) is needed.",
        )
        need(
            mask.dtype == np.uint8 and mask.shape == image.shape[:2],
            f"The mask of {where} is {mask.dtype} {mask.shape}: uint8 {image.shape[:2]} is needed.",
        )
        values = np.unique(mask).tolist()
        few = ", ".join(map(str, values[:4])) + (", …" if len(values) > 4 else "")
        need(set(values) <= {0, 1}, f"The mask of {where} has the values {few}: 0 and 1 are allowed.")
    sizes = {sample.mask.shape for _, _, sample in data.samples}
    return (
        f"{len(data.samples)} read, {len(sizes)} sizes"
        if len(sizes) > 1
        else f"{len(data.samples)} read, all {'×'.join(map(str, sizes.pop()[::-1]))} pixels"
    )


def reading_again_gives_the_same(data: DatasetSubject) -> str:
    other = data.reopened()
    for split in SPLITS:
        for name in data.chosen(split)[:3]:
            sample = data.dataset.load(split, name)
            image, mask = sample.image.copy(), sample.mask.copy()
            for array in (sample.image, sample.mask):
                if array.flags.writeable:
                    array[...] = 1 - array  # what a reader does to its sample is its own affair
            for what, again in (("again", data.dataset.load(split, name)), ("after opening it anew", other.load(split, name))):
                need(
                    np.array_equal(again.image, image) and np.array_equal(again.mask, mask),
                    f"{split} {name} has other pixels when it is read {what}.",
                )
    return "the same pixels, whatever a reader does to them"


def objects_are_found(data: DatasetSubject) -> str:
    counts = {(split, name): len(sample_objects(sample, data.dataset.rule)) for split, name, sample in data.samples}
    need(any(counts.values()), f"None of {len(counts)} images has an object by its rule {data.dataset.rule}.")
    for shots, names in data.dataset.official.items():
        need(any(counts["train", name] for name in names), f"None of its official {shots}-shot images has an object.")
    empty = sum(not count for count in counts.values())
    return f"{sum(counts.values())} in {len(counts)} images, {empty} of them without any"


DATASET_CHECKS: tuple[Check[DatasetSubject], ...] = (
    describes_itself,
    names_are_unique_and_sorted,
    splits_are_disjoint,
    official_lists_are_training_images,
    support_depends_on_its_arguments_alone,
    support_is_drawn_from_the_training_images,
    samples_have_the_promised_form,
    reading_again_gives_the_same,
    objects_are_found,
)
