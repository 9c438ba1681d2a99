"""Three generated domains that need no file, and a writer that lays them out as the real archives are.

    python -m datasets.synth --layout whu --out data/whu --train 24 --test 12    # seconds on a CPU
    python -m datasets.synth --choose-shots                                      # the official lists below, computed again

What it wrote is marked as generated, and the tables say so.
"""

import argparse
import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from bench.data.objects import mask_objects
from bench.errors import DataError, RequestError, one_sentence
from bench.grid.command_line import command_parser
from bench.grid.registry import DATASETS
from bench.types import Dataset, ObjectRule, Sample, Split, TrainingPrompts, hash_order
from datasets import fls, hrsid, jsrt
from datasets.fls import Fls
from datasets.folder import GENERATED_MARK, ArchiveDataset, Bytes, FolderDataset, Folders, SampleCache, stems
from datasets.hqseg44k import HqSeg44k
from datasets.hrsid import Hrsid
from datasets.jsrt import Jsrt
from datasets.kvasir import Cvc300, CvcClinicDb, CvcColonDb, EtisLarib, Kvasir
from datasets.mass_roads import MassRoads
from datasets.sbu import Sbu
from datasets.scenes import buildings, polyps, rng_for, shadows
from datasets.stand_ins import Coco, Pairs, Picture, Radiographs, binary, class_ids, noisy
from datasets.whu import TILES, Whu

SIZE = 192  # pixels a side
MOST = 4000  # images of a split that can be written
INDICES: Mapping[Split, range] = {"train": range(64), "val": range(64, 96), "test": range(96, 160)}


class SynthDataset(Dataset):
    """A domain whose images are drawn when they are asked for, each from a key of its own: (domain, split, index, revision).

    `val` lies apart from `train`. The object rules are the real counterparts': at 192 pixels a side their smallest areas are
    already below anything that a scene draws on purpose.
    """

    draw: ClassVar["staticmethod[[np.random.Generator, int], tuple[Bytes, Bytes]]"]

    def __init__(self) -> None:
        self._cache = SampleCache()

    @classmethod
    def open(cls, data: Path) -> Self:
        """The domain; whatever lies in `data` does not matter."""
        return cls()

    def names(self, split: Split) -> tuple[str, ...]:
        """Four-digit numbers, different ones in every split."""
        return tuple(f"{index:04d}" for index in INDICES[split])

    def load(self, split: Split, name: str) -> Sample:
        """Draws one sample; DataError for a name that the split does not have."""
        if name not in self.names(split):
            known = f"{self.names(split)[0]} to {self.names(split)[-1]} are"
            raise DataError(f"Data set {self.name}: {name!r} is not in its {split} split; {known}.")
        return self._cache.get(split, name, lambda: Sample(name, *self.scene(split, int(name))))

    @classmethod
    def scene(cls, split: str, index: int) -> tuple[Bytes, Bytes]:
        """The image (192, 192, 3) RGB and the mask (192, 192) of a key."""
        return cls.draw(rng_for(cls.name, split, index, cls.revision), SIZE)


@DATASETS.register("synth_buildings")
class SynthBuildings(SynthDataset):
    """Aerial tiles after WHU."""

    title = "Buildings (generated)"
    draw = staticmethod(buildings)
    rule = ObjectRule(connectivity=4, min_area=20)
    training_prompts = TrainingPrompts(max_objects=25, noise_scale=2, noise_threshold=0.0)
    official: ClassVar = {
        1: ("0017",),
        16: stems("0011 0012 0013 0015 0017 0018 0026 0031 0036 0038 0042 0045 0047 0049 0060 0063"),
    }


@DATASETS.register("synth_polyps")
class SynthPolyps(SynthDataset):
    """Colonoscopy frames after Kvasir."""

    title = "Polyps (generated)"
    draw = staticmethod(polyps)
    rule = ObjectRule(connectivity=8, min_area=20, relative_area=0.001)
    official: ClassVar = {
        1: ("0063",),
        16: stems("0002 0006 0007 0009 0010 0025 0029 0031 0040 0046 0051 0052 0054 0055 0061 0063"),
    }


