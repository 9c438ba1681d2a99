"""Prompts from masks, for training and evaluation, and from what a user gives to `predict`."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.objects import tight_boxes
from bench.types import Prompts, TrainingPrompts


def box_prompts(objects: np.ndarray) -> Prompts:
    """The tight boxes of objects (n, H, W) bool; no prompt where n is 0."""
    if not len(objects):
        return Prompts()
    return Prompts(boxes=torch.from_numpy(tight_boxes(objects)).float())


def point_prompts(objects: np.ndarray, rng: np.random.Generator) -> Prompts:
    """One random pixel of each object (n, H, W) bool, as a foreground point; no prompt where n is 0."""
    if not len(objects):
        return Prompts()
    pixels = [np.argwhere(mask) for mask in objects]
    chosen = np.stack([yx[rng.integers(len(yx))][::-1] for yx in pixels]).astype(np.float32)
    return Prompts(points=torch.from_numpy(chosen)[:, None], labels=torch.ones(len(chosen), 1))


def mask_prompts(objects: np.ndarray, rng: np.random.Generator, how: TrainingPrompts, side: int) -> Prompts:
    """Noisy masks (n, 1, side, side) of 0/1 of objects (n, H, W) bool, as HQ-SAM trains with; no prompt where n is 0.

    Gaussian noise of standard deviation 1 is added where the mask differs by ≥ 0.01 from itself after scaling down and up.
    """
    if not len(objects):
        return Prompts()
    masks = F.interpolate(torch.from_numpy(objects).float()[:, None], (side, side), mode="bilinear", align_corners=False)
    small = F.interpolate(masks, (side // how.noise_scale,) * 2, mode="bilinear", align_corners=False)
    again = F.interpolate(small, (side, side), mode="bilinear", align_corners=False)
    incoherent = ((masks - again).abs() >= 0.01).float()
    noise = torch.from_numpy(rng.standard_normal(tuple(masks.shape), dtype=np.float32))
    return Prompts(masks=(masks + noise * incoherent > how.noise_threshold).float())


def training_prompts(kind: str, objects: np.ndarray, rng: np.random.Generator, how: TrainingPrompts, side: int) -> Prompts:
    """Prompts of a kind ("point", "box" or "mask") for all objects (n, H, W) bool of a training image."""
    if kind == "point":
        return point_prompts(objects, rng)
    return box_prompts(objects) if kind == "box" else mask_prompts(objects, rng, how, side)


def prompts_from(*, box: Any, boxes: Any, point: Any, points: Any, labels: Any, mask: Any, grid: int) -> Prompts:
    """The Prompts of what a user gave; see PromptableSegmenter.predict. ValueError where two forms of one thing are given."""
    if (box is not None and boxes is not None) or (point is not None and points is not None):
        raise ValueError("Give box or boxes, and point or points, not both.")
    all_boxes = _floats("boxes", [box] if box is not None else boxes, 4)
    all_points = _floats("points", [[point]] if point is not None else points, 2)
    all_labels = None
    if all_points is not None:
        all_points = all_points if all_points.ndim == 3 else all_points[:, None]
        all_labels = torch.ones(all_points.shape[:2]) if labels is None else torch.as_tensor(np.asarray(labels)).float()
        all_labels = all_labels.reshape(all_points.shape[:2])
    masks = None
    if mask is not None:
        given = torch.as_tensor(np.asarray(mask)).float()[None, None]
        masks = F.interpolate(given, (4 * grid, 4 * grid), mode="bilinear", align_corners=False)
    return Prompts(all_boxes, all_points, all_labels, masks)


def _floats(name: str, values: Any, last: int) -> Tensor | None:
    if values is None:
        return None
    array = np.asarray(values, dtype=np.float32)
    if array.ndim < 2 or array.shape[-1] != last:
        raise ValueError(f"{name} of shape {array.shape}: the last of at least two dimensions must be {last}.")
    return torch.from_numpy(array)


def check_prompts(prompts: Prompts, height: int, width: int) -> None:
    """ValueError, in one sentence, unless all coordinates are finite and inside the image, and the boxes' corners in order."""
    edges = torch.tensor([width, height], dtype=torch.float32)
    for name, xy in (("box", prompts.boxes), ("point", prompts.points)):
        if xy is None:
            continue
        pairs = xy.reshape(-1, 2)
        if not torch.isfinite(pairs).all() or (pairs < 0).any() or (pairs > edges).any():
            raise ValueError(f"A {name} of {xy.tolist()} is not inside the image of {width}×{height} pixels (width × height).")
    if prompts.boxes is not None and not (prompts.boxes[:, :2] <= prompts.boxes[:, 2:]).all():
        raise ValueError(f"A box of {prompts.boxes.tolist()} is not ordered: x0 ≤ x1 and y0 ≤ y1 are needed.")
