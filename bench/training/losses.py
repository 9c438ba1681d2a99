"""The segmentation loss of CAT-SAM: binary cross-entropy plus dice, at the image's own size."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.model.implementation import implementation
from bench.model.transfer import uploaded
from bench.model.upsampling import resized
from bench.training.streamed_loss import streamed_terms
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
    bce, dice = torch.stack([torch.stack(streamed_terms(x.float(), t)) for x, t in zip(low, there, strict=True)]).mean(0)
    return Loss(bce + dice, bce, dice)


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """1 − (2Σpt + 1)/(Σp + Σt + 1) with p = sigmoid(logits), per object (n, H, W), averaged."""
    p, t = logits.sigmoid().flatten(1), targets.flatten(1)
    return (1 - (2 * (p * t).sum(1) + 1) / (p.sum(1) + t.sum(1) + 1)).mean()
