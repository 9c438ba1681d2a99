"""Toys that the tests share: a SAM of a few thousand weights and a data set of rectangles."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from bench.protocol import Settings, load_protocol
from bench.sam import Sam
from bench.toys import TOY, Rectangles, toy_backbone

__all__ = ["TOY", "Rectangles", "toy_backbone"]
torch.set_num_threads(1)


@pytest.fixture
def sam() -> Sam:
    return toy_backbone()


@pytest.fixture
def rectangles() -> Rectangles:
    return Rectangles()


@pytest.fixture
def smoke() -> Settings:
    return load_protocol("smoke").resolve("any", "any", 1)
