"""How much of frozen encoders' work a grid would keep, told before anything is loaded; `bench.training.prepared` keeps it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.grid.spec import RunSpec
from bench.types import SPLITS, Dataset, Split

Frozen = Mapping[str, tuple[int, Mapping[str, int]]]  # a method's label -> its encoder's frozen parts, and bytes an image by precision


@dataclass(frozen=True)
class Need:
    """What the cells on one data set would keep: bytes for so many images that are evaluated."""

    dataset: str
    images: int
    bytes: int


def needs(specs: Iterable[RunSpec], datasets: Mapping[str, Dataset], frozen: Frozen) -> list[Need]:
    """The needs of the data sets whose cells keep anything, the largest first. Methods whose encoders are frozen as far share it."""
    largest: dict[str, dict[tuple[int, str, Split], int]] = {}
    for spec in specs:
        parts, size = frozen.get(spec.method.label, (0, {}))
        of_dataset = largest.setdefault(spec.dataset, {})
        for split in SPLITS:
            if split != spec.settings.evaluation_split and split not in spec.settings.selections:
                continue
            key = parts, spec.settings.precision, split
            of_dataset[key] = max(of_dataset.get(key, 0), size.get(spec.settings.precision, 0))
    found = []
    for name, sizes in largest.items():
        images = {split: len(datasets[name].names(split)) for _, _, split in sizes}
        found.append(Need(name, sum(images.values()), sum(size * images[split] for (_, _, split), size in sizes.items())))
    return sorted((need for need in found if need.bytes), key=lambda need: -need.bytes)


def in_words(needs: Sequence[Need], keep_gb: float, spill_gb: float, folder: Path | None = None) -> str:
    """The needs in one sentence, and what of the largest fits; "" where there are none. One data set's are kept at a time, and all of
    them in a folder."""
    if not needs:
        return ""
    said = ", ".join(f"{need.bytes / 2**30:.1f} GiB for {need.dataset} ({need.images} images)" for need in needs)
    if folder:
        return f"Frozen embeddings to keep in {folder}: {said}."
    first, room = needs[0].bytes / 2**30, keep_gb + spill_gb
    fits = "which fits" if first <= room else f"of which {100 * room / first:.0f} % fit, and the rest is computed again at every evaluation"
    return f"Frozen embeddings to keep, one data set's at a time: {said}; --keep-gb {keep_gb:g} --spill-gb {spill_gb:g}, {fits}."


def of_crops(specs: Iterable[RunSpec]) -> str:
    """Under which protocols training shows ever new images, of which nothing is kept, in a sentence; "" for none."""
    trained = (spec for spec in specs if spec.method.trains and spec.settings.random_crop and spec.settings.augmentation_stream == "fresh")
    names = ", ".join(dict.fromkeys(spec.protocol for spec in trained))
    says = "each step shows a new crop: of test images alone embeddings are kept, but for random_crop=False."
    return f"Under {names} {says}" if names else ""
