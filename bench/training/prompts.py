"""Prompts from masks, for training and evaluation."""

import numpy as np
import torch
import torch.nn.functional as F

from bench.data.objects import tight_boxes
from bench.training.streams import Stream
from bench.types import Prompts, TrainingPrompts


def box_prompts(objects: np.ndarray) -> Prompts:
    """The tight boxes of objects (n, H, W) bool; no prompt where n is 0."""
    if not len(objects):
        return Prompts()
    return Prompts(boxes=torch.from_numpy(tight_boxes(objects)).float())


def point_prompts(objects: np.ndarray, stream: Stream) -> Prompts:
    """One random pixel of each object (n, H, W) bool, as a foreground point; no prompt where n is 0."""
    if not len(objects):
        return Prompts()
    pixels = [np.argwhere(mask) for mask in objects]
    chosen = np.stack([yx[stream.pixel(len(yx))][::-1] for yx in pixels]).astype(np.float32)
    return Prompts(points=torch.from_numpy(chosen)[:, None], labels=torch.ones(len(chosen), 1))


def mask_prompts(objects: np.ndarray, stream: Stream, how: TrainingPrompts, side: int) -> Prompts:
    """Noisy masks (n, 1, side, side) of 0/1 of objects (n, H, W) bool, as HQ-SAM trains with; no prompt where n is 0.

    Gaussian noise of standard deviation 1 is added where the mask differs by ≥ 0.01 from itself after scaling down and up.
    """
    if not len(objects):
        return Prompts()
    masks = F.interpolate(torch.from_numpy(objects).float()[:, None], (side, side), mode="bilinear", align_corners=False)
    small = F.interpolate(masks, (side // how.noise_scale,) * 2, mode="bilinear", align_corners=False)
    again = F.interpolate(small, (side, side), mode="bilinear", align_corners=False)
    incoherent = ((masks - again).abs() >= 0.01).float()
    return Prompts(masks=(masks + stream.noise(*masks.shape) * incoherent > how.noise_threshold).float())


def training_prompts(kind: str, objects: np.ndarray, stream: Stream, how: TrainingPrompts, side: int) -> Prompts:
    """Prompts of a kind ("point", "box" or "mask") for all objects (n, H, W) bool of a training image."""
    if kind == "point":
        return point_prompts(objects, stream)
    return box_prompts(objects) if kind == "box" else mask_prompts(objects, stream, how, side)
