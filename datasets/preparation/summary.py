"""What `datasets.prepare verify` prints."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench.reporting.table import Cell, Column, Row, Table, markdown
from bench.types import Dataset
from datasets.preparation.inspection import Inspection
from datasets.preparation.locations import in_units
from datasets.preparation.verify import Verified

NAMED = 4  # shots up to which a few-shot list is printed
COLUMNS = (
    Column("", "images", 0),
    Column("", "pixels (W×H)"),
    Column("", "objects", 0),
    Column("", "objects an image"),
    Column("", "most", 0),
    Column("", "images without", 0),
    Column("", "foreground %", 2),
)


def summary(cls: type[Dataset], data: Path, found: Verified, show: int) -> str:
    """The whole text: what a run would see, the notes, the problems (at most `show` of them, 0: all), and a last word."""
    problems = [finding.text for finding in found.findings if finding.is_problem]
    notes = [finding.text for finding in found.findings if not finding.is_problem]
    shown = problems[: show or None]
    hidden = [f"… and {len(problems) - len(shown):,} more; --show 0 prints all."] if len(problems) > len(shown) else []
    parts = [markdown(_table(cls, found))] if any(found.seen.values()) else []
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


def _table(cls: type[Dataset], found: Verified) -> Table:
    rows = [Row(split, _cells(of_split)) for split, of_split in found.seen.items() if of_split]
    rule, stated = cls.rule, any(look.stated for of_split in found.seen.values() for look in of_split)
    relative = f" and than {rule.relative_area:g} of the largest" if rule.relative_area else ""
    what = "an annotation" if stated else f"a part of the foreground ({rule.connectivity}-connected)"
    counted = f"{what} larger than {rule.min_area} pixels{relative}"
    return Table("seen", f"{cls.title} ({cls.name})", (("an object is", counted),), "split", COLUMNS, tuple(rows))


def _cells(seen: Sequence[Inspection]) -> tuple[Cell, ...]:
    sizes = sorted({look.pixels for look in seen}, key=lambda pixels: pixels[0] * pixels[1])
    span = " to ".join(dict.fromkeys(f"{width}×{height}" for height, width in (sizes[0], sizes[-1])))
    objects = np.array([look.objects for look in seen])
    pixels = sum(height * width for height, width in (look.pixels for look in seen))
    share = 100 * sum(look.foreground for look in seen) / pixels
    numbers = (int(objects.sum()), float(objects.mean()), int(objects.max()), int((objects == 0).sum()), share)
    return (Cell(len(seen)), Cell(reason=span), *map(Cell, numbers))


def _run(found: Verified) -> list[str]:
    """What training and evaluation get: the few-shot lists, the prompts of an evaluation, the images that are held out."""
    assert found.opened is not None
    objects = {(look.split, look.name): look.objects for of_split in found.seen.values() for look in of_split}
    tested = [look.objects for look in found.seen.get("test", ())]
    prompts = f"{_many(sum(tested), 'box', 'boxes')} (or points) on {_many(sum(map(bool, tested)), 'image')}"
    lines = [f"evaluation: {prompts}, and {_many(tested.count(0), 'image')} without a prompt"]
    for shots, names in sorted(found.opened.official.items()):
        named = " ".join(names) if shots <= NAMED else f"{shots} images"
        lines.append(f"{shots}-shot, draw 0: {named} ({_many(sum(objects.get(('train', name), 0) for name in names), 'object')})")
    most = found.opened.training_prompts.max_objects
    over = sum(look.objects > most for look in found.seen.get("train", ())) if most else 0
    if over:
        lines.append(f"training: at most {most} objects an image, drawn anew each step; {_many(over, 'image')} of train have more")
    held_out = len(found.opened.names("val")) if "val" not in found.seen else 0
    if held_out:
        lines.append(f"val: {held_out:,} of the training images, where a protocol selects on them")
    return lines
