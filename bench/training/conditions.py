"""Under which conditions test images are shown: with which prompts, and how damaged. Written as `bench.reevaluate` takes it.

    box               the tight box of every object                     (what cells are evaluated with, or `point`)
    box(jitter=0.25)  each of its sides moved by U(-0.25, 0.25) of the box's width or height, and kept in the image
    point, points(3)  random pixels of every object, foreground
    mask              every object's mask at the decoder's size, with the noise that HQ-SAM trains with
    none              no prompt at all: one mask, which is compared with all objects together
    boxes_from=F.csv  boxes from a file with the columns image, x0, y0, x1, y1; where it has none of an image, nothing is predicted

Random numbers depend on the data set and the image alone, so that all methods and all strengths have the same.
"""

import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch

from bench.data.corruptions import corrupted, read_corruption
from bench.data.objects import Objects
from bench.data.prompt_table import read_prompts
from bench.errors import DataError, RequestError
from bench.grid.files import file_sha256
from bench.grid.spec import choose_call
from bench.grid.toml_reader import Kinds
from bench.model.inputs import check_prompts
from bench.training.prompts import box_prompts, jittered, mask_prompts, point_prompts
from bench.training.streams import FreshStream
from bench.types import Dataset, Prompts, Range, Sample

Boxes = Mapping[str, np.ndarray]  # image -> (n, 4) xyxy
FROM_FILE = "boxes_from"
KNOWN: Mapping[str, Kinds] = {
    "box": {"jitter": Annotated[float, Range(0.0, 0.5)]},
    "point": {},
    "points": {"count": Annotated[int, Range(1, 64)]},
    "mask": {},
    "none": {},
    FROM_FILE: {},
}
USUAL_COUNT = 3  # of `points`
Make = Callable[[Objects, FreshStream, "Condition", Dataset, Any], Prompts]
MAKE: Mapping[str, Make] = {  # from an image's objects (n ≥ 1) and the one value that the kind has
    "box": lambda objects, stream, how, dataset, jitter: jittered(box_prompts(objects), objects.shape, jitter or 0.0, stream),
    "point": lambda objects, stream, how, dataset, _: point_prompts(objects, stream),
    "points": lambda objects, stream, how, dataset, count: point_prompts(objects, stream, count or USUAL_COUNT),
    "mask": lambda objects, stream, how, dataset, _: mask_prompts(objects, stream, dataset.training_prompts, how.side),
    "none": lambda objects, stream, how, dataset, _: Prompts(),
}


@dataclass(frozen=True)
class Condition:
    """prompt, corruption: as `canonical_prompt` and `canonical_corruption` write them; side: of mask prompts, in pixels; boxes: of a file
    of them."""

    prompt: str = "box"
    corruption: str = ""
    side: int = 0
    boxes: Boxes | None = field(default=None, compare=False)

    @property
    def asks_for_objects(self) -> bool:
        """Whether an image with objects has a prompt for each, in their order."""
        return self.boxes is None and self.prompt != "none"

    def image(self, sample: Sample, dataset: Dataset) -> np.ndarray:
        """The sample's image (H, W, 3) uint8, damaged."""
        return corrupted(sample.image, self.corruption, f"{dataset.name}/{sample.name}")

    def prompts(self, sample: Sample, objects: Objects, dataset: Dataset) -> Prompts:
        """The sample's prompts; an image without objects gets none, unless boxes are from a file. InputError for one outside the image."""
        if self.boxes is not None:
            found = Prompts(boxes=torch.from_numpy(self.boxes.get(sample.name, np.zeros((0, 4), np.float32))))
            check_prompts(found, *sample.mask.shape)
            return found
        if not len(objects):
            return Prompts()
        kind, values = choose_call(self.prompt, KNOWN, "prompt")
        stream = FreshStream(np.random.default_rng(zlib.crc32(f"{dataset.name}/{sample.name}".encode())))
        return MAKE[kind](objects, stream, self, dataset, next(iter(values.values()), None))


def canonical_prompt(text: str) -> str:
    """A user's prompt in the one form that keys are made of: what is the same has the same. A file is called by its name and content.
    RequestError for what there is not, DataError for a file that cannot be read."""
    if path := boxes_file(text):
        read_boxes(path)
        return f"{FROM_FILE}={path.name}@{file_sha256(path)[:12]}"
    kind, values = choose_call(text, KNOWN, "prompt")
    if kind == FROM_FILE:
        raise RequestError(f"The prompt {text.strip()!r} needs a file: {FROM_FILE}=FILE.csv.")
    if kind == "points":
        count = values.get("count", USUAL_COUNT)
        return f"points({count})" if count > 1 else "point"
    return f"{kind}(jitter={values['jitter']:g})" if values.get("jitter") else kind


def canonical_corruption(text: str) -> str:
    """The same for a corruption; "none" is none."""
    if text.strip() == "none":
        return ""
    kind, level = read_corruption(text)
    return f"{kind}({level})"


def boxes_file(text: str) -> Path | None:
    """The file of "boxes_from=FILE.csv"; None for any other prompt."""
    name, given, path = text.partition("=")
    return Path(path.strip().strip("'\"")) if given and name.strip() == FROM_FILE else None


def prompt_file(results: Path, prompt: str) -> Path | None:
    """Where a results folder keeps its own copy of the file that a canonical prompt names; None for a prompt without one."""
    _, at, digest = prompt.rpartition("@")
    return results / "prompts" / f"{digest}.csv" if at else None


def read_boxes(path: Path) -> Boxes:
    """Image -> its boxes (n, 4) float32, in the file's order; DataError, with the row, for what is no box."""
    table = read_prompts(path)
    for prompt in (prompt for prompts in table.values() for prompt in prompts):
        x0, y0, x1, y1 = prompt.box or (math.nan,) * 4
        if prompt.points or not (0 <= x0 <= x1 < math.inf and 0 <= y0 <= y1 < math.inf):
            raise DataError(f"{path}, row {prompt.row}: a box with 0 ≤ x0 ≤ x1 and 0 ≤ y0 ≤ y1, and no point, is needed.")
    return {name: np.array([prompt.box for prompt in prompts], np.float32).reshape(-1, 4) for name, prompts in table.items()}
