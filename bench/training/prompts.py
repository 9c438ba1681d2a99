"""Prompts from masks, for training and evaluation."""

import numpy as np
import torch
import torch.nn.functional as F

from bench.data.objects import tight_boxes
from bench.training.streams import FreshStream, Stream
from bench.types import Prompts, TrainingPrompts


def box_prompts(objects: np.ndarray) -> Prompts:
    """The tight boxes of objects (n, H, W) bool; no prompt where n is 0."""
    if not len(objects):
        return Prompts()
    return Prompts(boxes=torch.from_numpy(tight_boxes(objects)).float())


def jittered(prompts: Prompts, size: tuple[int, ...], jitter: float, stream: FreshStream) -> Prompts:
    """Boxes, each side moved by U(-jitter, jitter) of the box's width or height, and kept in the image of `size` (H, W). An object's
    numbers depend on its place among the others alone, whatever the jitter; jitter 0 moves nothing."""
    if prompts.boxes is None:
        return prompts
    boxes, last = prompts.boxes.numpy(), np.array([size[1], size[0]] * 2, np.float32) - 1
    moves = stream.rng.uniform(-1, 1, boxes.shape).astype(np.float32) * np.float32(jitter)
    sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    return Prompts(boxes=torch.from_numpy(np.clip(boxes + moves * sides, 0, last)))


def point_prompts(objects: np.ndarray, stream: Stream, count: int = 1) -> Prompts:
    """Random pixels of each object (n, H, W) bool, so many, as foreground points; no prompt where n is 0."""
    if not len(objects):
        return Prompts()
    pixels = [np.argwhere(mask) for mask in objects]
    chosen = np.stack([[yx[stream.pixel(len(yx))][::-1] for _ in range(count)] for yx in pixels]).astype(np.float32)
    return Prompts(points=torch.from_numpy(chosen), labels=torch.ones(len(chosen), count))


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