@DATASETS.register("synth_shadows")
class SynthShadows(SynthDataset):
    """Photographs with cast shadows after SBU."""

    title = "Shadows (generated)"
    draw = staticmethod(shadows)
    rule = ObjectRule(connectivity=8, min_area=10, relative_area=0.001)
    official: ClassVar = {
        1: ("0044",),
        16: stems("0002 0005 0006 0008 0012 0013 0023 0026 0029 0038 0044 0046 0049 0051 0060 0063"),
    }


# The official lists: chosen by a rule that sees the training pool alone.


def choose_shots(dataset: SynthDataset, shots: int = 16) -> tuple[str, ...]:
    """The official few-shot images of a domain, the one-shot image first.

    Every training image is described by `statistics`, each in units of its spread over the pool. The first image is the one
    nearest to the pool's median, among those with at least as many objects as the median image. Each further image is the
    one that brings the pool nearest to its chosen images (the sum of distances to the nearest one falls the most), so that
    the list covers the pool.
    """
    names = dataset.names("train")
    found = np.stack([statistics(dataset.load("train", name), dataset.rule) for name in names])  # (N, 5)
    median, spread = np.median(found, axis=0), np.maximum(found.std(axis=0), 1e-9)
    points = (found - median) / spread
    too_few = found[:, 0] < median[0]
    chosen = [int(np.argmin(np.linalg.norm(points, axis=1) + np.where(too_few, np.inf, 0.0)))]
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)  # (N, N)
    while len(chosen) < shots:
        to_nearest = distances[:, chosen].min(axis=1, keepdims=True)
        chosen.append(int(np.argmin(np.minimum(distances, to_nearest).sum(axis=0))))
    return tuple(names[index] for index in chosen)


def statistics(sample: Sample, rule: ObjectRule) -> NDArray[np.float64]:
    """(5,): number of objects, foreground share, mean side of an object, contrast to the background, brightness."""
    areas = mask_objects(sample.mask, rule).areas
    grey, inside = sample.image.mean(axis=2), sample.mask > 0
    contrast = abs(grey[inside].mean() - grey[~inside].mean()) if inside.any() and not inside.all() else 0.0
    side = np.sqrt(areas).mean() if len(areas) else 0.0
    return np.array([len(areas), inside.mean(), side, contrast, grey.mean()])


# A domain in the clothes of an archive.


@dataclass(frozen=True)
class Layout:
    """How a domain is written as an archive: its pixels (H, W), its stems, what its files hold, and what is there besides.

    folders: of an archive that is not one of image and mask folders. most: stems there are, `stem(1)` to `stem(most)`; belongs: which of
    them may be in a split. unused: folders of the archive that the data set does not read.
    """

    domain: type[SynthDataset]
    archive: type[ArchiveDataset]
    pixels: tuple[int, int]
    stem: Callable[[int], str]
    files: Pairs
    folders: Mapping[str, tuple[Folders, ...]] = field(default_factory=dict)
    most: int = MOST
    belongs: Callable[[Any, str], bool] = lambda split, stem: True
    unused: tuple[Folders, ...] = ()
    foreign_stems: tuple[str, ...] = ()

    def parts(self, split: Split) -> tuple[Folders, ...]:
        """The folders of a split, none where there is no such split."""
        if issubclass(self.archive, FolderDataset) and split in self.archive.folders:
            return self.archive.parts(split)
        return self.folders.get(split, ())


def cju(index: int) -> str:
    """A stem of Kvasir's kind."""
    return "cju" + hashlib.sha256(str(index).encode()).hexdigest()[:22]


def study(number: int) -> str:
    """A stem of JSRT's: 154 images with a nodule, 93 without."""
    return f"JPCLN{number:03}" if number <= 154 else f"JPCNN{number - 154:03}"


