"""Mask logits from the decoder's size to an image's own size, and what is read off them there."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

PIXELS_AT_ONCE = 2**24  # 64 MiB of float32; at least one map is held


def resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(n, h, w) -> (n, H, W), bilinear, pixel centres kept, as the reference does."""
    return F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def parts(maps: Tensor, size: tuple[int, int], pixels: int = PIXELS_AT_ONCE) -> Sequence[Tensor]:
    """The maps (n, h, w) in runs of so many that their full size stays below `pixels`."""
    return maps.split(max(1, pixels // (size[0] * size[1])))


def union(low: Tensor, size: tuple[int, int]) -> Tensor:
    """Where at least one of the maps (n, h, w) is positive at the image's size: (H, W) bool, on the maps' device.

    The full-size maps are never held together. Without a map, nothing is positive.
    """
    found = torch.zeros(size, dtype=torch.bool, device=low.device)
    for part in parts(low, size):
        found |= (resized(part, size) > 0).any(0)
    return found
