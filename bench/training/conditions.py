"""Under which conditions test images are shown: with which prompts, and how damaged. Written as `bench.reevaluate` takes it.

    box, points(3), … the words of `bench.grid.prompts`
    boxes_from=F.csv  boxes from a file with the columns image, x0, y0, x1, y1; where it has none of an image, nothing is predicted

Random numbers depend on the data set and the image alone, so that all methods and all strengths have the same.
"""

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from bench.data.corruptions import corrupted, read_corruption
from bench.data.objects import Objects
from bench.data.prompt_table import read_prompts
from bench.errors import DataError, unknown
from bench.grid.files import file_sha256
from bench.grid.prompts import KNOWN
from bench.grid.prompts import canonical_prompt as canonical_word
from bench.model.inputs import check_prompts
from bench.training.prompts import prompts_of
from bench.training.streams import FreshStream
from bench.types import Dataset, Prompts, Sample

Boxes = Mapping[str, np.ndarray]  # image -> (n, 4) xyxy
FROM_FILE = "boxes_from"


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
        stream = FreshStream(np.random.default_rng(zlib.crc32(f"{dataset.name}/{sample.name}".encode())))
        return prompts_of(self.prompt, objects, stream, dataset.training_prompts, self.side)


def canonical_prompt(text: str) -> str:
    """A user's prompt in the one form that keys are made of: what is the same has the same. A file is called by its name and content.
    RequestError for what there is not, DataError for a file that cannot be read."""
    if path := boxes_file(text):
        read_boxes(path)
        return f"{FROM_FILE}={path.name}@{file_sha256(path)[:12]}"
    if (word := text.partition("(")[0].strip()) not in KNOWN:
        raise unknown("prompt", word, (*KNOWN, f"{FROM_FILE}=FILE.csv"))
    return canonical_word(text)


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