def in_fold(split: str, stem: str) -> bool:
    """SCR's first fold has the odd numbers."""
    return (int(stem[-3:]) % 2 == 1) == (split == "train")


SHIPS: Mapping[str, tuple[Folders, ...]] = {
    split: (Folders(hrsid.IMAGES, f"{hrsid.ANNOTATIONS}/{name}", ".jpg", ""),) for split, name in hrsid.FILES.items()
}
CHESTS: Mapping[str, tuple[Folders, ...]] = {split: (Folders(jsrt.IMAGES, fold, ".IMG", ".gif"),) for split, fold in jsrt.FOLDS.items()}
LAYOUTS: Mapping[str, Layout] = {
    "whu": Layout(
        SynthBuildings, Whu, (192, 192), str, Pairs(binary), unused=(Folders(f"{TILES}/test/image", f"{TILES}/test/label", ".tif", ".tif"),)
    ),
    "kvasir": Layout(
        SynthPolyps,
        Kvasir,
        (176, 208),
        cju,
        Pairs(noisy),
        unused=tuple(cls.parts("test")[0] for cls in (CvcClinicDb, CvcColonDb, Cvc300, EtisLarib)),
        foreign_stems=("7", "112", "311", "604"),
    ),
    "sbu": Layout(SynthShadows, Sbu, (160, 208), "lssd{}".format, Pairs(binary)),
    "mass_roads": Layout(SynthBuildings, MassRoads, (192, 192), "1{:07}_15".format, Pairs(binary)),
    "hqseg44k": Layout(SynthShadows, HqSeg44k, (160, 208), "{}#Thing".format, Pairs(binary)),
    "hrsid": Layout(SynthBuildings, Hrsid, (192, 192), "P0001_0_800_{}_800".format, Coco("ship"), SHIPS),
    "fls": Layout(SynthPolyps, Fls, (192, 128), fls.STEM, Pairs(class_ids(len(Fls.classes))), most=fls.IMAGES - 1, belongs=Fls.uses),
    "jsrt": Layout(SynthPolyps, Jsrt, (128, 128), study, Radiographs(), CHESTS, most=247, belongs=in_fold),
}
FEWEST = {"train": 16, "test": 1}  # a 16-shot list must fit


def write_layout(layout: Layout, out: Path, train: int, test: int) -> None:
    """Writes the domain below `out`; RequestError where something lies there that this function did not write.

    The list of files is written first: a run that was cut short is recognised as its own by the next one.
    """
    for split, count in (("train", train), ("test", test)):
        most = min(MOST, len(_stems(layout, split)))
        if not FEWEST[split] <= count <= most:
            raise RequestError(f"--{split} {count} is not allowed for the layout {layout.archive.name}: {FEWEST[split]} to {most} are.")
    shown = list(pictures(layout, train, test))
    old, tables = _own_files(out), layout.files.tables(shown, lambda picture: _scene(layout, picture)[1])
    files = {*tables, *(path for picture in shown for path in layout.files.paths(picture))}
    _write_mark(out, old | files)
    for picture in shown:
        _write_picture(layout, out, picture)
    for path, content in tables.items():
        _write(out / path, content)
    for path in old - files:
        (out / path).unlink(missing_ok=True)
    _write_mark(out, files)


def pictures(layout: Layout, train: int, test: int) -> Iterator[Picture]:
    """The official stems, which show the domain's own official scenes; other stems; what is read of `val` and `test`, so many a folder;
    what no reader uses."""
    official, parts = _first_shot_first(layout.archive.official), layout.parts("train")
    scenes = [("train", int(name)) for name in _first_shot_first(layout.domain.official)][: len(official)]
    scenes += [("archive train", index) for index in range(train - len(official))]
    stems = official + _stems(layout, "train", official)[: train - len(official)]
    for at, (stem, scene) in enumerate(zip(stems, scenes, strict=True)):
        yield Picture(stem, parts[at % len(parts)], *scene)
    for index, stem in enumerate(layout.foreign_stems):
        yield Picture(stem, parts[0], "archive foreign", index)
    others = {"archive test": layout.parts("test"), "archive val": layout.parts("val"), "archive unused": layout.unused}
    for key, of_key in others.items():
        for at, folders in enumerate(of_key):
            first = test if key == "archive val" else 0  # whose stems are not those of test images
            for index, stem in enumerate(_stems(layout, "test")[first : first + test]):
                yield Picture(stem, folders, key, at * MOST + index)


