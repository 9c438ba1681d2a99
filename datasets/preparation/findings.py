"""What is worth saying of a data set's images, as problems and notes of one sentence each."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.data.manifest import Manifest
from bench.types import SPLITS, Split
from datasets.folder import ArchiveDataset, Expected, Survey
from datasets.preparation.inspection import Inspection

WHITE, BLUR, SHOWN = 255, 16, 12  # what a JPEG makes of black and white stays this near to them; ranges of values that are listed
LABELS_KEY = 'if the values are ids or classes, `mask_values = "ids"` or "classes" must say so'
MIDDLE = 127  # between black and white: where a mask that once was binary would be cut
Inspected = Mapping[Split, Sequence[Inspection]]


@dataclass(frozen=True)
class Finding:
    """A sentence; a problem makes the check fail, a note does not."""

    text: str
    is_problem: bool = True


def note(text: str) -> Finding:
    """What is no problem, and should be known."""
    return Finding(text, is_problem=False)


def of_archive(cls: type[ArchiveDataset], data: Path, survey: Survey, seen: Inspected) -> Iterator[Finding]:
    """The number and the size of the images against the official archive's; of a generated stand-in neither is asked for."""
    if cls.is_generated(data):
        yield note("A generated stand-in: it need not have the official archive's number and size of images, and its cells are marked.")
        return
    for split, expected in cls.expected.items():
        if split in survey.entries:
            yield from _counts(split, survey.entries[split], survey.foreign.get(split, 0), expected)
    for look in (look for of_split in seen.values() for look in of_split if cls.pixels not in (None, look.pixels)):
        here, there = (f"{width}×{height}" for height, width in (look.pixels, cls.pixels or (0, 0)))
        yield Finding(f"The {look.split} image {look.name} has {here} pixels; the official ones have {there}.")


def _counts(split: str, names: Collection[str], foreign: int, expected: Expected) -> Iterator[Finding]:
    images, parts = len(names), Counter(part for part, slash, _ in (name.partition("/") for name in names) if slash)
    if abs(images - expected.images) > expected.tolerance:
        by_part = ", ".join(f"{count:,} of {part}" for part, count in parts.items())
        counted = f"{images:,} images{f' ({by_part})' if by_part else ''}"
        yield Finding(f"The {split} split has {counted}; the official archive has {expected.images:,}.")
    elif images != expected.images:
        yield note(f"The {split} split has {images:,} images, not {expected.images:,}: {expected.why}.")
    if foreign != expected.foreign:
        where = f"The {split} folder has {foreign:,} images that are not part of the data set"
        yield Finding(f"{where}; the official archive has {expected.foreign:,} of them.")
    elif foreign:
        yield note(f"{foreign:,} images of the {split} folder are not part of the data set, and are passed over.")


def of_masks(split: str, seen: Sequence[Inspection], threshold: int) -> Iterator[Finding]:
    """What the masks' values, sizes and objects say."""
    values = sum((Counter(look.values) for look in seen if look.values), Counter[int]())
    full = [look for look in seen if look.foreground == look.pixels[0] * look.pixels[1]]
    if seen and not any(look.foreground for look in seen):
        brightest = f"; their brightest value is {max(values)}, and > {threshold} is foreground" if values else ""
        yield Finding(f"No mask of the {split} split has any foreground{brightest}.")
    elif seen and not any(look.objects for look in seen):
        yield Finding(f"No image of the {split} split has an object: every part of the foreground is too small to be one.")
    if full:
        which = f"such as {full[0].name}" if len(full) < len(seen) else "so that there is nothing to tell apart"
        yield Finding(f"{split}: {len(full):,} of {len(seen):,} masks are 100 % foreground, {which}.", len(full) == len(seen))
    if blank := [one for one in seen if one.blank]:
        count = sum(one.blank for one in blank)
        yield note(f"{split}: annotations without any pixel in their image, which are no objects: {count:,}, such as of {blank[0].name}.")
    turned = [look for look in seen if look.turned]
    if turned:
        upright = f"turned upright by an orientation tag, such as {turned[0].name}; their masks must be drawn upright"
        yield note(f"{split}: {_images(len(turned), 'is', 'are')} {upright}.")
    other = [look for look in seen if not look.fits]
    if other:
        others = _images(len(other), "is transposed or resized to its mask's size", "are transposed or resized to their masks' sizes")
        yield note(f"{split}: {others}, such as {other[0].name}.")
    mixed = [look for look in seen if look.values and len(look.values) > 2]
    if mixed:
        said = f"{len(mixed):,} of {len(seen):,} masks are not binary, with the values {ranges(values)}"
        yield note(f"{split}: {said}; {_cut(values, threshold)}{_as_labels(values)}.")


def _cut(values: Mapping[int, int], threshold: int) -> str:
    """What the threshold makes of the values between it and the middle."""
    low, high = sorted((threshold, MIDDLE))
    between, bright = (sum(n for value, n in values.items() if value > least) for least in (low, MIDDLE))
    between -= sum(n for value, n in values.items() if value > high)
    does, otherwise = ("leaves out", "would keep") if threshold > MIDDLE else ("takes in", "would not")
    all_of_it = bright if threshold > MIDDLE else between + bright
    share = 100 * between / max(1, all_of_it)
    return f"> {threshold} {does} {between:,} pixels that > {MIDDLE} {otherwise}, {share:.2f} % of that foreground"


def _as_labels(values: Mapping[int, int]) -> str:
    """What to do where values are other than a blurred black and white."""
    if max(values) in range(WHITE - BLUR, WHITE + 1) and all(value <= BLUR or value >= WHITE - BLUR for value in values):
        return ""
    return f". All of it is one foreground, in which objects that touch are one: {LABELS_KEY}"


def ranges(values: Iterable[int]) -> str:
    """The values that occur, as people write them: 0–7, 248–255."""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    shown = [str(first) if first == last else f"{first}–{last}" for first, last in runs]
    return ", ".join(shown if len(shown) <= SHOWN else [*shown[: SHOWN - 1], "…", shown[-1]])


def of_contents(manifest: Manifest, paths: Mapping[str, Path]) -> Iterator[Finding]:
    """What changed without a new date, and images that are in two splits under different names."""
    for name in manifest.changed:
        yield Finding(f"The content of {paths[name]} changed, though its size and date did not: its disk may be failing.")
    first: dict[str, str] = {}
    split_of = {name: name.partition("/")[0] for name in manifest.files if name.endswith("/image")}
    images = sorted(split_of, key=lambda name: (SPLITS.index(split_of[name]), name))  # it is test images that must not be in train
    twice = [name for name in images if first.setdefault(manifest.files[name].sha256, split_of[name]) != split_of[name]]
    if twice:
        yield note(f"{_images(len(twice))} the same content as one of another split, such as {paths[twice[0]]}.")


def _images(count: int, one: str = "has", several: str = "have") -> str:
    return f"1 image {one}" if count == 1 else f"{count:,} images {several}"
