"""The loss of mask maps at an image's size, some maps at a time: no full-size map outlives its own value and gradient.

Both terms' gradients are known in closed form, so they are taken back to the maps' own size while the full size is at hand.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from bench.model.upsampling import brought_back, interpolated, parts
from bench.training.targets import Target


def streamed_terms(low: Tensor, target: Target) -> tuple[Tensor, Tensor]:
    """The binary cross-entropy and dice loss, scalars as in `bench.training.losses`, of the maps low (n, h, w) at the size of
    target (n, H, W)."""
    bce, dice = _Streamed.apply(low, target)
    return bce, dice


class _Streamed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, low: Tensor, target: Target) -> tuple[Tensor, Tensor]:
        size, wanted = (target.shape[-2], target.shape[-1]), ctx.needs_input_grad[0]
        lows = parts(low, size)
        found = [_terms(x, t.to(x.dtype), wanted) for x, t in zip(lows, target.split(len(lows[0])), strict=True)]
        bce, dice, d_bce, d_dice = (torch.cat(of) for of in zip(*found, strict=True))  # (n,), (n,), and (n, h, w) twice
        ctx.save_for_backward(d_bce / len(low), d_dice / len(low))
        return bce.mean(), dice.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_bce: Tensor, of_dice: Tensor) -> tuple[Tensor, None]:
        d_bce, d_dice = ctx.saved_tensors
        return of_bce * d_bce + of_dice * d_dice, None


def _terms(low: Tensor, target: Tensor, wanted: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Each map's two losses, and, where wanted, their gradients by the map's own pixels."""
    logits = interpolated(low[:, None], (target.shape[-2], target.shape[-1]))[:, 0]
    bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean((1, 2))
    p = logits.sigmoid_()
    overlap, total = 2 * (p * target).sum((1, 2)) + 1, p.sum((1, 2)) + target.sum((1, 2)) + 1
    dice = 1 - overlap / total
    if not wanted:
        return bce, dice, low[:0], low[:0]
    of_low = low.shape[1], low.shape[2]
    overlap, total = overlap[:, None, None], total[:, None, None]
    d_bce = brought_back(p - target, of_low) / target[0].numel()
    d_dice = brought_back((overlap / total**2 - target * (2 / total)) * (p - p * p), of_low)
    return bce, dice, d_bce, d_dice
