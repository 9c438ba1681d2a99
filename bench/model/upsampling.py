"""Mask logits from the decoder's size to an image's own size, and what is read off them there.

A value is PyTorch's interpolation's. A gradient goes back by two products with the interpolation's weights, which are the same sums in
the same order each time; PyTorch's own adds on a GPU in any order, and is slower on a CPU.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.autograd.function import once_differentiable

from bench.model.precision import exact_products

PIXELS_AT_ONCE = {"cpu": 2**20, "cuda": 2**26}  # of full size, by device; at least one map is held


def resized(maps: Tensor, size: tuple[int, int], mode: str = "bilinear") -> Tensor:
    """(n, h, w) -> (n, H, W), bilinear or bicubic, pixel centres kept, as the reference does."""
    if torch.compiler.is_compiling():  # a compiler has its own
        return F.interpolate(maps[:, None], size, mode=mode, align_corners=False)[:, 0]
    out: Tensor = _Resized.apply(maps, size, mode)
    return out


class _Resized(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, size: tuple[int, int], mode: str) -> Tensor:
        ctx.size, ctx.mode = maps.shape[-2:], mode
        return interpolated(maps[:, None], size, mode)[:, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return brought_back(grad, ctx.size, ctx.mode), None, None


def interpolated(maps: Tensor, size: tuple[int, int], mode: str = "bilinear") -> Tensor:
    """(n, c, h, w) -> (n, c, H, W) by PyTorch's operator, which F.interpolate replaces by many where algorithms must be deterministic."""
    out: Tensor = getattr(torch.ops.aten, f"upsample_{mode}2d")(maps, list(size), False)
    return out


def smoothly_resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """An image (c, H, W) at another size as float32, with antialias; of bytes by Pillow, whose rounding SAM's predictor has."""
    if image.dtype != torch.uint8:
        return F.interpolate(image[None].float(), size, mode="bilinear", antialias=True)[0]
    picture = Image.fromarray(image.permute(1, 2, 0).cpu().numpy()).resize(size[::-1], Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float()


def brought_back(grad: Tensor, size: tuple[int, int], mode: str = "bilinear") -> Tensor:
    """The transpose of `resized`: from a gradient (n, H, W) to that of maps (n, h, w)."""
    with exact_products(grad.device):
        rows, columns = (_weights(*lengths, mode, grad.device) for lengths in zip(size, grad.shape[-2:], strict=True))
        return (rows.T @ (grad.float() @ columns)).to(grad.dtype)


@lru_cache(maxsize=64)  # images of a data set have few sizes, crops many
def _weights(before: int, after: int, mode: str, device: torch.device) -> Tensor:
    """What each of `before` pixels of a line weighs in each of `after`, (after, before)."""
    with torch.inference_mode(False), torch.no_grad():
        return interpolated(torch.eye(before, device=device)[None, None], (after, before), mode)[0, 0]


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
