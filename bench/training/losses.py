"""The segmentation loss of CAT-SAM: binary cross-entropy plus dice, at the image's own size."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from bench.model.implementation import implementation
from bench.model.transfer import uploaded
from bench.model.upsampling import brought_back, interpolated, parts, resized
from bench.training.targets import LabelledMasks, Target, stacked


class Loss(NamedTuple):
    """Scalars: total = bce + dice."""

    total: Tensor
    bce: Tensor
    dice: Tensor


def segmentation_loss(logits: Sequence[Tensor], targets: Sequence[Tensor]) -> Loss:
    """The loss of a batch: each term is averaged over an image's objects (and pixels), then over images.

    logits, targets: per image (n, H, W); targets are 0/1 of any number type.
    """
    pairs = [(x, t.to(x.device, x.dtype)) for x, t in zip(logits, targets, strict=True)]
    bce = torch.stack([F.binary_cross_entropy_with_logits(x, t) for x, t in pairs]).mean()
    dice = torch.stack([dice_loss(x, t) for x, t in pairs]).mean()
    return Loss(bce + dice, bce, dice)


def upsampled_loss(low: Sequence[Tensor], targets: Sequence[Target]) -> Loss:
    """`segmentation_loss` of the maps `low`, per image (n, h, w), brought to the size of the image's targets (n, H, W).

    This is what a training step takes: `upsampled_loss(model.decode_low(features, prompts).logits, targets)`.
    """
    pairs = list(zip(low, targets, strict=True))
    if implementation() == "reference":
        return segmentation_loss([resized(x, (t.shape[-2], t.shape[-1])) for x, t in pairs], stacked(targets))
    there = [t.to(x.device) if isinstance(t, LabelledMasks) else uploaded(t, x.device) for x, t in pairs]
    bce, dice = torch.stack([torch.stack(_Streamed.apply(x.float(), t)) for x, t in zip(low, there, strict=True)]).mean(0)
    return Loss(bce + dice, bce, dice)


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """1 − (2Σpt + 1)/(Σp + Σt + 1) with p = sigmoid(logits), per object (n, H, W), averaged."""
    p, t = logits.sigmoid().flatten(1), targets.flatten(1)
    return (1 - (2 * (p * t).sum(1) + 1) / (p.sum(1) + t.sum(1) + 1)).mean()


class _Streamed(torch.autograd.Function):
    """Both terms of maps (n, h, w) at the size of a target (n, H, W), some maps at a time: no full-size map outlives its own value and
    gradient. Gradients are known in closed form, so they are taken back to the maps' own size while the full size is at hand."""

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
