"""A SAM of a few thousand random weights and a data set of rectangles, on which checks of methods take no time."""

from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch

from bench.model.checkpoints import load_sam
from bench.model.sam import Sam
from bench.model.sizes import SamConfig
from bench.types import Dataset, ObjectRule, Sample, Split

TOY = SamConfig(
    image_size=64, patch_size=8, width=64, depth=3, heads=2, window=3, global_blocks=(1, 2), decoder_width=32, decoder_mlp=32, iou_width=32
)


def toy_backbone(seed: int = 0, config: SamConfig = TOY) -> Sam:
    """A random SAM; positions are zero in a new one, so they are drawn too. TOY's 8×8 grid is padded to 9×9 by its windows."""
    sam = load_sam(config, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in sam.named_parameters():
        if "pos" in name:
            weight.data.normal_(0, 0.25, generator=generator)
    return sam


class Rectangles(Dataset):
    """Images of one bright rectangle each, sizes differing, and one image without any."""

    name, title = "rectangles", "Rectangles"
    rule = ObjectRule(connectivity=8, min_area=4)
    official: ClassVar = {1: ("train0",), 2: ("train0", "train1")}

    @classmethod
    def open(cls, data: Path) -> Self:
        """The data set; whatever lies in `data` does not matter."""
        return cls()

    def names(self, split: Split) -> tuple[str, ...]:
        """The split's name with a number."""
        count = {"train": 4, "val": 2, "test": 5}[split]
        return tuple(f"{split}{i}" for i in range(count))

    def load(self, split: Split, name: str) -> Sample:
        """Draws one sample, the same at every call."""
        rng = np.random.default_rng([len(split), int(name[-1])])
        height, width = 40 + 8 * int(name[-1]), 64
        image = rng.integers(0, 90, (height, width, 3), dtype=np.uint8)
        mask = np.zeros((height, width), np.uint8)
        if name != "test4":
            top, left = rng.integers(2, 15, 2)
            mask[top : top + 15, left : left + 20] = 1
        image[mask > 0] += 120
        return Sample(name, image, mask)
