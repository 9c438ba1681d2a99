"""Mask logits from the decoder's size to an image's own size, and what is read off them there."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

PIXELS_AT_ONCE = {"cpu": 2**20, "cuda": 2**26}  # of full size, by device; at least one map is held


def resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(n, h, w) -> (n, H, W), bilinear, pixel centres kept, as the reference does."""
    return F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def parts(maps: Tensor, size: tuple[int, int]) -> Sequence[Tensor]:
    """Maps (n, …) in runs of so many that, at this size, they have about PIXELS_AT_ONCE pixels."""
    pixels = PIXELS_AT_ONCE.get(maps.device.type, PIXELS_AT_ONCE["cpu"])
    return maps.split(max(1, pixels // (size[0] * size[1])))


def union(low: Tensor, size: tuple[int, int]) -> Tensor:
    """Where at least one of the maps (n, h, w) is positive at the image's size: (H, W) bool, on the maps' device.

    The full-size maps are never held together. Without a map, nothing is positive.
    """
    found = torch.zeros(size, dtype=torch.bool, device=low.device)
    for part in parts(low, size):
        found |= (resized(part, size) > 0).any(0)
    return found
