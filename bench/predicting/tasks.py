"""What `bench.predict` was asked for, as one task an image, checked before anything is predicted."""

import csv
import io
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from bench.data.image_files import read_mask
from bench.data.prompt_table import TablePrompt, read_prompts
from bench.errors import DataError, InputError, RequestError
from bench.grid.files import is_below, read_text
from bench.model.inputs import image_files, prompts_from, read_picture
from bench.types import Prompts

TABLE, MASKS = "predictions.csv", "masks"
Keywords = dict[str, Any]  # of `prompts_from`


@dataclass(frozen=True)
class Task:
    """One image: where it lies, its prompts, each element decoded as one batch, and where mask and overlay go (None: no overlay).
    bits: see `read_image`."""

    image: Path
    prompts: tuple[tuple[str, Keywords], ...]  # with what a message calls them
    mask: Path
    overlay: Path | None
    bits: int = 0


def single_task(given: Namespace) -> Task:
    """The task of --image; RequestError for prompts that cannot belong together, and files that would be overwritten."""
    boxes, points = given.box or [], given.point or []
    if len(boxes) > 1 and (points or given.mask):
        raise RequestError(
            f"{len(boxes)} boxes were given with a point or a mask: it belongs to one of them; write a CSV file for --prompts."
        )
    for point in points:
        if len(point) not in (2, 3):
            raise RequestError(f"--point {' '.join(f'{v:g}' for v in point)}: X Y or X Y LABEL is needed.")
    keywords: Keywords = {"boxes": boxes} if boxes else {}
    if points:
        keywords |= {"points": [[point[:2] for point in points]], "labels": [[(*point, 1.0)[2] for point in points]]}
    if given.mask:
        keywords["mask"] = _mask_file(given.mask)
    overlay = None if given.no_overlay else given.overlay or given.out.with_name(f"{given.out.stem}_overlay.png")
    for path in filter(None, (given.out, overlay)):
        if path.suffix.lower() != ".png":
            raise RequestError(f"{path} cannot be written: a file that ends in .png is needed.")
        if path.is_dir():
            raise RequestError(f"{path} cannot be written: it is a folder.")
        if path.resolve() in [p.resolve() for p in (given.image, given.mask) if p]:
            raise RequestError(f"{path} is what the mask is made from: give another file to write.")
    if overlay and overlay.resolve() == given.out.resolve():
        raise RequestError(f"{overlay} would be the mask and the overlay: give two files.")
    if overlay and not given.overlay and overlay.exists() and not given.out.exists():
        raise RequestError(f"{overlay} is there already, and of no mask {given.out}: --overlay FILE or --no-overlay is needed.")
    return Task(given.image, (("", keywords),), given.out, overlay, given.bits)


def _mask_file(path: Path) -> np.ndarray:
    """A mask (H, W) of 0 and 1 from a grey file."""
    grey = read_mask(path)
    if 0 < grey.max() <= 127:
        raise DataError(f"The mask {path} has no value above 127, which is foreground; its largest is {grey.max()}.")
    return (grey > 127).astype(np.uint8)


def folder_tasks(given: Namespace) -> list[Task]:
    """The tasks of --images; RequestError where an image of the CSV is not there, or two would write the same mask."""
    if not given.images.is_dir():
        raise DataError(f"--images {given.images} is no folder.")
    table = read_prompts(given.prompts) if given.prompts else {path.name: [] for path in image_files(given.images)}
    if given.prompts and given.prompts.resolve() == (given.out / TABLE).resolve():
        raise RequestError(f"{given.prompts} would be written over by the table of the predictions: give another --out.")
    if given.out.exists() and not given.out.is_dir():
        raise RequestError(f"--out {given.out} is no folder.")
    tasks: list[Task] = []
    owner: dict[Path, str] = {}
    earlier = _masks_of(given.out / TABLE)
    if not earlier and (given.out / TABLE).exists():
        raise RequestError(f"{given.out / TABLE} is there already, and no table of predictions: give another --out.")
    for name, prompts in table.items():
        image = given.images / name
        where = f"{given.prompts}, row {prompts[0].row}: " if prompts else ""
        if not is_below(name):
            raise DataError(f"{where}{name} is not inside {given.images}: a path in that folder, without .., is needed.")
        if not image.is_file():
            raise DataError(f"{where}the image {name} is not in {given.images}.")
        mask, overlay = (given.out / folder / Path(name).with_suffix(".png") for folder in (MASKS, "overlays"))
        if mask in owner:
            raise RequestError(f"{owner[mask]} and {name} would both be written to {mask}: rename one of them.")
        for path in (mask, overlay):
            if path.parent.resolve() == image.parent.resolve():
                raise RequestError(f"{path} would be written among the images of {given.images}: give another --out.")
            if not path.resolve().is_relative_to(given.out.resolve()):
                raise RequestError(f"{path} leads out of {given.out} by a link: give another --out.")
            if path.exists() and mask.relative_to(given.out).parts not in earlier:
                raise RequestError(
                    f"{path} is there already, and no prediction that {given.out / TABLE} lists: remove it, or give another --out."
                )
        if mask.resolve() == overlay.resolve():
            raise RequestError(f"{overlay} leads to {mask} by a link: give another --out.")
        owner[mask] = name
        tasks.append(Task(image, tuple(_of_one_kind(given.prompts, prompts)), mask, None if given.no_overlay else overlay, given.bits))
    return tasks


def _masks_of(table: Path) -> set[tuple[str, ...]]:
    """The masks that an earlier command wrote, as parts of their paths below its --out; none where its table cannot be read."""
    try:
        paths = [Path(row["mask"]).parts for row in csv.DictReader(io.StringIO(read_text(table), newline=""))]
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return set()
    return {parts[at:] for parts in paths for at, part in enumerate(parts) if part == MASKS}


def _of_one_kind(table: Path, prompts: Sequence[TablePrompt]) -> Iterator[tuple[str, Keywords]]:
    """An image's prompts for as many decodings as there are kinds (with a box or not, so many points); one without any if it has none."""
    if not prompts:
        yield "", {}
    kinds: dict[tuple[bool, int], list[TablePrompt]] = {}
    for prompt in prompts:
        prompt_kind = bool(prompt.box), len(prompt.points)
        kinds.setdefault(prompt_kind, []).append(prompt)
    for (boxed, count), of_kind in kinds.items():
        rows = ", ".join(str(prompt.row) for prompt in of_kind[:8]) + (", …" if len(of_kind) > 8 else "")
        keywords: Keywords = {"boxes": [prompt.box for prompt in of_kind]} if boxed else {}
        if count:
            keywords |= {"points": [prompt.points for prompt in of_kind], "labels": [prompt.labels for prompt in of_kind]}
        yield f"{table}, row {rows}: ", keywords


def prepared(task: Task, grid: int) -> tuple[Tensor, list[Prompts]]:
    """The image (3, H, W) uint8 and its prompts; RequestError where it cannot be read or they do not fit it."""
    image = read_picture(task.image, task.bits)
    found = []
    for where, keywords in task.prompts:
        try:
            found.append(prompts_from((image.shape[-2], image.shape[-1]), grid, **keywords))
        except InputError as error:
            raise InputError(f"{where or f'{task.image}: '}{error}") from None
    return image, found
