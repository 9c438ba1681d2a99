"""What `datasets.prepare verify` prints."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tabulate import tabulate

from bench.types import Dataset
from datasets.preparation.inspection import Inspection
from datasets.preparation.locations import in_units
from datasets.preparation.verify import Verified

NAMED = 4  # shots up to which a few-shot list is printed
HEADS = ("split", "images", "pixels (W×H)", "objects", "objects an image", "most", "images without", "foreground %")


def summary(cls: type[Dataset], data: Path, found: Verified, show: int) -> str:
    """The whole text: what a run would see, the notes, the problems (at most `show` of them, 0: all), and a last word."""
    problems = [finding.text for finding in found.findings if finding.is_problem]
    notes = [finding.text for finding in found.findings if not finding.is_problem]
    shown = problems[: show or None]
    hidden = [f"… and {len(problems) - len(shown):,} more; --show 0 prints all."] if len(problems) > len(shown) else []
    parts = [_table(cls, found)] if any(found.seen.values()) else []
    parts += [_block("A run would see", _run(found))] if found.opened else []
    parts += [_block("Notes", notes)] if notes else []
    parts += [_block(_many(len(problems), "problem"), [*shown, *hidden])] if problems else []
    last = f"{cls.name} in {data}: {'not fit for a run' if problems else 'fine'}"
    if found.manifest and found.manifest.files:
        size = f"{_many(len(found.manifest.files), 'file')}, {in_units(found.manifest.bytes)}"
        last += f"; {size}, fingerprint {found.manifest.fingerprint}"
    return "\n".join([*parts, f"{last}."])


def _many(count: int, one: str, several: str = "") -> str:
    return f"{count:,} {one if count == 1 else several or one + 's'}"


def _block(title: str, lines: Sequence[str]) -> str:
    return "\n".join([f"{title}:", *(f"- {line}" for line in lines), ""])


def _table(cls: type[Dataset], found: Verified) -> str:
    """What is counted, and a line a split."""
    rows = [[split, *_counts(of_split)] for split, of_split in found.seen.items() if of_split]
    rule, stated = cls.rule, any(image.stated for of_split in found.seen.values() for image in of_split)
    relative = f" and than {rule.relative_area:g} of the largest" if rule.relative_area else ""
    what = "an annotation" if stated else f"a part of the foreground ({rule.connectivity}-connected)"
    align = ("left", *("right" for _ in HEADS[1:]))
    grid = tabulate(rows, HEADS, tablefmt="pipe", colalign=align, disable_numparse=True)
    counted = f"an object is {what} larger than {rule.min_area} pixels{relative}"
    return f"### {cls.title} ({cls.name})\n\n{counted}\n\n{grid}\n"


def _counts(seen: Sequence[Inspection]) -> tuple[str, ...]:
    sizes = sorted({image.pixels for image in seen}, key=lambda pixels: pixels[0] * pixels[1])
    span = " to ".join(dict.fromkeys(f"{width}×{height}" for height, width in (sizes[0], sizes[-1])))
    objects = np.array([image.objects for image in seen])
    pixels = sum(height * width for height, width in (image.pixels for image in seen))
    share = 100 * sum(image.foreground for image in seen) / pixels
    counts = (f"{objects.sum():,}", f"{objects.mean():,.1f}", f"{objects.max():,}", f"{(objects == 0).sum():,}")
    return (f"{len(seen):,}", span, *counts, f"{share:.2f}")


def _run(found: Verified) -> list[str]:
    """What training and evaluation get: the few-shot lists, the prompts of an evaluation, the images that are held out."""
    assert found.opened is not None
    objects = {(image.split, image.name): image.objects for of_split in found.seen.values() for image in of_split}
    tested = [image.objects for image in found.seen.get("test", ())]
    prompts = f"{_many(sum(tested), 'box', 'boxes')} (or points) on {_many(sum(map(bool, tested)), 'image')}"
    lines = [f"evaluation: {prompts}, and {_many(tested.count(0), 'image')} without a prompt"]
    for shots, names in sorted(found.opened.official.items()):
        named = " ".join(names) if shots <= NAMED else f"{shots} images"
        lines.append(f"{shots}-shot, draw 0: {named} ({_many(sum(objects.get(('train', name), 0) for name in names), 'object')})")
    most = found.opened.training_prompts.max_objects
    over = sum(image.objects > most for image in found.seen.get("train", ())) if most else 0
    if over:
        lines.append(f"training: at most {most} objects an image, drawn anew each step; {_many(over, 'image')} of train have more")
    held_out = len(found.opened.names("val")) if "val" not in found.seen else 0
    if held_out:
        lines.append(f"val: {held_out:,} of the training images, where a protocol selects on them")
    return lines