def _first_shot_first(official: Mapping[int, tuple[str, ...]]) -> list[str]:
    return list(dict.fromkeys(stem for shots in sorted(official) for stem in official[shots]))


def _stems(layout: Layout, split: str, taken: Sequence[str] = ()) -> list[str]:
    """Plausible stems of a split in no particular order, none of them taken."""
    found = hash_order([layout.stem(number) for number in range(1, layout.most + 1)], layout.archive.name, split)
    return [stem for stem in found if stem not in taken and layout.belongs(split, stem)]


def _scene(layout: Layout, picture: Picture) -> tuple[Bytes, Bytes]:
    """The image (H, W, 3) RGB and the mask (H, W) of a picture, of the archive's size."""
    image, mask = layout.domain.scene(picture.split, picture.index)
    image = cv2.resize(image, layout.pixels[::-1], interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
    return image, np.asarray(cv2.resize(mask, layout.pixels[::-1], interpolation=cv2.INTER_NEAREST), np.uint8)


def _write_picture(layout: Layout, out: Path, picture: Picture) -> None:
    rng = rng_for(layout.domain.name, picture.split, picture.index, "mask")
    contents = layout.files.contents(picture, *_scene(layout, picture), rng)
    for path, content in zip(layout.files.paths(picture), contents, strict=True):
        _write(out / path, content)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _own_files(out: Path) -> set[str]:
    """The files below `out` that an earlier run wrote; RequestError if there is any other, such as a real archive's."""
    mark = out / GENERATED_MARK
    listed = set(mark.read_text().splitlines()[1:]) if mark.is_file() else set()
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file() and path != mark}
    foreign = sorted(found - listed)
    if foreign:
        raise RequestError(f"--out {out} holds {foreign[0]}, which this command did not write; an empty or a new folder is allowed.")
    return listed


def _write_mark(out: Path, files: Iterable[str]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    lines = ["Generated by `python -m datasets.synth`; these are no real images:", *sorted(files)]
    (out / GENERATED_MARK).write_text("\n".join(lines) + "\n")


@one_sentence
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0, or 2 where the request was wrong."""
    parser = command_parser("datasets.synth", __doc__)
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--layout", choices=LAYOUTS, help="write a generated domain as this archive, with all its folders")
    task.add_argument("--choose-shots", action="store_true", help="print the official lists of the three domains")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to, such as data/whu")
    parser.add_argument("--train", type=int, default=24, metavar="N", help="training images")
    parser.add_argument("--test", type=int, default=12, metavar="N", help="test images, of each folder that has some")
    asked = parser.parse_args(arguments)
    if asked.layout and not asked.out:
        parser.error("--layout needs --out, a folder such as data/whu.")
    _do(asked)
    return 0


def _do(asked: argparse.Namespace) -> None:
    if asked.choose_shots:
        for domain in (SynthBuildings, SynthPolyps, SynthShadows):
            chosen = choose_shots(domain())
            print(f'{domain.name}\n        1: ("{chosen[0]}",),\n        16: stems("{" ".join(sorted(chosen))}"),')
        return
    layout = LAYOUTS[asked.layout]
    try:
        write_layout(layout, asked.out, asked.train, asked.test)
    except OSError as error:
        raise RequestError(f"--out {asked.out} cannot be written ({error.strerror}); a folder that can is allowed.") from None
    print(f"{asked.out}: {asked.train} training and {asked.test} test images of {layout.domain.name}, laid out as {asked.layout}.")


if __name__ == "__main__":
    sys.exit(main())
