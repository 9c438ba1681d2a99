"""Toys that the tests share: a SAM of a few thousand weights and a data set of rectangles."""

import os
import shutil

os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import pytest
import torch
from archive_files import write_archives

import bench
from bench.protocol import Settings, load_protocol
from bench.sam import Sam
from bench.types import Dataset, ObjectRule, Sample, Split
from datasets import prepare

torch.set_num_threads(1)

TOY = bench.SamConfig(
    image_size=64, patch_size=8, width=64, depth=3, heads=2, window=3, global_blocks=(1, 2), decoder_width=32, decoder_mlp=32, iou_width=32
)


def toy_backbone(seed: int = 0) -> Sam:
    """A random SAM; positions are zero in a new one, so they are drawn too. Its 8×8 grid is padded to 9×9 by its windows."""
    sam = bench.load_sam(TOY, seed=seed)
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
        return cls()

    def names(self, split: Split) -> tuple[str, ...]:
        count = {"train": 4, "val": 2, "test": 5}[split]
        return tuple(f"{split}{i}" for i in range(count))

    def load(self, split: Split, name: str) -> Sample:
        rng = np.random.default_rng([len(split), int(name[-1])])
        height, width = 40 + 8 * int(name[-1]), 64
        image = rng.integers(0, 90, (height, width, 3), dtype=np.uint8)
        mask = np.zeros((height, width), np.uint8)
        if name != "test4":
            top, left = rng.integers(2, 15, 2)
            mask[top : top + 15, left : left + 20] = 1
        image[mask > 0] += 120
        return Sample(name, image, mask)


@pytest.fixture
def sam() -> Sam:
    return toy_backbone()


@pytest.fixture
def rectangles() -> Rectangles:
    return Rectangles()


@pytest.fixture
def smoke() -> Settings:
    return load_protocol("smoke").resolve("any", "any", 1)


@pytest.fixture(scope="session")
def archives(tmp_path_factory):
    """See `archive_files.write_archives`."""
    top = tmp_path_factory.mktemp("archives")
    write_archives(top)
    return top


@pytest.fixture
def archive_data(archives, tmp_path):
    """A data folder that a test may damage; links, which are replaced and not written through."""
    shutil.copytree(archives / "folders", tmp_path / "data", copy_function=lambda source, target: Path(target).hardlink_to(source))
    return tmp_path / "data"


@pytest.fixture
def said(capsys, tmp_path):
    """Runs the command; its exit code and all that it printed."""

    def run(*words: str | Path) -> tuple[int, str]:
        code = prepare.main([*map(str, words), "--out", str(tmp_path / "results")])
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run
