"""The toy on which methods were run beside their authors' code, without chance, and what that code gave (tests/golden/authors.npz)."""

import math
from functools import cache

import numpy as np
import torch
from golden_files import FOLDER
from torch import Tensor

from bench.model.method import build
from bench.model.sam import Sam
from bench.model.sizes import SamConfig

# All blocks are global, and relative positions are zero: a plain ViT's, on a grid of 4×4.
PLAIN = SamConfig(
    image_size=32, patch_size=8, width=32, depth=2, heads=2, window=2, global_blocks=(0, 1), decoder_width=32, decoder_mlp=32, iou_width=32
)
EVERY = 7  # of a tensor's numbers are stored


def waves(name: str, shape: tuple[int, ...], size: float = 0.3) -> Tensor:
    """Numbers that follow from a name."""
    key = sum(map(ord, name)) % 97
    phases = torch.arange(math.prod(shape), dtype=torch.float64) * (0.9 + key / 31) + key
    return (size * phases.sin()).float().view(shape)


@cache
def plain_backbone() -> Sam:
    sam = Sam(PLAIN)
    for name, weight in sam.image_encoder.named_parameters():
        is_scale = "norm" in name and name.endswith("weight")
        weight.data = torch.zeros_like(weight) if "rel_pos" in name else waves(name, tuple(weight.shape)) + is_scale
    return sam


def furthest_from_the_authors(case: str, call: str) -> dict[str, float]:
    """How far a method is from what its authors' code gave, of the output of all blocks and of each tensor's gradient, relative to their
    largest value."""
    tuner = build(call, plain_backbone()).tuner.eval()
    with torch.no_grad():
        for name, weight in tuner.named_parameters():
            weight.copy_(waves(name, tuple(weight.shape)))
    x = waves("x", (1, 4, 4, 32), 1.0)
    for i, block in enumerate(plain_backbone().image_encoder.blocks):
        x, _ = tuner.walk(i, block, x, tuner.prepared(plain_backbone().image_encoder))
    (x * waves("probe", (1, 4, 4, 32), 1.0)).sum().backward()
    found = {"out": x.detach(), **{name: weight.grad for name, weight in tuner.named_parameters()}}
    with np.load(FOLDER / "authors.npz") as file:
        authors = {key.removeprefix(f"{case}/"): torch.from_numpy(file[key]) for key in file.files if key.startswith(f"{case}/")}
    assert found.keys() == authors.keys() and all(tensor.abs().max() > 1e-3 for tensor in authors.values())
    return {
        name: float((found[name].flatten()[::EVERY] - tensor).abs().max() / found[name].abs().max()) for name, tensor in authors.items()
    }
